"""What teacher and student say of the same images, as numbers an estimate is made from."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from datafree.config import Frozen

_FLOOR = 1e-12


class Features(Frozen):
    """How much two networks with the same classes differ on images without labels.

    All are means over images, or over positions of classes at every position; shares lie between
    0 and 1.
    """

    images: int
    """Images they were measured on: those that the teacher is sure enough of."""
    classes: int
    """K."""
    kl: float
    """KL(teacher || student), in nats."""
    flips: float
    """Share of other answers; no loss of top-1 is greater."""
    expected_loss: float
    """``p_t(y_t) - p_t(y_s)``: what other answers would cost if the teacher's probabilities were
    true."""
    margin_loss: float
    """Share of other answers, each weighted by the teacher's margin in logits over its mean."""
    doubt: float
    """``p_t(y_t) - p_s(y_t)``, how much less the student believes the teacher's answer; tempered,
    so that the mean margin of the teacher's logits is `_MARGIN`."""
    near_flips: float
    """Share of other answers if the student's error were Gaussian: of the teacher's margins and the
    deviation of the error, so that it resolves less than one image."""
    sqnr_db: float
    """``10 log10(sum (t - mean_k t)^2 / sum (d - mean_k d)^2)`` of logits t and their error d."""
    commonest: float
    """Share of the student's commonest answer, among all images."""
    commonest_teacher: float
    """That of the teacher."""
    worst_layer_db: float | None = None
    """Least signal-to-noise ratio of a quantized layer's output, where it was measured."""


_MARGIN = 4.0
"""Mean margin to which the teacher's logits are tempered."""


_SURE = 0.9
"""Mean confidence of teachers on real images over that of sure answers: 0.81 to 0.99 of seven."""
_SURE_ANSWER = 0.9
"""Share of images that are less sure than a sure answer. Networks trained on softened labels are
never sure, so that confidence itself compares nothing."""


def judged_features(
    teacher: Tensor, student: Tensor, worst_layer_db: float | None = None
) -> Features:
    """`features` of images that are as hard for the teacher as real ones.

    How sure a teacher is of mixtures differs between networks much more than on real images. So
    the images that it is least sure of are left out, at most half of them, until its mean
    confidence is as far below that of its sure answers as on real images.

    Args:
        teacher: logits (N, K) of all images.
        student: likewise.
        worst_layer_db: see `Features`.
    """
    kept = sure_enough(teacher)
    found = features(teacher[kept], student[kept], worst_layer_db)
    shares = {"commonest": share(student.argmax(1)), "commonest_teacher": share(teacher.argmax(1))}
    return found.model_copy(update=shares)


def sure_enough(logits: Tensor, share_of_sure: float = _SURE) -> Tensor:
    """Places of the images that count, the surest first.

    Args:
        logits: of the teacher, (N, K).
        share_of_sure: their mean confidence over that of a sure answer.
    """
    values, order = logits.double().softmax(1).amax(1).sort(descending=True, stable=True)
    # Like torch.quantile, which refuses more than 2**24 values.
    sure = values[len(values) - 1 - round(_SURE_ANSWER * (len(values) - 1))]
    means = values.cumsum(0) / torch.arange(1, len(values) + 1)
    count = max(int((means >= share_of_sure * sure).sum()), -(-len(values) // 2))
    return order[:count]


def features(teacher: Tensor, student: Tensor, worst_layer_db: float | None = None) -> Features:
    """The features of two sets of logits.

    Args:
        teacher: logits (N, K), K at least 2.
        student: likewise, of the same images.
        worst_layer_db: see `Features`.
    """
    t, s = teacher.double(), student.double()
    own, other = t.argmax(1), s.argmax(1)
    changed = (own != other).double()
    top = t.topk(2, 1).values
    margin = top[:, 0] - top[:, 1]
    mean_margin = float(margin.mean().clamp(min=_FLOOR))
    p = t.softmax(1)
    rows = torch.arange(len(t))
    d = s - t
    centred, error = t - t.mean(1, keepdim=True), d - d.mean(1, keepdim=True)
    noise = float(error.square().sum())
    tempered = _MARGIN / mean_margin
    believed = (tempered * t).softmax(1)[rows, own] - (tempered * s).softmax(1)[rows, own]
    spread = (d[rows, own] - d.gather(1, t.topk(2, 1).indices)[:, 1]).square().mean().sqrt()
    chances = 0.5 * torch.erfc(margin / (math.sqrt(2) * spread.clamp(min=_FLOOR)))
    return Features(
        images=len(t),
        classes=t.shape[1],
        kl=float(
            F.kl_div(
                s.log_softmax(1), t.log_softmax(1), log_target=True, reduction="batchmean"
            ).clamp(min=0)
        ),
        flips=float(changed.mean()),
        expected_loss=float((p[rows, own] - p[rows, other]).mean()),
        margin_loss=float((changed * margin).mean()) / mean_margin,
        doubt=float(believed.mean()),
        near_flips=float(chances.mean()),
        sqnr_db=10 * math.log10(max(float(centred.square().sum()), _FLOOR) / max(noise, _FLOOR)),
        commonest=share(other),
        commonest_teacher=share(own),
        worst_layer_db=worst_layer_db,
    )


def share(answers: Tensor) -> float:
    """Of the commonest among classes (N,)."""
    return float(torch.bincount(answers).max()) / len(answers)
