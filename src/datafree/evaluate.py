"""What was lost: accuracy on labelled data, agreement without labels, noise layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.graph.taps import tap_outputs
from datafree.losses import class_logits
from datafree.progress import Step
from datafree.quant.modules import QUANTIZED

Predictor = Callable[[Tensor], Tensor]
"""Maps normalised images (B, C, H, W) to logits (B, K)."""


@dataclass(frozen=True)
class Accuracy:
    """Top-1 of several predictors on the same labelled images, in percent.

    Attributes:
        top1: by predictor, in the order given.
        images: number of images.
    """

    top1: dict[str, float]
    images: int


@dataclass(frozen=True)
class Comparison:
    """How two predictors differ on the same images.

    Attributes:
        agreement: share of images with the same prediction, in percent; of one logit, its sign.
        kl: mean over images of KL(softmax(first) || softmax(second)), in nats; of one logit that of
            its sigmoids.
        difference: largest absolute difference of two logits.
        images: number of images.
    """

    agreement: float
    kl: float
    difference: float
    images: int


def top1(
    predictors: dict[str, Predictor],
    batches: Iterable[tuple[Tensor, Tensor]],
    step: Step | None = None,
) -> Accuracy:
    """Share of images whose largest logit is the label's; one logit alone says 1 where positive.

    Args:
        predictors: by name; each sees every batch.
        batches: images (B, C, H, W), normalised, and labels (B,).
        step: called with the images done.
    """
    correct = dict.fromkeys(predictors, 0)
    total = 0
    with torch.inference_mode():
        for images, labels in batches:
            for name, predict in predictors.items():
                answers = class_logits(predict(images)).argmax(1)
                correct[name] += int((answers.cpu() == labels.cpu()).sum())
            total += len(labels)
            if step is not None:
                step(len(labels))
    return Accuracy({name: 100 * hits / max(total, 1) for name, hits in correct.items()}, total)


def compare(first: Predictor, second: Predictor, batches: Iterable[Tensor]) -> Comparison:
    """Compare two predictors without labels.

    Args:
        first: the reference, e.g. the teacher.
        second: the predictor judged, e.g. the student.
        batches: images (B, C, H, W), normalised.
    """
    same, total, kl, difference = 0, 0, 0.0, 0.0
    with torch.inference_mode():
        for images in batches:
            expected, actual = (class_logits(f(images).cpu()) for f in (first, second))
            same += int((expected.argmax(1) == actual.argmax(1)).sum())
            divergence = F.kl_div(
                F.log_softmax(actual, 1),
                F.log_softmax(expected, 1),
                log_target=True,
                reduction="sum",
            )
            kl += float(divergence)
            difference = max(difference, float((expected - actual).abs().max()))
            total += len(images)
    return Comparison(100 * same / max(total, 1), kl / max(total, 1), difference, total)


def layer_sqnr(
    folded: nn.Module, student: nn.Module, batches: Iterable[Tensor]
) -> dict[str, float]:
    """Signal-to-quantization-noise ratio of every quantized layer's output, in dB.

    ``10 log10(sum y^2 / sum (y - y')^2)`` over all images; the student's layers see quantized
    inputs, so noise adds up along the network. Infinite where nothing was lost.

    Args:
        folded: float graph the student was made from.
        student: of the same layer paths.
        batches: images (B, C, H, W).

    Returns:
        By layer path, in execution order.
    """
    names = [name for name, module in student.named_modules() if isinstance(module, QUANTIZED)]
    signal = dict.fromkeys(names, 0.0)
    noise = dict.fromkeys(names, 0.0)
    floats: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str, output: Tensor) -> None:
        floats[name].append(output)

    def judge(name: str, output: Tensor) -> None:
        expected = floats[name].pop(0)
        signal[name] += float(expected.square().sum(dtype=torch.float64))
        noise[name] += float((expected - output).square().sum(dtype=torch.float64))

    sources = {name: folded.get_submodule(name) for name in names}
    targets = {name: student.get_submodule(name) for name in names}
    with torch.inference_mode(), tap_outputs(sources, keep), tap_outputs(targets, judge):
        for images in batches:
            folded(images)
            student(images)
    return {
        name: math.inf
        if noise[name] == 0
        else 10 * math.log10(max(signal[name], 1e-30) / noise[name])
        for name in names
    }
