"""What was lost: accuracy on labelled data, agreement without labels, noise layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.errors import ModelError
from datafree.graph.taps import tap_outputs
from datafree.images import in_pieces
from datafree.losses import Heads, class_rows, first_logits, parts, relative_error, values
from datafree.progress import Step
from datafree.quant.modules import QUANTIZED

_LEAST_RATIO = 1e-30

Predictor = Callable[[Tensor], Tensor]
"""Maps normalised images (B, C, H, W) to logits (B, K)."""


@dataclass(frozen=True)
class Accuracy:
    """How right several predictors are on the same labelled images.

    Attributes:
        top1: by predictor, in the order given; of classes at every position the mean
            intersection over union.
        images: number of images.
    """

    top1: dict[str, float]
    images: int


@dataclass(frozen=True)
class Comparison:
    """How two predictors differ on the same images.

    Attributes:
        images: number of images.
        agreement: share of images, or of positions, with the same prediction, in percent; of one
            logit, its sign. None of networks without classes.
        kl: mean of KL(softmax(first) || softmax(second)), in nats, over images or positions, summed
            over all outputs with classes; of one logit that of its sigmoids. None as above.
        difference: largest absolute difference of two logits of classes; None as above.
        error: square root of the mean square of what numbers without classes are off, over their
            standard deviation over images: 1 is as good as their mean. The worst of all outputs;
            None where there are none.
        cosine: mean over images of the cosine between what the two return; None as above.
    """

    images: int
    agreement: float | None = None
    kl: float | None = None
    difference: float | None = None
    error: float | None = None
    cosine: float | None = None

    @property
    def likeness(self) -> float:
        """How near the two are, in percent: the agreement, or else 100 less the error."""
        if self.agreement is not None:
            return self.agreement
        return max(0.0, 100 * (1 - (self.error or 0.0)))


def top1(
    predictors: dict[str, Predictor],
    batches: Iterable[tuple[Tensor, Tensor]],
    step: Step | None = None,
    heads: Heads = (),
) -> Accuracy:
    """Share of images whose largest logit is the label's; one logit alone says 1 where positive.

    Args:
        predictors: by name; each sees every batch.
        batches: images (B, C, H, W), normalised, and labels (B,).
        step: called with the images done.
        heads: what the predictors return, if it is more than logits.
    """
    correct = dict.fromkeys(predictors, 0)
    total = 0
    with torch.inference_mode():
        for images, labels in batches:
            for name, predict in predictors.items():
                answers = first_logits(predict(images), heads).argmax(1)
                correct[name] += int((answers.cpu() == labels.cpu()).sum())
            total += len(labels)
            if step is not None:
                step(len(labels))
    return Accuracy({name: 100 * hits / max(total, 1) for name, hits in correct.items()}, total)


def mean_iou(
    predictors: dict[str, Predictor],
    batches: Iterable[tuple[Tensor, Tensor]],
    heads: Heads,
    step: Step | None = None,
) -> Accuracy:
    """Mean over classes of intersection over union, in percent, of classes at every position.

    Of every class ``TP / (TP + FP + FN)`` over all positions of all images, and their mean over the
    classes that occur in labels or predictions. Labels that are no class, such as 255, do not
    count. Logits of another size than the labels are resized to it, bilinearly.

    Args:
        predictors: by name; each sees every batch.
        batches: images (B, C, H, W), normalised, and labels (B, H, W).
        heads: what the predictors return.
        step: called with the images done.
    """
    place, head = next((i, h) for i, h in enumerate(heads) if h.kind == "dense_classes")
    classes, total = head.shape[0], 0
    counts = {name: torch.zeros(classes, classes, dtype=torch.long) for name in predictors}
    with torch.inference_mode():
        for images, labels in batches:
            wanted = labels.cpu()
            known = (wanted >= 0) & (wanted < classes)
            for name, predict in predictors.items():
                logits = parts(predict(images).cpu(), heads)[place]
                if logits.shape[2:] != wanted.shape[1:]:
                    logits = F.interpolate(logits, wanted.shape[1:], mode="bilinear")
                pairs = wanted[known] * classes + logits.argmax(1)[known]
                counts[name] += torch.bincount(pairs, minlength=classes**2).view(classes, classes)
            total += len(images)
            if step is not None:
                step(len(images))
    return Accuracy({name: _mean_iou(found) for name, found in counts.items()}, total)


def _mean_iou(counts: Tensor) -> float:
    """Of a table of labels by predictions."""
    right = counts.diag().double()
    union = counts.sum(0) + counts.sum(1) - counts.diag()
    return 100 * float((right / union.clamp(min=1))[union > 0].mean())


def compare(
    first: Predictor, second: Predictor, batches: Iterable[Tensor], heads: Heads = ()
) -> Comparison:
    """Compare two predictors without labels.

    Args:
        first: the reference, e.g. the teacher.
        second: the predictor judged, e.g. the student.
        batches: images (B, C, H, W), normalised.
        heads: what both return, if it is more than logits.
    """
    return compared(*outputs_of(first, second, batches), heads)


def outputs_of(
    first: Predictor, second: Predictor, batches: Iterable[Tensor]
) -> tuple[Tensor, Tensor]:
    """What two predictors return for the same normalised images, on the CPU."""
    expected: list[Tensor] = []
    actual: list[Tensor] = []
    with torch.inference_mode():
        for images in in_pieces(batches):
            expected.append(first(images).cpu())
            actual.append(second(images).cpu())
    return torch.cat(expected), torch.cat(actual)


def compared(wanted: Tensor, found: Tensor, heads: Heads = ()) -> Comparison:
    """`compare` of what was returned already.

    Args:
        wanted: of the reference, a row for every image.
        found: of the predictor judged, likewise.
        heads: what both are, if more than logits.
    """
    classes = list(zip(class_rows(wanted, heads), class_rows(found, heads), strict=True))
    numbers = list(zip(values(wanted, heads), values(found, heads), strict=True))
    told: dict[str, float] = {}
    if classes:
        told |= _classes_compared(classes)
    if numbers:
        told |= {
            "error": max(float(relative_error(b, a).sqrt()) for a, b in numbers),
            "cosine": min(float(F.cosine_similarity(a, b, 1).mean()) for a, b in numbers),
        }
    return Comparison(len(wanted), **told)


def _classes_compared(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Of the first output with classes the agreement, of all of them KL and difference."""
    expected, actual = pairs[0]
    same = (expected.argmax(1) == actual.argmax(1)).double().mean()
    kl = 0.0
    for one, other in pairs:
        found, wanted = (F.log_softmax(rows, 1) for rows in (other, one))
        kl += float(F.kl_div(found, wanted, log_target=True, reduction="sum")) / len(one)
    difference = max(float((one - other).abs().max()) for one, other in pairs)
    return {"agreement": 100 * float(same), "kl": kl, "difference": difference}


def layer_sqnr(
    folded: nn.Module, student: nn.Module, batches: Iterable[Tensor]
) -> dict[str, float]:
    """Signal-to-quantization-noise ratio of every quantized layer's output, in dB.

    ``10 log10(sum y^2 / sum (y - y')^2)`` over all images; the student's layers see quantized
    inputs, so noise adds up along the network. Infinite where nothing was lost, -300 at least.

    Args:
        folded: float graph the student was made from.
        student: of the same layer paths.
        batches: images (B, C, H, W).

    Returns:
        By layer path, in execution order.

    Raises:
        ModelError: a layer's outputs are not finite; the message names it.
    """
    names = [name for name, module in student.named_modules() if isinstance(module, QUANTIZED)]
    signal = dict.fromkeys(names, 0.0)
    noise = dict.fromkeys(names, 0.0)
    floats: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str, output: Tensor) -> None:
        floats[name].append(output)

    def judge(name: str, output: Tensor) -> None:
        expected = floats[name].pop(0)
        signal[name] += _energy(expected)
        noise[name] += _energy(expected - output)
        if not math.isfinite(signal[name] + noise[name]):
            raise ModelError(
                f"outputs of layer {name!r} are not finite, in the network or in its student: its"
                " numbers leave float32"
            )

    sources = {name: folded.get_submodule(name) for name in names}
    targets = {name: student.get_submodule(name) for name in names}
    with torch.inference_mode(), tap_outputs(sources, keep), tap_outputs(targets, judge):
        for images in in_pieces(batches):
            folded(images)
            student(images)
    return {
        name: math.inf
        if noise[name] == 0
        else 10 * math.log10(max(signal[name] / noise[name], _LEAST_RATIO))
        for name in names
    }


def _energy(values: Tensor) -> float:
    """Sum of squares in float64; the squares too where they leave float32."""
    total = float(values.square().sum(dtype=torch.float64))
    if total == 0 or not math.isfinite(total):
        return float(values.double().square().sum())
    return total
