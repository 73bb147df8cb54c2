"""Losses of a classifier's logits: inception score, soft targets, distillation.

Shapes: B images, K classes. Nothing is detached in here: a caller who wants no gradient through the
teacher or the student passes detached logits.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from datafree.losses.answers import Heads, class_logits, class_rows, relative_error, values

PROBABILITY_FLOOR = 1e-8
"""Least mean probability of a class whose logarithm is taken."""


def inception_score_loss(logits: Tensor, alpha: float = 40.0, heads: Heads = ()) -> Tensor:
    """Confident on every image, balanced over the batch (DFQF Eq. 5).

    With ``p_i = softmax(logits_i)`` and their mean ``q`` over the batch,
    ``-1/B sum_i sum_c p_ic log(p_ic / q_c^alpha) = H(y|x) - alpha H(q)``, where ``H(y|x)`` is the
    mean of the images' own entropies. `q` is at least 1e-8 under the logarithm.

    Args:
        logits: (B, K) of the teacher.
        alpha: weight of the batch's entropy; 1 gives minus the logarithm of the inception score.
        heads: what the teacher returns, if it is more than logits; those with classes are summed,
            and nothing is left of a network that has none.

    Returns:
        Scalar, at least ``-alpha log K`` (one class per image, all classes equally often); for
        ``alpha >= 1`` at most 0, but for what the floor takes off ``H(q)``: less than
        ``alpha K 1e-8``.
    """
    total = logits.new_zeros(())
    for rows in class_rows(logits, heads):
        logs = F.log_softmax(rows, 1)
        own = _entropy(logs.exp(), logs)
        mean = logs.exp().mean(0, keepdim=True)
        total = total + own - alpha * _entropy(mean, mean.clamp(min=PROBABILITY_FLOOR).log())
    return total


def soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, heads: Heads = ()) -> Tensor:
    """Cross-entropy of the student against the teacher's probabilities (DFQF's ``L_S``).

    ``-1/B sum_i sum_c softmax(teacher_i)_c log softmax(student_i)_c``, temperature 1. It exceeds
    their KL divergence by the entropy of the teacher: the same gradient for the student, another
    one for the images.

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K), not detached in here.
        heads: what both return, if it is more than logits. Those with classes are summed, and the
            relative squared error of those with numbers (`relative_error`).

    Returns:
        Scalar, at least the teacher's mean entropy.
    """
    total = _numbers(student_logits, teacher_logits, heads)
    pairs = zip(class_rows(student_logits, heads), class_rows(teacher_logits, heads), strict=True)
    for student, teacher in pairs:
        total = total + _entropy(F.softmax(teacher, 1), F.log_softmax(student, 1))
    return total


def distillation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 20.0,
    reduction: Literal["batch", "element"] = "batch",
    heads: Heads = (),
) -> Tensor:
    """KL divergence of softened probabilities (algorithms C.1).

    ``T^2 KL(softmax(teacher / T) || softmax(student / T))``. For T far above the logits this is
    ``1/(2 K)`` times the squared difference of the centred logits, summed over classes.

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K), not detached in here.
        temperature: T, positive.
        reduction: ``batch`` sums over classes and averages over images (IntraQ, HAST, SynQ);
            ``element`` also divides by K, as the code of GDFQ and DSG does: a thousand times less
            on ImageNet.
        heads: as in `soft_cross_entropy`.

    Returns:
        Scalar, not negative but for rounding.
    """
    total = _numbers(student_logits, teacher_logits, heads)
    pairs = zip(class_rows(student_logits, heads), class_rows(teacher_logits, heads), strict=True)
    for own, wanted in pairs:
        student, teacher = (F.log_softmax(rows / temperature, 1) for rows in (own, wanted))
        divergence = (teacher.exp() * (teacher - student)).sum(1).mean() * temperature**2
        total = total + (divergence if reduction == "batch" else divergence / student.shape[1])
    return total


def disagreement(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 20.0
) -> Tensor:
    """How far softened differences of logits are from even: ``T^2 (log K - H(softmax(d / T)))``.

    With ``d = teacher - student`` (AdaSG, AdaDFQ; algorithms-2, 0). 0 where both agree up to a
    number added to all logits; for a large T half the variance of d over classes, as is
    `distillation`.

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K), not detached in here.
        temperature: T, positive.

    Returns:
        (B,), not negative but for rounding.
    """
    gap = class_logits(teacher_logits) - class_logits(student_logits)
    logs = F.log_softmax(gap / temperature, 1)
    return temperature**2 * (math.log(gap.shape[1]) + (logs.exp() * logs).sum(1))


def margin_loss(logits: Tensor, targets: Tensor, margin: float) -> Tensor:
    """How far every target's logit is from leading all others by `margin`.

    ``1/B sum_i max(margin - (z_y - max_{c != y} z_c), 0)``; its gradient does not fade as that of
    the cross-entropy does. One logit is read as two classes (`class_logits`).

    Args:
        logits: (B, K) of the teacher.
        targets: (B,) classes, below ``max(K, 2)``.
        margin: in logits, not negative.

    Returns:
        Scalar, not negative.
    """
    logits = class_logits(logits)
    own = logits.gather(1, targets[:, None]).squeeze(1)
    others = logits.scatter(1, targets[:, None], -torch.inf).amax(1)
    return F.relu(margin - (own - others)).mean()


def _numbers(student: Tensor, teacher: Tensor, heads: Heads) -> Tensor:
    """Relative squared error of all heads without classes, 0 where there are none."""
    total = student.new_zeros(())
    for own, wanted in zip(values(student, heads), values(teacher, heads), strict=True):
        total = total + relative_error(own, wanted)
    return total


def _entropy(probabilities: Tensor, logs: Tensor) -> Tensor:
    """``-sum_c p_c l_c``, averaged over the rows of (B, K)."""
    return -(probabilities * logs).sum(1).mean()
