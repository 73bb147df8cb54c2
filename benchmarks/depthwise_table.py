"""Top-1 of a depthwise ImageNet network: without images, with synthetic ones, with real ones.

    python benchmarks/depthwise_table.py --bits W8A8 W4A8 W4A4

Policy `brecq`, activations quantized at every layer input, one weight grid per channel. The budget
is a processor's, and it is in the head of the table. Every cell goes to a JSON-lines record as soon
as it is measured; a second call goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from common import (
    RESULTS,
    ImageSet,
    Record,
    calibrated,
    environment,
    load,
    reconstructor,
    scheme_of,
    test_batches,
)
from corrections_table import STEPS, corrected
from torch import Tensor, fx

from datafree.config import InputSpec, ModelConfig, RunConfig, merge
from datafree.corrections.analytic_bias import correct_biases_analytically
from datafree.corrections.prepare import prepare
from datafree.evaluate import top1
from datafree.files import write_text
from datafree.reconstruction.base import Reconstructor

KEYS = ("row", "bits", "seed", "images", "synthesis", "iterations", "lr_factor")
_GENIE_BATCH = 20  # generator and network need 3.5 GB for as many images of 224 x 224 pixels


@dataclass(frozen=True)
class Row:
    """One way to quantize.

    Attributes:
        source: of the images; None for none at all, which is DFQ.
        method: that learns the rounding; None rounds to the nearest.
    """

    source: str | None
    method: str | None = None


CORRECTED = ", biases corrected"
"""What follows the name of a row whose biases were corrected from batch norms in the end."""
ROWS = {
    "dfq, no images": Row(None),
    "zeroq + mse": Row("zeroq"),
    "dsg + adaround": Row("dsg", "adaround"),
    "genie + genie_m": Row("genie", "genie_m"),
    "real + mse": Row("real"),
    "real + adaround": Row("real", "adaround"),
    "real + genie_m": Row("real", "genie_m"),
}


def images_of(row: Row, teacher: Any, graph: fx.GraphModule, args: argparse.Namespace) -> Tensor:
    """The images of `row`, at the budget of `args`."""
    assert row.source is not None
    genie = row.source == "genie"
    steps = args.genie_iterations if genie else args.synthesis_iterations
    batch = {"batch": _GENIE_BATCH} if genie else {}
    wanted = ImageSet(args.network, row.source, args.images, steps, args.seed, **batch)
    return wanted.get(teacher, graph).images


def students_of(
    name: str, bits: str, images: Tensor | None, graph: fx.GraphModule, spec: InputSpec, args: Any
) -> Iterator[tuple[str, fx.GraphModule]]:
    """The network quantized as row `name` says, then with corrected biases; names of both rows."""
    base = {"model": ModelConfig(source=args.network), "scheme": scheme_of(bits)}
    if images is None:
        config = RunConfig(**merge(base, STEPS["equalize, absorb, analytic (DFQ)"]))
        yield name, corrected(graph, spec, config, None)
        return
    folded, statistics = prepare(graph, RunConfig(**base))
    folded = folded.to(memory_format=torch.channels_last)  # pyright: ignore
    method = method_of(ROWS[name], args)
    student = calibrated(folded, bits, images, 32, learned=method is not None)
    if method is not None:
        method.reconstruct(folded, student, images, seed=args.seed)
    yield name, student
    correct_biases_analytically(folded, student, statistics, spec)
    yield name + CORRECTED, student


def method_of(row: Row, args: argparse.Namespace) -> Reconstructor | None:
    """What learns the rounding of `row`, at the budget of `args`."""
    if row.method is None:
        return None
    return reconstructor(
        row.method, iterations=args.iterations, batch_size=args.batch, lr_factor=args.lr_factor
    )


def measure(args: argparse.Namespace, record: Record) -> None:
    """Fill every missing cell of the record."""
    teacher, graph = load(args.network)
    batches = test_batches(teacher.spec, args.eval_batch, args.limit)
    for bits in args.bits:
        for name in args.rows:
            row = ROWS[name]
            variants = [name] if row.source is None else [name, name + CORRECTED]
            if all(record.has(**cell_of(row, variant, bits, args)) for variant in variants):
                continue
            images = None if row.source is None else images_of(row, teacher, graph, args)
            started = time.perf_counter()
            for variant, student in students_of(name, bits, images, graph, teacher.spec, args):
                cell = cell_of(row, variant, bits, args)
                if record.has(**cell):
                    continue
                seconds = time.perf_counter() - started
                found = top1({"student": student}, batches)
                record.add(
                    **cell, seconds=seconds, top1=found.top1["student"],
                    test_images=found.images, environment=environment(),
                )  # fmt: skip
                print(f"{bits} {variant}: {found.top1['student']:.2f}, {seconds:.0f} s", flush=True)


def cell_of(row: Row, name: str, bits: str, args: argparse.Namespace) -> dict[str, Any]:
    """What identifies a cell of `row`, called `name`: its budget, as far as the row spends it."""
    steps = args.genie_iterations if row.source == "genie" else args.synthesis_iterations
    method = method_of(row, args)
    return {
        "row": name, "bits": bits, "seed": args.seed,
        "images": args.images if row.source else 0,
        "synthesis": 0 if row.source in (None, "real") else steps,
        "iterations": args.iterations if row.method else 0,
        "lr_factor": method.factor(args.iterations) if method else 0,
    }  # fmt: skip


def table(args: argparse.Namespace, record: Record) -> str:
    """The record as Markdown."""
    env = record.cells[-1]["environment"]
    own = "" if args.lr_factor is None else f" --lr-factor {args.lr_factor:g}"
    lines = [
        f"# {args.network}: without images, with synthetic and with real ones",
        "",
        f"Top-1 on {record.cells[-1]['test_images']} images, seed {args.seed}, policy `brecq`,"
        " every layer input, one weight grid per channel.",
        "",
        f"Budget: {args.images} images a set, {args.synthesis_iterations} synthesis steps"
        f" ({args.genie_iterations} for genie, in batches of {_GENIE_BATCH}), {args.iterations}"
        f" steps of {args.batch} images per unit of learned rounding (layer for adaround, block for"
        " genie_m), the rounding at so many times the papers' rate as the row says, step sizes at"
        " 10 times theirs (genie_m at 10 x: at the papers').",
        "",
        f"{env['cpu']}, {env['cores']} cores, {env['threads']} thread(s), torch {env['torch']},"
        f" {env['date']}. Command: `python benchmarks/depthwise_table.py --network {args.network}"
        f" --bits {' '.join(args.bits)} --images {args.images} --synthesis-iterations"
        f" {args.synthesis_iterations} --genie-iterations {args.genie_iterations} --iterations"
        f" {args.iterations} --batch {args.batch}{own} --seed {args.seed}`",
        "",
        "| | " + " | ".join(args.bits) + " |",
        "|---" * (len(args.bits) + 1) + "|",
    ]
    for name in args.rows:
        for variant in (name, name + CORRECTED):
            found = {c["lr_factor"] for c in record.cells if c["row"] == variant}
            for factor in sorted(found):
                cells = [cell_of(ROWS[name], variant, bits, args) for bits in args.bits]
                values = [
                    record.mean_spread("top1", **(cell | {"lr_factor": factor})) for cell in cells
                ]
                rate = f", {factor:g} x" if factor else ""
                if any(value != "-" for value in values):
                    lines.append(f"| {variant}{rate} | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the command line, measure, write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="mobilenet_v1_075_224_imagenet")
    parser.add_argument("--bits", nargs="+", default=["W8A8", "W4A8", "W4A4"])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--synthesis-iterations", type=int, default=500)
    parser.add_argument("--genie-iterations", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr-factor", type=float, default=None, help="on rates; default: by steps")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--eval-batch", type=int, default=100)
    parser.add_argument("--table-only", action="store_true", help="measure nothing")
    args = parser.parse_args()
    record = Record(RESULTS / f"depthwise_{args.network}.jsonl", KEYS)
    if not args.table_only:
        measure(args, record)
    write_text(RESULTS / f"depthwise_{args.network}.md", table(args, record))


if __name__ == "__main__":
    main()
