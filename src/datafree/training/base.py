"""What every fine-tuning method says: hyper-parameters and losses."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, fx, nn

from datafree.calibrators.base import Calibrator, Observe
from datafree.config import Hyperparameters, InputSpec
from datafree.errors import ConfigError, ModelError
from datafree.generators import Generator, GeneratorConfig
from datafree.graph.taps import batch_norms
from datafree.graph.untrained import require_statistics
from datafree.registry import method_name
from datafree.training._task import Dream, Task

__all__ = ["Dream", "Fraction", "Task", "Trainer"]

Fraction = Annotated[float, Field(ge=0, le=1)]
"""A point of a phase of training: 0 is its beginning, 1 its end."""


class Trainer(Hyperparameters):
    """Base of all methods: hyper-parameters, and hooks for the losses.

    `datafree.training.train` takes one and goes the way: first the generator learns alone (or
    against a float companion), then the student's ranges are set on its images, then generator and
    student learn together. A method that learns from given images (`from_images`) has no generator:
    ranges are set on them, and the student learns. The student's batch norms are folded or frozen
    unless `batch_norm` says otherwise.
    """

    citation: ClassVar[str] = ""
    """Where the method comes from: authors, title, venue, year."""
    needs_batch_norm: ClassVar[bool] = False
    """Whether a network without batch norms is refused."""
    from_images: ClassVar[bool] = False
    """Whether the student learns from a fixed set of images; there is no generator then."""
    rates: ClassVar[tuple[str, ...]] = ("generator_lr", "student_lr")
    """Hyper-parameters to lower where the losses diverge."""
    conditional: ClassVar[bool] = True
    sees_blocks: ClassVar[bool] = False
    """Whether the losses look at the outputs of the generator's blocks."""
    fresh: ClassVar[bool] = False
    """Whether the student learns on images other than those the generator was judged on."""
    observe: ClassVar[Observe] = "quantized"
    """Whose activations set the ranges training starts from; those of the float network in any case
    where rounding is learned first."""

    warmup: int = Field(default=800, ge=0)
    """Steps before the student is quantized, in which the generator learns."""
    iterations: int = Field(default=80_000, ge=1)
    """Steps of generator and quantized student together."""
    batch_size: int = Field(default=64, ge=2)
    """Images per step, over all processes."""
    student_steps: int = Field(default=1, ge=1)
    """Steps of the student for each one of the generator, every one on images of its own: more
    where it cannot keep up with a generator that seeks what it does not know."""
    generator_lr: float = Field(default=1e-3, gt=0)
    """Adam's rate for the generator."""
    student_lr: float = Field(default=1e-4, gt=0)
    """SGD's rate for the student."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of the student: share of its last step that is added to the next."""
    nesterov: bool = True
    """Give the student's momentum Nesterov's form; needs a `momentum` above 0."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Weight decay of the student, and of PACT's clips."""
    milestones: tuple[Fraction, ...] = (0.25, 0.5, 0.75)
    """Fractions of the fine-tuning, from 0 to 1, at which all rates fall to a tenth."""
    steps_lr: float = Field(default=0.1, gt=0)
    """Rate of learned step sizes or clips, as a factor on `student_lr`."""
    weights: Literal["minmax", "lsq", "clip", "fixed"] = "minmax"
    """Ranges of weights: `minmax` recomputes them from the extremes at every step; `lsq` learns
    the step; `clip` learns the clip, the step times the largest code (DFQF); `fixed` leaves them
    as training begins (DFQF's Table 3)."""
    activations: Literal["fixed", "lsq", "clip", "pact"] = "fixed"
    """Ranges of activations: `fixed` leaves them as calibrated; `lsq` learns the step; `clip`
    learns the clip, the step times the largest code (DFQF); `pact` learns PACT's upper clip, which
    decays as weights do, and does as `lsq` for tensors that can be negative."""
    batch_norm: Literal["scaled", "folded", "frozen", "train"] = "scaled"
    """What becomes of the student's batch norms: `scaled` folds them, with weights that learn as
    fast as in front of frozen ones, so that rates from papers fit; `folded` folds them, with
    weights that learn as any, which needs lower rates; `frozen` keeps their statistics; `train`
    lets their statistics follow the dreamt images. The last two keep them as layers; in an ONNX
    file they are part of the weights' scales."""
    update_generator: bool = True
    """Let the generator learn on beside the student; without, its weights stay as the warm-up left
    them."""
    latent: int = Field(default=100, ge=1)
    """Length of a latent vector of the generator."""
    body: Literal["upsample", "dcgan"] = "upsample"
    """Layers of the generator: `upsample`, those of DAFL, GDFQ and DFQF, which repeat pixels and
    convolve; `dcgan`, transposed convolutions."""
    width: int = Field(default=128, ge=2)
    """Channels of the generator's widest convolutions; with 32 it takes a tenth of the time that
    the 128 of the literature take."""
    calibration_images: int = Field(default=1280, ge=2)
    """Dreamt images the ranges are set on, where no set of images is given."""
    holdout: int = Field(default=512, ge=2)
    """Dreamt images the student never learns from, to judge it on."""
    checks: int = Field(default=20, ge=1)
    """How many times the student is judged while it is fine-tuned, evenly spread, the last time at
    the end. The student as calibrated is judged before: it is what is kept if all others are
    measurably farther from the teacher."""
    checkpoint_minutes: float = Field(default=2.0, ge=0)
    """Minutes between two checkpoints; 0 writes one after every step."""

    @property
    def name(self) -> str:
        """The method's name: the stem of its file."""
        return method_name(type(self))

    @property
    def folds(self) -> bool:
        """Whether the student is made from the folded teacher and has no batch norms of its own."""
        return self.batch_norm in ("folded", "scaled")

    @abstractmethod
    def generator_terms(
        self, dream: Dream, student: nn.Module | None, memory: Any
    ) -> dict[str, Tensor]:
        """Weighted terms of the generator's loss, by name; scalars.

        Args:
            dream: the batch, with gradients to the generator.
            student: who learns beside it: None while the generator learns alone.
            memory: what `remember` returned.
        """

    @abstractmethod
    def student_terms(self, logits: Tensor, dream: Dream) -> dict[str, Tensor]:
        """Weighted terms of the student's loss, by name; scalars.

        Args:
            logits: the student's, of the images of `dream`.
            dream: the batch; its `logits` carry no gradient.
        """

    def student_losses(self, student: nn.Module, dream: Dream, memory: Any) -> dict[str, Tensor]:
        """Weighted terms of the student's loss on a batch: `student_terms` of what it answers.

        A method that looks at more than answers, or asks more than once, has its own.

        Args:
            student: who learns.
            dream: the batch; its images and logits carry no gradient.
            memory: what `remember` returned.
        """
        del memory
        return self.student_terms(student(dream.images).float(), dream)

    def ask(
        self, generator: Generator, count: int, random: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Latent vectors and labels of a batch to learn from; see `Generator.draw`."""
        return generator.draw(count, random)

    def seen(self, images: Tensor, random: torch.Generator) -> Tensor:
        """What a step sees of images (B, C, H, W) of a fixed set, on the CPU."""
        del random
        return images

    def generator_config(self, spec: InputSpec) -> GeneratorConfig:
        """The generator for images of `spec`."""
        condition = "embedding" if self.conditional and spec.labelled else "none"
        return GeneratorConfig(
            shape=spec.shape, classes=spec.answers, latent=self.latent, condition=condition,
            body=self.body, width=self.width,
        )  # fmt: skip

    def remember(self, teacher: nn.Module, spec: InputSpec, random: torch.Generator) -> Any:
        """Whatever is measured once, before training (`dsg_qat`: the margins)."""
        del teacher, spec, random

    def check(self, teacher: nn.Module) -> None:
        """Refuse a network the method cannot work on.

        Raises:
            ModelError: no batch norm where the method needs one, or none that saw data; names
                methods that work.
        """
        if self.needs_batch_norm and not batch_norms(teacher):
            raise ModelError(
                f"{self.name} matches batch-norm statistics, and this network has no such layer;"
                " use dfqf, gdfq or distill, which do without"
            )
        require_statistics(teacher, self.name, "dfqf")

    def check_rounding(self) -> None:
        """Refuse to start from learned rounding where it would be lost.

        Raises:
            ConfigError: ranges that follow the weights, or batch norms that are not folded.
        """
        if not self.folds:
            raise ConfigError(
                f"rounding is learned for folded weights, and batch_norm={self.batch_norm} keeps"
                " the batch norms: choose batch_norm=scaled, or leave reconstruction out"
            )
        if self.weights == "minmax":
            raise ConfigError(
                "weights=minmax forgets the grids that the rounding was learned for: add"
                " --training-option weights=clip (or lsq), or give reconstruction none"
            )

    def first_ranges(self, student: fx.GraphModule) -> None:
        """Set the weight ranges that training starts from; the student brings some already."""
        del student

    def calibrator(self, rule: Calibrator) -> Calibrator:
        """The rule of the activation ranges training starts from; `rule` is the run's."""
        return rule

    def learner(self, task: Task) -> fx.GraphModule | None:
        """The float network that learns beside the generator before anything is quantized."""
        del task

    def learner_optimizer(self, learner: nn.Module) -> torch.optim.Optimizer:
        """How `learner` learns."""
        raise NotImplementedError

    def passes(self) -> float:
        """Images sent through a network like the teacher and back, about, to foretell the time."""
        return self.batch_size * (self.warmup + self.passes_together() * self.iterations)

    def passes_together(self) -> float:
        """The same for one image of a step in which generator and student learn."""
        return (2.0 if self.fresh else 1.0) + 2.0 * self.student_steps

    def dreams(self) -> float:
        """Images the generator makes, about."""
        again = self.student_steps - (not self.fresh)
        return self.batch_size * (1.0 + 0.5 * again) * (self.warmup + self.iterations)

    def describe(self) -> dict[str, Any]:
        """Method name and all hyper-parameters, as JSON values."""
        return {"method": self.name, **self.model_dump(mode="json")}

    def rate(self, name: str, fraction: float, *, tuning: bool) -> float:
        """Factor on the rate of optimizer `name` at this fraction of a phase.

        Args:
            name: `generator`, `student` or `steps`.
            fraction: 0 to 1.
            tuning: the student is quantized.
        """
        del name
        return 0.1 ** sum(tuning and fraction >= milestone for milestone in self.milestones)
