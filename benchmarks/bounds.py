"""What students are measured by beside top-1, and the best that calibration alone gives."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from common import load, load_digits, test_batches
from torch import Tensor, fx
from torch.nn import functional

from datafree.calibrators.base import Calibrator, calibrate
from datafree.cli.options import parse_bits
from datafree.config import InputSpec, ModelConfig, RunConfig, Scheme, build
from datafree.corrections.analytic_bias import correct_biases_analytically
from datafree.corrections.bias_correction import correct_biases
from datafree.corrections.prepare import prepare
from datafree.evaluate import compare, top1
from datafree.graph.insert import insert_quantizers
from datafree.models import Teacher
from datafree.registry import load as load_method
from datafree.synthesis.dsg import DSG
from datafree.tensors import random_numbers

ALONE = "calibration"
CORRECTED = "calibration, biases corrected"
CALIBRATORS = ("mse", "minmax", "percentile", "bounded_mse", "aciq")
Batches = list[tuple[Tensor, Tensor]]
MEASURES = {
    "kl": "KL divergence of the student from its teacher on the test images, in nats",
    "shifted": "Top-1 on the test images shifted by at most a pixel, all nine places",
    "noisy": "Top-1 on the test images with noise of deviation 0.2, nine draws",
}
"""What a cell may have beside top-1, and its head in the tables."""


@dataclass(frozen=True)
class Network:
    """A teacher, its graph, and what its students are tested on.

    Attributes:
        batches: test images and labels.
        harder: further test images, by the name of their measure.
    """

    teacher: Teacher
    graph: fx.GraphModule
    batches: Batches
    harder: dict[str, Batches]


def harder(spec: InputSpec, batches: Batches) -> dict[str, Batches]:
    """Test images on which networks that are perfect on `batches` still err, nine for each.

    `shifted` has every image at the nine places at most one pixel away, black where it came from;
    `noisy` has it with Gaussian noise of deviation 0.2, pixels kept between 0 and 1.
    """
    images = torch.cat([batch for batch, _ in batches])
    labels = torch.cat([batch for _, batch in batches]).repeat(9).split(120)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
    pixels = images * std + mean
    side = pixels.shape[-1]
    padded = functional.pad(pixels, (1, 1, 1, 1))
    shifted = [padded[..., y : y + side, x : x + side] for y in range(3) for x in range(3)]
    noise = torch.randn(9, *pixels.shape, generator=random_numbers(0, "harder"))
    noisy = (pixels + 0.2 * noise).clamp(0, 1).flatten(0, 1)
    return {
        name: list(zip(((made - mean) / std).split(120), labels, strict=True))
        for name, made in (("shifted", torch.cat(shifted)), ("noisy", noisy))
    }


def network(name: str) -> Network:
    """The built-in digits network, or one of the shared data."""
    if name != "digits_resnet8":
        teacher, graph = load(name)
        return Network(teacher, graph, test_batches(teacher.spec), {})
    teacher, graph, batches = load_digits()
    return Network(teacher, graph, batches, harder(teacher.spec, batches))


def tested(net: Network, student: fx.GraphModule) -> dict[str, float]:
    """Top-1 of `student` and what else is measured for this network.

    ``kl`` is KL(teacher || student) of the classes, in nats, the mean over the test images.
    """
    found = {"top1": top1({"student": student}, net.batches).top1["student"]}
    found["kl"] = compare(net.graph, student, (images for images, _ in net.batches)).kl
    for name, batches in net.harder.items():
        found[name] = top1({"student": student}, batches).top1["student"]
    return found


def scheme_of(bits: str, args: argparse.Namespace, weight_range: str = "mse") -> Scheme:
    """The scheme called ``W3A3``."""
    values = {
        **parse_bits(bits), "policy": args.policy, "placement": "after_activation",
        "weight_granularity": args.granularity, "weight_range": weight_range,
    }  # fmt: skip
    return build(Scheme, values, bits)


def candidates(
    net: Network, bits: str, args: argparse.Namespace, seed: int
) -> Iterator[tuple[str, str, fx.GraphModule]]:
    """Students of all calibrators and weight ranges: their row, what they are, themselves.

    They are set on 64 images of DSG, which biases are corrected on as well or, without them, from
    batch norms; with and without equalization before.
    """
    images = DSG(iterations=200).generate(net.graph, net.teacher.spec, 64, seed=seed).images
    for before in ("", ", equalized"):
        run = RunConfig(model=ModelConfig(source="any"), equalize=bool(before))
        base, statistics = prepare(net.graph, run)
        base = base.to(memory_format=torch.channels_last)  # pyright: ignore
        for name in args.calibrators:
            rule = load_method("datafree.calibrators", name, Calibrator)()
            for weight_range in ("minmax", "mse"):
                student = insert_quantizers(base, scheme_of(bits, args, weight_range))
                calibrate(student, images.split(64), rule)
                whose = f"{name}, {weight_range} weights{before}"
                if not before:
                    yield ALONE, whose, student
                other = copy.deepcopy(student)
                correct_biases_analytically(base, other, statistics, net.teacher.spec)
                yield CORRECTED, f"{whose}, analytic", other
                correct_biases(base, student, images)
                yield CORRECTED, f"{whose}, empirical", student


def bounds(net: Network, bits: str, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """By row and measure the best of `candidates`, and whose it is; the teacher's measures."""
    found: dict[str, dict[str, dict[str, float]]] = {ALONE: {}, CORRECTED: {}}
    for row, whose, student in candidates(net, bits, args, seed):
        found[row][whose] = tested(net, student)
    teacher = tested(net, net.graph)
    best: dict[str, Any] = {}
    for row, students in found.items():
        best[row] = {"teacher": teacher}
        for measure in teacher:
            values = {whose: values[measure] for whose, values in students.items()}
            whose = (min if measure == "kl" else max)(values, key=lambda name: values[name])
            best[row] |= {measure: values[whose], f"whose_{measure}": whose}
    return best
