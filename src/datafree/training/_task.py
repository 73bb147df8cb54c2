"""What goes into a training and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from datafree.calibrators.base import Calibrator
from datafree.config import InputSpec, Scheme
from datafree.errors import ConfigError
from datafree.generators import Generator
from datafree.graph.statistics import Statistics
from datafree.graph.taps import BatchNorm
from datafree.losses import Heads, first_logits
from datafree.reconstruction.base import Reconstructor
from datafree.tensors import device_of


@dataclass(frozen=True)
class Task:
    """What is to be trained.

    Attributes:
        teacher: canonical graph with its batch norms, on the device to train on; not changed.
        folded: the float network the student is made from: the teacher, folded and corrected.
        spec: input of both.
        scheme: the student's numbers; None trains a float student (`distill` only).
        rule: sets the activation ranges the student starts from.
        seed: of all random numbers.
        images: (N, C, H, W) that ranges are set on, and that a trainer without a generator learns
            from; None takes images of the generator.
        targets: (N,) classes of the images, where they are known.
        made_by: the method that made the images, `real` where they are data: for the record.
        generator: file of a generator that was warmed up before.
        companion: float network of another architecture to distill into, canonical, in its initial
            state; None trains the teacher's own.
        statistics: of the layers of `folded`, by which the biases are corrected that a student made
            from it starts from; None leaves them as they are.
        reconstructor: learns the rounding that training starts from, on the images ranges are set
            on; None rounds to the nearest.
    """

    teacher: fx.GraphModule
    folded: fx.GraphModule
    spec: InputSpec
    scheme: Scheme | None
    rule: Calibrator
    seed: int = 0
    images: Tensor | None = None
    targets: Tensor | None = None
    made_by: str = "given"
    generator: Path | None = None
    companion: fx.GraphModule | None = None
    statistics: Statistics | None = None
    reconstructor: Reconstructor | None = None

    @property
    def device(self) -> torch.device:
        """Where everything is computed."""
        return device_of(self.teacher)


@dataclass(frozen=True)
class Trained:
    """What training gives back.

    Attributes:
        student: the best judged, in eval mode, with plain quantizers.
        last: the student after the last step.
        generator: as training left it; None where the student learned from given images.
        warm: the generator after the warm-up; None where it was given or there was none.
        summary: steps, seconds and measurements of every phase, JSON values.
        not_corrected: layers whose biases ``task.statistics`` could not correct.
        rounding: what ``task.reconstructor`` did to every unit, JSON values.
    """

    student: fx.GraphModule
    last: fx.GraphModule
    generator: Generator | None
    warm: Generator | None
    summary: dict[str, Any]
    not_corrected: tuple[str, ...] = ()
    rounding: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Dream:
    """One batch of images, dreamt or given, as its teacher sees it.

    Attributes:
        images: (B, C, H, W).
        labels: (B,) the classes asked for, (B, K) shares of them, or None.
        logits: the teacher's, (B, K).
        features: inputs of the teacher's batch norms.
        blocks: outputs of the generator's blocks.
        start: images shown before this batch.
        random: source of further random numbers.
        heads: what the teacher returns, if it is more than logits.
    """

    images: Tensor
    labels: Tensor | None
    logits: Tensor
    features: list[tuple[BatchNorm, Tensor]]
    blocks: list[Tensor]
    start: int
    random: torch.Generator
    heads: Heads = ()

    @property
    def answers(self) -> Tensor:
        """The teacher's logits of classes, (B, K)."""
        return first_logits(self.logits, self.heads)

    @property
    def asked(self) -> Tensor:
        """The classes asked for.

        Raises:
            ConfigError: the generator takes none.
        """
        if self.labels is None:
            raise ConfigError("this method asks for classes, and its generator takes none")
        return self.labels

    def detached(self) -> Dream:
        """The same without gradients to the generator."""
        return replace(self, images=self.images.detach(), logits=self.logits.detach())
