"""Gradients of a student's classifier on images, compared with those of their neighbours (A.7)."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from datafree.calibrators.base import calibrate
from datafree.calibrators.mse import MSE
from datafree.config import InputSpec, Scheme
from datafree.errors import ModelError
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.graph.taps import last_linear, tap_calls
from datafree.graph.watched import WatchedNetwork, watched
from datafree.quant.modules import QUANTIZED
from datafree.tensors import device_of, fast_copy
from datafree.tensors.memory import Portion

_CHUNK = 64

Features = tuple[Tensor, Tensor]
"""Classifier inputs (B, D) and logit residuals (B, C) of B images, rows of unit length."""


class Matcher:
    """Teacher and student side by side, and the features of all images finished so far.

    Attributes:
        teacher: the network.
        network: a copy of it that tells its statistics over a batch.
        student: quantized, frozen.
        memory: features of the images of earlier batches, M of them, or None.
    """

    def __init__(
        self, teacher: fx.GraphModule, network: WatchedNetwork, student: fx.GraphModule
    ) -> None:
        self.teacher = teacher
        self.network = network
        self.student = student
        self.memory: Features | None = None
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}

    def features(self, images: Tensor, *, passed: bool = False) -> Features:
        """Features of `images` (B, C, H, W), with their graph.

        Args:
            images: normalised.
            passed: they have just passed `network`.
        """
        return unit(self.raw(images, passed=passed))

    def raw(self, images: Tensor, *, passed: bool = False) -> Features:
        """As `features`, but of any length: what the gradient of a set is made of."""
        if not passed:
            self.network.answers(images)
        self.student(images)
        _, wanted = self.seen["network"]
        inputs, got = self.seen["student"]
        return inputs.flatten(1), (wanted - got).flatten(1)

    @torch.no_grad()
    def of_set(self, images: Tensor) -> Features:
        """`raw` of many images, chunk by chunk, without their graph."""
        device = device_of(self.network)

        def passed(size: int) -> list[Features]:
            return [self.raw(chunk.to(device)) for chunk in images.split(size)]

        rows = Portion("gradients of a set", min(_CHUNK, len(images))).fit(passed)
        return torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows])

    @torch.no_grad()
    def remember(self, images: Tensor) -> None:
        """Keep the features of finished images."""
        for chunk in images.split(_CHUNK):
            self.memory = self.with_memory(self.features(chunk), first=False)

    def with_memory(self, features: Features, *, first: bool = True) -> Features:
        """`features` without their graph, and those of all earlier images after (before) them."""
        own = (features[0].detach(), features[1].detach())
        if self.memory is None:
            return own
        pairs = zip(own, self.memory, strict=True)
        ordered = [pair if first else pair[::-1] for pair in pairs]
        return torch.cat(ordered[0]), torch.cat(ordered[1])


def unit(features: Features) -> Features:
    """Rows of unit length."""
    return F.normalize(features[0]), F.normalize(features[1])


@contextmanager
def matching(network: fx.GraphModule, student: fx.GraphModule) -> Generator[Matcher]:
    """A matcher that watches the last linear layers of both while the context lasts.

    Raises:
        ModelError: no linear layer.
    """
    path = last_linear(network)
    if path is None:
        raise ModelError("gradients of the last linear layer are matched, and there is no such one")
    watching = watched(fast_copy(network), together=True, kept=path)
    matcher = Matcher(network, watching, student)

    def see(name: str, inputs: Tensor, output: Tensor) -> None:
        matcher.seen[name] = inputs, output

    layers = {
        "network": watching.network.get_submodule(path),
        "student": student.get_submodule(path),
    }
    with tap_calls(layers, see):
        yield matcher


def calibrated(
    network: fx.GraphModule, images: Tensor, spec: InputSpec, scheme: Scheme | None
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The folded network and a student of it, ranges those of the float network on `images`.

    Args:
        network: canonical graph with its batch norms.
        images: (N, C, H, W), normalised.
        spec: input of the network.
        scheme: the student's numbers; None is W4A4 with policy `brecq` and ranges of least error.
    """
    scheme = scheme or Scheme(bits="W4A4", policy="brecq", weight_range="mse")
    folded = fold_batch_norms(network)
    student = insert_quantizers(folded, scheme, spec)

    def ranges(size: int) -> None:
        batches = (part.to(device_of(network)) for part in images.split(size))
        calibrate(student, batches, MSE(power=2.4), observe="float")

    Portion("calibration of the student that gradients are matched at", _CHUNK).fit(ranges)
    return folded, student


def frozen(student: fx.GraphModule) -> fx.GraphModule:
    """A copy of `student` for gradients of images alone; its weights have to lie on their grids."""
    for layer in student.modules():
        if isinstance(layer, QUANTIZED):
            # The weights lie on their grids: rounding them in every pass changes nothing.
            layer.weight_quantizer.enabled = False
    return fast_copy(student).requires_grad_(False)
