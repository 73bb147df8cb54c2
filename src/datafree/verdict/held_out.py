"""Images to compare teacher and student on: cheap, of all classes, and as hard as real ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from datafree.config import InputSpec
from datafree.graph.normalisation import behind_normalisation
from datafree.images import SyntheticSet, batch_size, device_batches, in_pieces
from datafree.losses import first_logits
from datafree.progress import Progress, silent
from datafree.synthesis._pixels import DEVIATION, GREY
from datafree.synthesis.noise import Noise
from datafree.synthesis.probe import Probe
from datafree.tensors import device_of
from datafree.tensors.memory import Portion

DREAMT = 48
"""Images that are optimised; all others are mixtures of two of them."""
_POOL = 1.5
"""Mixtures from which one image is chosen."""


def held_out_images(
    graph: fx.GraphModule,
    spec: InputSpec,
    count: int,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> SyntheticSet:
    """Images that no stage of a run has seen.

    Dreamt images are easier than real ones: the teacher is sure of each. Mixed in pairs, by shares
    from none to even ones, it is about as unsure as on its test images. Of more mixtures than are
    wanted those are kept that spread the teacher's answers over all classes. Networks that take no
    image get Gaussian noise.

    Args:
        graph: canonical graph of the teacher, with its batch norms.
        spec: its input.
        count: number of images, at least 1.
        seed: of all random numbers; another than that of the run's own images.
        progress: shown meanwhile.
    """
    inner, normalised = behind_normalisation(graph, spec)
    if not Probe.fits(inner):
        return Noise().generate(inner, normalised, count, seed=seed, progress=progress).fitted(spec)
    dreamt = Probe().generate(inner, normalised, min(count, DREAMT), seed=seed, progress=progress)
    random = torch.Generator().manual_seed(seed)
    pool = count if not spec.labelled else math.ceil(_POOL * count)
    images = mixtures(dreamt, pool, random)
    told = {"method": "mixtures", "of": len(dreamt), "by": Probe().describe(), "seed": seed}
    mixed = SyntheticSet(images, normalised, metadata=told).fitted(spec)
    if not spec.labelled:
        return mixed
    answers = _answers(graph, mixed)
    kept = balanced(answers, count)
    return SyntheticSet(mixed.images[kept], spec, answers[kept], {**told, "count": count})


def mixtures(images: SyntheticSet, count: int, random: torch.Generator) -> Tensor:
    """(count, C, H, W): ``cos a x + sin a y`` around grey of random pairs, a from 0 to 45 degrees.

    The factors keep the contrast; pixels are cut at black and white.

    Args:
        images: to mix.
        count: mixtures wanted.
        random: source of the random numbers, on the CPU.
    """
    spec = images.spec
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
    contrast = (images.images * std + mean - GREY) / DEVIATION
    first, second = torch.randint(len(images), (2, count), generator=random)
    angle = torch.rand(count, 1, 1, 1, generator=random) * math.pi / 4
    mixed = torch.cos(angle) * contrast[first] + torch.sin(angle) * contrast[second]
    return ((GREY + DEVIATION * mixed).clamp(0, 1) - mean) / std


def balanced(answers: Tensor, count: int) -> Tensor:
    """Places of `count` images whose answers are spread over the classes as evenly as can be.

    Each class gives its first image, then each its second, and so on.

    Args:
        answers: (N,) class of every image, N at least `count`.
        count: images wanted.
    """
    order = torch.argsort(answers, stable=True)
    classes = answers[order]
    starts = torch.searchsorted(classes, classes)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order)) - starts
    return torch.argsort(ranks, stable=True)[:count].sort().values


@torch.inference_mode()
def _answers(graph: fx.GraphModule, images: SyntheticSet) -> Tensor:
    """(N,) what the network says of them."""

    def answers(size: int) -> Tensor:
        batches = in_pieces(device_batches(images, device_of(graph), size))
        rows = [first_logits(graph(x), images.spec.outputs).argmax(1).cpu() for x in batches]
        return torch.cat(rows)

    return Portion("held-out images", batch_size(images.spec)).fit(answers)
