"""SynQ's fine-tuning: low-pass images, class maps, labels of easy images (algorithms-2, 1)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, fx, nn

from datafree.config import InputSpec
from datafree.errors import ModelError
from datafree.losses import first_logits, low_pass
from datafree.training._features import Maps, Watched, block_places, last_place
from datafree.training.base import Dream, Fraction
from datafree.training.fixed_set import classes_of
from datafree.training.hast import HAST

_LEAST_WEIGHT = 1e-10  # of a channel, in the released code


class SynQ(HAST):
    """Fine-tune on smoothed images, where the student is to look where its teacher looks.

    Synthetic images have noise that real ones lack, mislead about where to look, and often are no
    good example of their class. So images pass a Gaussian low-pass filter after the crop, and

    ``L_Q = 20 T^2 KL(M || Q) + map_weight * |S_M - S_Q|^2 + label_weight * CE`` of easy images.

    ``S = relu(sum_k w_k A_k)`` is the class activation map: ``A_k`` the maps behind the last
    convolution, ``w_k`` the mean over positions of the gradient of the class's logit by ``A_k``,
    taken as constant. Images are easy whose class the teacher gives a probability of at least
    ``1 - hardness``; the others count in the mean and have no term.

    The released code keeps HAST's terms beside these (`feature_weight` 4000, `perturbation` 0.01
    here), and takes maps of each network's own answer, normalised (`maps` `official`). The
    filter's cut-off is a share of the side, since the code's 80 bins of 224 pixels are beyond all
    that 32 pixels have. Real images are not filtered there: `cutoff` 0. The paper's own images add
    "calibration centres" to those of `hast`; they are not made here.
    """

    citation: ClassVar[str] = (
        "Kim, Kim and Kang (2025), SynQ: Accurate Zero-shot Quantization by Synthesis-aware"
        " Fine-tuning, ICLR, arXiv:2603.18423"
    )

    iterations: int = Field(default=19_400, ge=1)
    batch_size: int = Field(default=256, ge=2)
    milestones: tuple[Fraction, ...] = (0.165, 0.371, 0.577)
    feature_weight: float = Field(default=0.0, ge=0)
    perturbation: float = Field(default=0.0, ge=0)
    cutoff: float = Field(default=80 / 224, ge=0)
    """Cut-off of the low-pass filter: its deviation over frequencies, in bins of the transform as a
    share of the image's side; the deviation in pixels is ``1 / (2 pi cutoff)``. 0 leaves it out."""
    map_weight: float = Field(default=50.0, ge=0)
    """Weight of the distance of class activation maps; 0 leaves it out."""
    maps: Literal["paper", "official"] = "paper"
    """Which maps: `paper`, of the image's class, squared distance summed over positions;
    `official`, of each network's own answer, channels of negative weight left out, enlarged to the
    image and stretched to 0..1, mean square."""
    label_weight: float = Field(default=0.5, ge=0)
    hardness: float = Field(default=0.5, ge=0, le=1)
    """One minus the probability the teacher gives an image's class, above which the image is hard
    and has no cross-entropy; 0.7 at CIFAR-10."""

    def seen(self, images: Tensor, random: torch.Generator) -> Tensor:
        """A crop of every image, without its high frequencies."""
        crops = super().seen(images, random)
        return low_pass(crops, self.cutoff) if self.cutoff else crops

    def remember(self, teacher: nn.Module, spec: InputSpec, random: torch.Generator) -> Any:
        """The places that are compared.

        Raises:
            ModelError: the network tells no classes, or has no convolution.
        """
        del random
        assert isinstance(teacher, fx.GraphModule)  # noqa: S101 - a task has no other
        if not spec.labelled:
            raise ModelError(
                f"{self.name} asks where classes are seen, and this network tells none"
                f" ({spec.task}): use fixed_set, which does without"
            )
        places = block_places(teacher) if self.feature_weight else ()
        return Watched(teacher, places, last_place(teacher) if self.map_weight else None)

    def label_loss(self, logits: Tensor, classes: Tensor, dream: Dream) -> Tensor:
        """Cross-entropy of images that are easy for the teacher."""
        return easy_cross_entropy(logits, dream.answers, classes, self.hardness)

    def terms_of_images(self, maps: Maps) -> dict[str, Tensor]:
        """The distance of class activation maps."""
        if maps.last is None:
            return {}
        one, other = maps.last
        expected, logits = maps.dream.answers, first_logits(maps.logits, maps.dream.heads)
        classes = classes_of(maps.dream)
        assert classes is not None  # noqa: S101 - `remember` refuses other networks
        if self.maps == "paper":
            looked = class_map(expected, one, classes), class_map(logits, other, classes)
            gap = (looked[0] - looked[1]).square().sum((1, 2)).mean()
            return {"maps": self.map_weight * gap}
        size = (maps.dream.images.shape[2], maps.dream.images.shape[3])
        wanted, own = (
            stretched(class_map(answers, features, answers.argmax(1), _LEAST_WEIGHT), size)
            for answers, features in ((expected, one), (logits, other))
        )
        return {"maps": self.map_weight * F.mse_loss(own, wanted)}


def easy_cross_entropy(
    logits: Tensor, expected: Tensor, classes: Tensor, hardness: float
) -> Tensor:
    """``1/B sum CE(logits_i, y_i)`` over images with ``1 - softmax(expected_i)[y_i] <= hardness``.

    Args:
        logits: (B, K) of the student.
        expected: (B, K) of the teacher.
        classes: (B,).
        hardness: from 0, no image, to 1, all.

    Returns:
        Scalar.
    """
    sure = expected.softmax(1).gather(1, classes[:, None])[:, 0]
    easy = (1 - sure <= hardness).to(logits.dtype)
    return (easy * F.cross_entropy(logits, classes, reduction="none")).mean()


def class_map(
    logits: Tensor, features: Tensor, classes: Tensor, least: float | None = None
) -> Tensor:
    """(B, H, W) class activation maps ``relu(sum_k w_k A_k)``, ``w_k = mean_hw dy/dA_k``.

    The weights carry no gradient, the features do.

    Args:
        logits: (B, K), computed from `features`.
        features: (B, C, H, W), A.
        classes: (B,) whose logits are y.
        least: weights are at least that; None leaves them.
    """
    asked = logits.gather(1, classes[:, None]).sum()
    (gradient,) = torch.autograd.grad(asked, [features], retain_graph=True)
    weights = gradient.mean((2, 3), keepdim=True)
    weights = weights if least is None else weights.clamp(min=least)
    return F.relu((weights * features).sum(1))


def stretched(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, h, w) enlarged to (B, H, W), each from 0 to 1; constant ones are 0."""
    large = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    return (large - low) / (high - low).clamp(min=1e-12)
