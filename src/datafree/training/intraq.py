"""IntraQ's fine-tuning: labels and the teacher's answers, on the images of `intraq` (C.1, 2.3)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from datafree.training.base import Fraction
from datafree.training.fixed_set import FixedSet


class IntraQ(FixedSet):
    """Fine-tune as IntraQ does, on images that its image method `intraq` made.

    ``L_Q = CE(Q(x), y) + 20 T^2 KL(softmax(M(x) / T) || softmax(Q(x) / T))`` with T = 20, the
    divergence averaged over images only; `fixed_set` with the paper's weights and schedule, and
    nothing else. The image method is chosen by itself: ``--method intraq --training intraq``.

    The released code goes through 151 epochs of 200 steps, of which the first four set activation
    ranges on the images of a generator; here the fixed set does that. At CIFAR-100 batches are of
    256 images, the rate is 1e-4 and falls to a tenth at epochs 20, 40 and 60, which are the
    defaults; on ImageNet 16 images, 1e-6, at epoch 100 (`milestones` 0.65). The code keeps the
    student that is best on test images; this one keeps the last that agrees with the teacher.
    """

    citation: ClassVar[str] = (
        "Zhong et al. (2022), IntraQ: Learning Synthetic Images with Intra-Class Heterogeneity for"
        " Zero-Shot Network Quantization, CVPR"
    )

    iterations: int = Field(default=29_400, ge=1)
    batch_size: int = Field(default=256, ge=2)
    student_lr: float = Field(default=1e-4, gt=0)
    milestones: tuple[Fraction, ...] = (0.109, 0.245, 0.381)
    label_weight: float = Field(default=1.0, ge=0)
