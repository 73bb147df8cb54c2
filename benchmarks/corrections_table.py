"""Top-1 of DFQ step by step: what equalization and bias correction do, with and without images.

    python benchmarks/corrections_table.py --network mobilenet_v1_075_224_imagenet --bits W8A8

One weight grid per tensor or per channel; activation ranges from batch norms (no images) or of
least error on images of DSG. ReLU6 is taken for ReLU where layers are equalized; the loss that
comes of it is in the numbers. Every cell goes to a JSON-lines record; a second call goes on where
the first stopped.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common import (
    RESULTS,
    ImageSet,
    Record,
    environment,
    load,
    test_batches,
)
from torch import fx

from datafree.calibrators.base import calibrate
from datafree.calibrators.bn_statistics import BNStatistics
from datafree.calibrators.mse import MSE
from datafree.config import InputSpec, ModelConfig, RunConfig, Scheme, merge
from datafree.corrections.analytic_bias import correct_biases_analytically
from datafree.corrections.bias_correction import correct_biases
from datafree.corrections.prepare import prepare
from datafree.evaluate import top1
from datafree.files import write_text
from datafree.graph.insert import insert_quantizers
from datafree.images import SyntheticSet

_EQUALIZE: dict[str, Any] = {"equalize": True, "replace_relu6": True}
STEPS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "analytic": {"bias_correction": "analytic"},
    "empirical": {"bias_correction": "empirical"},
    "equalize": _EQUALIZE,
    "equalize, analytic": {**_EQUALIZE, "bias_correction": "analytic"},
    "equalize, absorb, analytic (DFQ)": {
        **_EQUALIZE,
        "absorb_biases": True,
        "bias_correction": "analytic",
    },
    "equalize, empirical": {**_EQUALIZE, "bias_correction": "empirical"},
}
GRIDS = ("tensor", "channel")
RANGES = ("batch norms", "dsg")
KEYS = ("step", "grid", "ranges", "bits", "seed", "images", "synthesis")


def corrected(
    graph: fx.GraphModule, spec: InputSpec, config: RunConfig, images: SyntheticSet | None
) -> fx.GraphModule:
    """The student of `config`, its activation ranges from `images` or from batch norms."""
    folded, statistics = prepare(graph, config)
    folded = folded.to(memory_format=torch.channels_last)  # pyright: ignore
    student = insert_quantizers(folded, config.scheme)
    if images is None:
        BNStatistics().set_ranges(student, folded, statistics, spec)
    else:
        calibrate(student, images.images.split(32), MSE())
    if config.bias_correction == "analytic":
        correct_biases_analytically(folded, student, statistics, spec)
    elif config.bias_correction == "empirical":
        assert images is not None
        correct_biases(folded, student, images.images)
    return student


def measure(args: argparse.Namespace, record: Record) -> None:
    """Fill every missing cell of the record."""
    teacher, graph = load(args.network)
    wanted = ImageSet(args.network, "dsg", args.images, args.synthesis_iterations, args.seed)
    made = wanted.get(teacher, graph)
    batches = test_batches(teacher.spec, args.eval_batch, args.limit)
    for bits in args.bits:
        weights, _, activations = bits.removeprefix("W").partition("A")
        for grid in args.grids:
            scheme = Scheme(
                weights=int(weights), activations=int(activations), weight_granularity=grid
            )
            for step, changes in STEPS.items():
                for ranges in RANGES:
                    cell = {
                        "step": step, "grid": grid, "ranges": ranges, "bits": bits,
                        "seed": args.seed, "images": args.images,
                        "synthesis": args.synthesis_iterations,
                    }  # fmt: skip
                    imageless = ranges == "batch norms"
                    if record.has(**cell) or (imageless and "empirical" in step):
                        continue
                    base = {"model": ModelConfig(source=args.network), "scheme": scheme}
                    config = RunConfig(**merge(base, changes))
                    student = corrected(graph, teacher.spec, config, None if imageless else made)
                    found = top1({"student": student}, batches)
                    record.add(
                        **cell, top1=found.top1["student"], test_images=found.images,
                        environment=environment(),
                    )  # fmt: skip
                    print(f"{bits} {grid} {step} {ranges}: {found.top1['student']:.2f}", flush=True)


def table(args: argparse.Namespace, record: Record) -> str:
    """The record as Markdown: one block per bit width."""
    env = record.cells[-1]["environment"]
    lines = [
        f"# {args.network}: DFQ step by step",
        "",
        f"Top-1 on {record.cells[-1]['test_images']} images, policy `all`, every layer input,"
        f" min-max weight ranges. Images: {args.images} of dsg, {args.synthesis_iterations} steps,"
        f" seed {args.seed}.",
        "",
        f"{env['cpu']}, {env['cores']} cores, {env['threads']} thread(s), torch {env['torch']},"
        f" {env['date']}. Command: `python benchmarks/corrections_table.py --network {args.network}"
        f" --bits {' '.join(args.bits)} --grids {' '.join(args.grids)} --images {args.images}"
        f" --synthesis-iterations {args.synthesis_iterations} --seed {args.seed}`",
    ]
    for bits in args.bits:
        columns = [(grid, ranges) for grid in args.grids for ranges in RANGES]
        heads = [f"per {grid}, ranges from {ranges}" for grid, ranges in columns]
        lines += ["", f"## {bits}", "", "| corrections | " + " | ".join(heads) + " |"]
        lines += ["|---" * (len(columns) + 1) + "|"]
        for step in STEPS:
            values = [
                record.mean_spread(
                    "top1", step=step, grid=grid, ranges=ranges, bits=bits, seed=args.seed,
                    images=args.images, synthesis=args.synthesis_iterations,
                )
                for grid, ranges in columns
            ]  # fmt: skip
            lines.append(f"| {step} | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the command line, measure, write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet20_cifar10jpeg")
    parser.add_argument("--bits", nargs="+", default=["W8A8", "W4A8", "W4A4"])
    parser.add_argument("--grids", nargs="+", default=list(GRIDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--synthesis-iterations", type=int, default=100)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--eval-batch", type=int, default=250)
    args = parser.parse_args()
    record = Record(RESULTS / f"corrections_{args.network}.jsonl", KEYS)
    measure(args, record)
    write_text(RESULTS / f"corrections_{args.network}.md", table(args, record))


if __name__ == "__main__":
    main()
