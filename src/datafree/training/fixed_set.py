"""Fine-tuning on a fixed set of images: what IntraQ, HAST and SynQ share (algorithms-2, 0, 2.3)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from datafree.losses import distillation, first_logits
from datafree.tensors.crops import crop_boxes, cropped
from datafree.training.base import Dream, Trainer


class FixedSet(Trainer):
    """Fine-tune on images that were made before: the run's own, or those given by `images`.

    Every step sees some of them, each through a random crop, mirrored half the time, and the
    student Q learns

        L_Q = distillation_weight * T^2 KL(softmax(M(x) / T) || softmax(Q(x) / T))
              + label_weight * CE(Q(x), y)

    from the teacher M. For a large T the first term is ``distillation_weight * V``, where V is half
    the variance over classes of ``M(x) - Q(x)``: that weight is most of what tells the published
    methods apart. GDFQ and Qimera have 1 / K of K classes (and labels), AdaDFQ 1 (in another form),
    IntraQ, HAST and SynQ 20. The label y is the class an image was made for; where there is none,
    the teacher's own answer.

    Ranges are set on the same images. They also judge the student, uncropped: there are no others,
    so agreement shows a student that broke down, not one that learned them by heart. Real images
    give the upper bound that papers call "real data"; the record says what images there were.
    """

    citation: ClassVar[str] = (
        "What the fine-tuning of Zhong et al. (2022), Li et al. (2023) and Kim et al. (2025) has in"
        " common; see intraq, hast and synq"
    )
    from_images: ClassVar[bool] = True
    rates: ClassVar[tuple[str, ...]] = ("student_lr",)
    # There is no generator to speak of.
    warmup: ClassVar[int] = 0  # pyright: ignore[reportIncompatibleVariableOverride]
    student_steps: ClassVar[int] = 1  # pyright: ignore[reportIncompatibleVariableOverride]
    generator_lr: ClassVar[float] = 0.0  # pyright: ignore[reportIncompatibleVariableOverride]
    update_generator: ClassVar[bool] = False  # pyright: ignore[reportIncompatibleVariableOverride]
    latent: ClassVar[int] = 0  # pyright: ignore[reportIncompatibleVariableOverride]
    body: ClassVar[str] = ""  # pyright: ignore[reportIncompatibleVariableOverride]
    width: ClassVar[int] = 0  # pyright: ignore[reportIncompatibleVariableOverride]
    calibration_images: ClassVar[int] = 0  # pyright: ignore[reportIncompatibleVariableOverride]

    iterations: int = Field(default=20_000, ge=1)
    """Steps of the student."""
    holdout: int = Field(default=512, ge=2)
    """Images of the set that the student is judged on, at most; it learns from them too."""
    distillation_weight: float = Field(default=20.0, ge=0)
    """Weight of the divergence from the teacher's answers."""
    temperature: float = Field(default=20.0, gt=0)
    """Temperature T that logits are divided by in the divergence."""
    label_weight: float = Field(default=0.0, ge=0)
    """Weight of the cross-entropy with the images' classes; 0 leaves it out."""
    crop_scale: float = Field(default=0.5, gt=0, le=1)
    """Smallest area of the crop that a step sees of an image, as a share of it; 1 shows all."""
    mirror: bool = True
    """Exchange left and right half the time; leave it out where sides matter, as in digits."""

    def passes_together(self) -> float:
        """The teacher there, the student there and back."""
        return 2.0

    def dreams(self) -> float:
        """None: there is no generator."""
        return 0.0

    def seen(self, images: Tensor, random: torch.Generator) -> Tensor:
        """A crop of every image, scaled to full size and mirrored half the time."""
        if self.crop_scale == 1 and not self.mirror:
            return images
        boxes = crop_boxes(len(images), self.crop_scale, random)
        mirrored = torch.rand(len(images), generator=random) < 0.5
        return cropped(images, boxes, mirrored & self.mirror)

    def generator_terms(
        self, dream: Dream, student: nn.Module | None, memory: Any
    ) -> dict[str, Tensor]:
        """None: there is no generator."""
        del dream, student, memory
        return {}

    def student_terms(self, logits: Tensor, dream: Dream) -> dict[str, Tensor]:
        """The teacher's softened answers, and classes."""
        terms: dict[str, Tensor] = {}
        if self.distillation_weight:
            divergence = distillation(logits, dream.logits, self.temperature, heads=dream.heads)
            terms["distillation"] = self.distillation_weight * divergence
        classes = classes_of(dream)
        if self.label_weight and classes is not None:
            own = self.label_loss(first_logits(logits, dream.heads), classes, dream)
            terms["classes"] = self.label_weight * own
        return terms or {"distillation": 0.0 * logits.sum()}

    def label_loss(self, logits: Tensor, classes: Tensor, dream: Dream) -> Tensor:
        """Cross-entropy of the student's logits (B, K) with classes (B,): a scalar."""
        del dream
        return F.cross_entropy(logits, classes)


def classes_of(dream: Dream) -> Tensor | None:
    """(B,) classes the images were made for, or else those that the teacher sees in them.

    None where a network returns something else than logits.
    """
    if dream.labels is not None:
        return dream.labels
    return None if dream.heads else dream.answers.argmax(1)
