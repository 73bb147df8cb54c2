"""DFQF: fine-tuning by an adversarial game in which no label is needed (A.5, C.2)."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, fx, nn

from datafree.calibrators.base import Calibrator, Observe
from datafree.calibrators.bounded_mse import BoundedMSE
from datafree.losses import distillation, inception_score_loss, kl_distance, soft_cross_entropy
from datafree.quant.preparation import bounded_weight_ranges
from datafree.tensors import device_of, fast_copy
from datafree.training.base import Dream, Fraction, Task, Trainer
from datafree.training.gdfq import running


class DFQF(Trainer):
    """Fine-tune by a game in which a generator seeks what the student does not know yet.

    Algorithms 1 and 2 of the paper. An unconditional generator learns what the teacher M is sure
    of, in balance over the classes, with the statistics M remembers, and what the student S does
    not know yet:

        L_G = L_is(alpha) + beta L_bn - gamma L_adv,    L_S = CE(softmax(M(x)), softmax(S(x))).

    The student learns ``L_S`` on new images. First S is a float network of the teacher's
    architecture with random weights; when the generator is warm, S is the quantized teacher, whose
    clips ``A = max(A_mse, lower_bound max|x|)`` on the activations of the float network are learned
    (algorithms B.2.7). One warm generator serves all bit widths. Without batch norms ``L_bn`` is
    left out.

    An epoch of the paper is 100 steps of 512 images: 200 of warm-up, 40 of fine-tuning.
    """

    citation: ClassVar[str] = (
        "Li et al. (2020), DFQF: Data Free Quantization-aware Fine-tuning, ACML"
    )
    conditional: ClassVar[bool] = False
    fresh: ClassVar[bool] = True
    observe: ClassVar[Observe] = "float"

    warmup: int = Field(default=20_000, ge=0)
    iterations: int = Field(default=4_000, ge=1)
    batch_size: int = Field(default=512, ge=2)
    generator_lr: float = Field(default=0.01, gt=0)
    student_lr: float = Field(default=1e-3, gt=0)
    nesterov: bool = False
    weight_decay: float = Field(default=5e-4, ge=0)
    milestones: tuple[Fraction, ...] = ()
    """Fractions of the fine-tuning, from 0 to 1, at which the student's rates fall to a tenth; the
    generator's stays."""
    weights: Literal["minmax", "lsq", "clip", "fixed"] = "clip"
    activations: Literal["fixed", "lsq", "clip", "pact"] = "clip"
    latent: int = Field(default=1000, ge=1)
    inception_weight: float = Field(default=1.0, ge=0)
    """Weight of the inception score ``L_is``; 0 leaves it out."""
    alpha: float = Field(default=40.0, ge=0)
    """Weight of the balance over classes within ``L_is``."""
    beta: float = Field(default=0.1, ge=0)
    """Weight of the batch-norm statistics ``L_bn``; 0 leaves them out."""
    gamma: float = Field(default=5.0, ge=0)
    """Weight of the adversarial term ``L_adv``; 0 leaves it out."""
    adversarial: Literal["cross_entropy", "divergence"] = "divergence"
    """What ``L_adv`` takes for what the student does not know: `divergence`, that of its answers
    from the teacher's, as in the code; `cross_entropy`, which is ``L_S`` as the paper has it. That
    is the divergence plus the teacher's own entropy, and with `gamma` 5 against the 1 of the
    inception score it draws the generator to images the teacher is not sure of."""
    weighting: Literal["paper", "kl"] = "paper"
    """How ``L_bn`` weighs channels: `paper`, by twice their variance, Eq. (7); `kl`, all
    alike, Eq. (6)."""
    lower_bound: float = Field(default=0.3, ge=0, le=1)
    """Smallest share of the extremes that clips start from; 0.5 in the code."""
    learner_lr: float = Field(default=0.1, gt=0)
    """SGD's rate for the float network that learns in the warm-up; its momentum is `momentum`."""
    learner_decay: float = Field(default=5e-4, ge=0)
    """Weight decay of the float network that learns in the warm-up."""
    learner_milestones: tuple[Fraction, ...] = (0.4, 0.8)
    """Fractions of the warm-up, from 0 to 1, at which the float network's rate falls to a tenth."""

    def passes(self) -> float:
        """Both phases have a student, and ask it twice; without `gamma` the first has none."""
        together = self.passes_together()
        warming = together if self.gamma else 1.0
        return self.batch_size * (warming * self.warmup + together * self.iterations)

    def generator_terms(
        self, dream: Dream, student: nn.Module | None, memory: Any
    ) -> dict[str, Tensor]:
        """Inception score, statistics, and what the student does not know."""
        del memory
        terms: dict[str, Tensor] = {}
        if self.inception_weight:
            score = inception_score_loss(dream.logits, self.alpha, dream.heads)
            terms["inception score"] = self.inception_weight * score
        if self.beta and dream.features:
            rows = [kl_distance(f, *running(layer), self.weighting) for layer, f in dream.features]
            terms["statistics"] = self.beta * torch.stack(rows).sum()
        if self.gamma and student is not None:
            answers = student(dream.images)
            unknown = (
                distillation(answers, dream.logits, temperature=1.0, heads=dream.heads)
                if self.adversarial == "divergence"
                else soft_cross_entropy(answers, dream.logits, dream.heads)
            )
            terms["adversarial"] = -self.gamma * unknown
        return terms

    def student_terms(self, logits: Tensor, dream: Dream) -> dict[str, Tensor]:
        """The teacher's answers."""
        return {"distillation": soft_cross_entropy(logits, dream.logits, dream.heads)}

    def calibrator(self, rule: Calibrator) -> Calibrator:
        """The bounded rule of B.2.7, whatever the run's: tiny clips could be learned below zero."""
        del rule
        return BoundedMSE(lower_bound=self.lower_bound)

    def first_ranges(self, student: fx.GraphModule) -> None:
        """Weights start from bounded clips too."""
        bounded_weight_ranges(student, self.lower_bound)

    def learner(self, task: Task) -> fx.GraphModule | None:
        """The teacher's architecture with random weights; nobody where no term asks it."""
        return forgotten(task.teacher, task.seed) if self.gamma else None

    def learner_optimizer(self, learner: nn.Module) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(
            learner.parameters(), self.learner_lr, self.momentum, weight_decay=self.learner_decay
        )

    def rate(self, name: str, fraction: float, *, tuning: bool) -> float:
        """The generator's rate stays; networks' fall by their milestones."""
        if name == "generator":
            return 1.0
        milestones = self.milestones if tuning else self.learner_milestones
        return 0.1 ** sum(fraction >= milestone for milestone in milestones)


def forgotten(network: fx.GraphModule, seed: int) -> fx.GraphModule:
    """A copy of `network` with random weights, as its layers initialise themselves.

    Parameters outside of layers, such as position embeddings, keep their values.

    Args:
        network: canonical graph; not changed.
        seed: the same seed gives the same weights; torch's own random numbers are not touched.
    """
    device = device_of(network)
    # On the CPU, so that the weights do not depend on the device.
    fresh = copy.deepcopy(network).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in fresh.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return fast_copy(fresh.to(device))
