"""What a finished run can be asked beside its top-1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.networks import Network
from datafree.allocation.budget import describe_layers
from datafree.allocation.sensitivity import sensitivities
from datafree.config import InputSpec
from datafree.evaluate import compare, top1
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import weight_bits
from datafree.quant.modules import ActivationQuantizer
from datafree.runs.pipeline import Result
from datafree.tensors import random_numbers


@dataclass(frozen=True)
class Made:
    """A run and the network it was of."""

    result: Result
    network: Network


def divergence(made: Made) -> dict[str, Any]:
    """``kl``: KL(teacher || student) on the test images in nats, their mean."""
    images = (images for images, _ in made.network.batches(made.result.config.limit))
    return {"kl": compare(made.result.teacher, made.result.student, images).kl}


def divergence_on_images(made: Made) -> dict[str, Any]:
    """``kl``: the same on the images the student was calibrated with."""
    images = made.result.images.batches(64)
    return {"kl": compare(made.result.teacher, made.result.student, images).kl}


def harder(made: Made) -> dict[str, Any]:
    """``shifted`` and ``noisy``: top-1 on test images that are harder, nine for each."""
    batches, student = list(made.network.batches()), {"student": made.result.student}
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    labels = labels.repeat(9).split(120)
    return {
        name: top1(student, zip(pictures.split(120), labels, strict=True)).top1["student"]
        for name, pictures in harder_images(images, made.result.spec).items()
    }


def harder_images(images: Tensor, spec: InputSpec) -> dict[str, Tensor]:
    """Harder versions (9 N, C, H, W) of normalised `images`.

    `shifted` has every image at the nine places at most one pixel away, black where it came from;
    `noisy` has it with Gaussian noise of deviation 0.2, pixels kept between 0 and 1.
    """
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
    pixels = images * std + mean
    side = pixels.shape[-1]
    padded = F.pad(pixels, (1, 1, 1, 1))
    shifted = [padded[..., y : y + side, x : x + side] for y in range(3) for x in range(3)]
    noise = torch.randn(9, *pixels.shape, generator=random_numbers(0, "harder"))
    noisy = (pixels + 0.2 * noise).clamp(0, 1).flatten(0, 1)
    return {"shifted": (torch.cat(shifted) - mean) / std, "noisy": (noisy - mean) / std}


def image_digest(made: Made) -> dict[str, Any]:
    """``digest`` of the images: equal sets have equal ones."""
    return {"digest": made.result.images.digest()[:16]}


def undecided(made: Made) -> dict[str, Any]:
    """``undecided``: percent of the roundings that were so when learning ended."""
    units = made.result.metrics["reconstruction"]
    share = sum(unit["undecided"] for unit in units) / sum(unit["rounded"] for unit in units)
    return {"undecided": 100 * share}


def training(made: Made) -> dict[str, Any]:
    """Agreement and step of the student that was kept, seconds of the phases."""
    told: Mapping[str, Any] = made.result.metrics["training"]
    judged = told["distillation"] if "distillation" in told else told["fine-tuning"]
    found = {"agreement": judged["best"]["agreement"], "best_step": judged["best"]["step"]}
    names = {"warm-up": "warmup_seconds", "fine-tuning": "tuning_seconds"}
    return found | {name: told[phase]["seconds"] for phase, name in names.items() if phase in told}


def weights(made: Made) -> dict[str, Any]:
    """``bytes`` of all weights, ``layer_bits`` in execution order, ``predicted`` loss in nats.

    The prediction is the sum of the sensitivities of the layers whose bits are free.
    """
    config, images = made.result.config, made.result.images.images
    folded = fold_batch_norms(made.result.teacher)
    bits = weight_bits(folded, config.scheme)
    layers = describe_layers(folded, config.scheme, made.result.spec.shape)
    size = sum(layer.elements * bits.get(layer.path, layer.bits) for layer in layers) / 8
    allocation = made.result.metrics.get("allocation")
    if allocation is not None:
        predicted = allocation["sensitivity"]
    else:
        losses = sensitivities(folded, config.scheme, images, (config.scheme.weights,))
        free = (layer.path for layer in layers if layer.free)
        predicted = sum(losses[path][config.scheme.weights] for path in free)
    chosen = "" if allocation is None else "".join(str(width) for width in bits.values())
    return {"bytes": size, "layer_bits": chosen, "predicted": predicted}


def input_ranges(made: Made) -> dict[str, Any]:
    """``ranges``: length of the range of every tensor that enters a layer, by quantizer."""
    return {
        "ranges": {
            path: float(module.scale) * (module.grid.qmax - module.grid.qmin)
            for path, module in made.result.student.named_modules()
            if isinstance(module, ActivationQuantizer)
        }
    }


MEASURES: dict[str, Callable[[Made], dict[str, Any]]] = {
    function.__name__: function
    for function in (
        divergence, divergence_on_images, harder, image_digest, weights, input_ranges,
    )
}  # fmt: skip
"""By the name that a table calls."""
