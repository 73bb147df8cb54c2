"""Gradients of a student's classifier on images, compared with those of their neighbours (A.7)."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from datafree.errors import ModelError
from datafree.graph.taps import last_linear, tap_calls

_CHUNK = 64

Features = tuple[Tensor, Tensor]
"""Classifier inputs (B, D) and logit residuals (B, C) of B images, rows of unit length."""


class Matcher:
    """Teacher and student side by side, and the features of all images finished so far.

    Attributes:
        network: the teacher.
        student: quantized, frozen.
        memory: features of the images of earlier batches, M of them, or None.
    """

    def __init__(self, network: fx.GraphModule, student: fx.GraphModule) -> None:
        self.network = network
        self.student = student
        self.memory: Features | None = None
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}

    def features(self, images: Tensor, *, passed: bool = False) -> Features:
        """Features of `images` (B, C, H, W), with their graph.

        Args:
            images: normalised.
            passed: they have just passed the teacher.
        """
        if not passed:
            self.network(images)
        self.student(images)
        _, wanted = self.seen["network"]
        inputs, got = self.seen["student"]
        return F.normalize(inputs.flatten(1)), F.normalize((wanted - got).flatten(1))

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


@contextmanager
def matching(network: fx.GraphModule, student: fx.GraphModule) -> Generator[Matcher]:
    """A matcher that watches the last linear layers of both while the context lasts.

    Raises:
        ModelError: no linear layer.
    """
    path = last_linear(network)
    if path is None:
        raise ModelError("gradients of the last linear layer are matched, and there is no such one")
    matcher = Matcher(network, student)

    def see(name: str, inputs: Tensor, output: Tensor) -> None:
        matcher.seen[name] = inputs, output

    layers = {"network": network.get_submodule(path), "student": student.get_submodule(path)}
    with tap_calls(layers, see):
        yield matcher
