"""Tables 5, 6 and 7 of the DSG paper on one network: what its images are worth to each quantizer.

    python benchmarks/dsg_tables.py --seeds 0 1

Policy `all`, activations quantized after activation functions. Table 5: affine min-max weights per
channel, activation ranges of four calibrators. Table 6: DFQ, that is cross-layer equalization, one
min-max grid per weight tensor, min-max activations, empirical bias correction. Table 7: AdaRound on
weight ranges of least error; where activations are quantized, their ranges too. Its schedule is
short, so its rate is ten times the method's: at 0.001 a variable moves by 0.2 at most in 200 steps.
Each cell goes to a JSON-lines record when it is measured; a second call goes on where the first
stopped.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from typing import Any

from common import (
    RESULTS,
    ImageSet,
    Record,
    environment,
    fast_folded,
    load,
    real_images,
    steps_of,
    test_batches,
)
from image_facts import facts
from torch import Tensor, fx

from datafree.calibrators.base import Calibrator, calibrate
from datafree.calibrators.minmax import MinMax
from datafree.calibrators.mse import MSE
from datafree.config import Scheme
from datafree.corrections.bias_correction import correct_biases
from datafree.corrections.equalize import equalize
from datafree.evaluate import top1
from datafree.files import write_text
from datafree.graph.insert import insert_quantizers
from datafree.reconstruction.adaround import AdaRound
from datafree.registry import load as load_method

SOURCES = ("noise", "zeroq", "dsg", "dsg+label", "dsg+label+prior", "real")
CALIBRATORS = ("minmax", "percentile", "ema", "mse")
FACTS = ("moments", "unseen", "range", "confidence")
REFERENCE = (512, 1_000)
"""Number and seed of the real images that `FACTS` compare with."""
KEYS = ("source", "quantizer", "bits", "seed", "images", "synthesis", "iterations")


def cells(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Quantizers and bits of the three tables."""
    return [
        *((calibrator, bits) for bits in args.table5 for calibrator in CALIBRATORS),
        *(("dfq", bits) for bits in args.table6),
        *(("adaround", bits) for bits in args.table7),
    ]


def scheme_of(bits: str, **more: Any) -> Scheme:
    """The papers' scheme at ``W4A32``."""
    weights, _, activations = bits.removeprefix("W").partition("A")
    return Scheme(
        weights=int(weights), activations=int(activations), placement="after_activation", **more
    )


def quantized(
    folded: fx.GraphModule, images: Tensor, quantizer: str, bits: str, learned: AdaRound, seed: int
) -> fx.GraphModule:
    """The student that `quantizer` makes with `images`."""
    if quantizer == "dfq":
        folded = equalize(folded)
        student = insert_quantizers(folded, scheme_of(bits, weight_granularity="tensor"))
        calibrate(student, [images], MinMax())
        correct_biases(folded, student, images)
    elif quantizer == "adaround":
        student = insert_quantizers(folded, scheme_of(bits, weight_range="mse"))
        calibrate(student, [images], MSE(power=2.4), observe="float")
        learned.reconstruct(folded, student, images, seed=seed)
    else:
        student = insert_quantizers(folded, scheme_of(bits))
        calibrator = load_method("datafree.calibrators", quantizer, Calibrator)()
        calibrate(student, [images], calibrator)
    return student


def measure(args: argparse.Namespace, record: Record) -> None:
    """Fill every missing cell of the record, seed by seed."""
    teacher, graph = load(args.network)
    folded = fast_folded(graph)
    batches = test_batches(teacher.spec, limit=args.limit)
    learned = AdaRound(iterations=args.iterations, rounding_lr=args.rounding_lr, lr_factor=1)
    real = real_images(teacher.spec, *REFERENCE).images
    for seed in args.seeds:
        for source in args.sources:
            kept = ImageSet(args.network, source, args.images, args.synthesis_iterations, seed)
            images = kept.get(teacher, graph)
            cell = where(args, source, "", "") | {"seed": seed}
            if not record.has(**cell):
                record.add(**cell, **facts(folded, images.images, real))
            for quantizer, bits in cells(args):
                cell = where(args, source, quantizer, bits) | {"seed": seed}
                if record.has(**cell):
                    continue
                started = time.perf_counter()
                student = quantized(folded, images.images, quantizer, bits, learned, seed)
                seconds = time.perf_counter() - started
                found = top1({"student": student}, batches)
                record.add(
                    **cell, top1=found.top1["student"], test_images=found.images,
                    seconds=round(seconds, 1), rounding_lr=args.rounding_lr,
                    digest=images.digest()[:16],
                    command=shlex.join(["python", *sys.argv]), environment=environment(),
                )  # fmt: skip
                print(
                    f"{bits} {source} {quantizer} seed {seed}: {found.top1['student']:.2f}"
                    f" ({seconds:.0f} s)",
                    flush=True,
                )


def where(args: argparse.Namespace, source: str, quantizer: str, bits: str) -> dict[str, Any]:
    """What identifies a cell, up to the seed."""
    return {
        "source": source, "quantizer": quantizer, "bits": bits, "images": args.images,
        "synthesis": steps_of(source, args.synthesis_iterations),
        "iterations": args.iterations if quantizer == "adaround" else 0,
    }  # fmt: skip


def table(args: argparse.Namespace, record: Record) -> str:
    """The record as Markdown: one table for each of the paper's."""
    last = next(cell for cell in reversed(record.cells) if "environment" in cell)
    env = last["environment"]
    commands = dict.fromkeys(f"`{cell['command']}`" for cell in record.cells if "command" in cell)
    lines = [
        f"# {args.network}: Tables 5, 6 and 7 of the DSG paper",
        "",
        f"Top-1 on {last['test_images']} images, seed {args.seeds[0]}, or mean ±"
        f" standard deviation where there are several of {args.seeds}. {args.images} images a set,"
        f" {args.synthesis_iterations} synthesis steps,"
        f" AdaRound with {args.iterations} steps of {args.rounding_lr} per layer;"
        " policy `all`, activations after"
        " activation functions. `label`: cross-entropy to balanced random classes, weight 1;"
        " `prior`: total variation and image norm, 0.01 each.",
        "",
        f"{env['cpu']}, {env['cores']} cores, {env['threads']} thread(s), torch {env['torch']},"
        f" {env['date']}. Commands: {', '.join(commands)}",
    ]
    for bits in args.table5:
        lines += _block(args, record, f"Table 5, {bits}", [(c, bits, c) for c in CALIBRATORS])
    lines += _block(args, record, "Table 6: DFQ", [("dfq", b, b) for b in args.table6])
    lines += _block(args, record, "Table 7: AdaRound", [("adaround", b, b) for b in args.table7])
    lines += [
        "",
        "## The images",
        "",
        "Relative distance of the second moments of layer inputs from those of"
        f" {REFERENCE[0]} other real images; mean energy of real inputs where these have 1; largest"
        " activations over those of as many real ones; the float network's confidence.",
        "",
        "| images | " + " | ".join(FACTS) + " |",
        "|---" * (len(FACTS) + 1) + "|",
    ]
    for source in args.sources:
        values = [record.mean_spread(fact, **where(args, source, "", "")) for fact in FACTS]
        lines.append(f"| {source} | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def _block(
    args: argparse.Namespace, record: Record, title: str, columns: list[tuple[str, str, str]]
) -> list[str]:
    """One table: a row per source; columns are quantizer, bits and heading."""
    lines = ["", f"## {title}", "", "| images | " + " | ".join(h for _, _, h in columns) + " |"]
    lines += ["|---" * (len(columns) + 1) + "|"]
    for source in args.sources:
        values = [
            record.mean_spread("top1", **where(args, source, quantizer, bits))
            for quantizer, bits, _ in columns
        ]
        lines.append(f"| {source} | " + " | ".join(values) + " |")
    return lines


def main() -> None:
    """Parse the command line, measure, write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet20_cifar10jpeg")
    parser.add_argument("--table5", nargs="+", default=["W4A4", "W3A3"], metavar="BITS")
    parser.add_argument("--table6", nargs="+", default=["W6A6", "W4A4"], metavar="BITS")
    parser.add_argument("--table7", nargs="+", default=["W3A32", "W2A32"], metavar="BITS")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--sources", nargs="+", default=list(SOURCES))
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--synthesis-iterations", type=int, default=500)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--rounding-lr", type=float, default=0.01)
    parser.add_argument("--limit", type=int, default=None)
    args = parser.parse_args()
    record = Record(RESULTS / f"dsg_tables_{args.network}.jsonl", KEYS)
    measure(args, record)
    write_text(RESULTS / f"dsg_tables_{args.network}.md", table(args, record))


if __name__ == "__main__":
    main()
