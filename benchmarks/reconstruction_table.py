"""Top-1 of images x reconstructions x bits: does learned rounding work without data?

    python benchmarks/reconstruction_table.py --bits W3A3 W2A4 --iterations 1000 --images 256

Policy `brecq`, activations quantized at every layer input, weight ranges and activation ranges of
least error to the power 2.4. Every cell goes to a JSON-lines record as soon as it is measured; a
second call goes on where the first stopped. The table is written beside the record.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any

from common import (
    RESULTS,
    ImageSet,
    Record,
    calibrated,
    environment,
    fast_folded,
    load,
    reconstructor,
    steps_of,
    test_batches,
)
from torch import fx

from datafree.evaluate import top1
from datafree.files import write_text
from datafree.images import SyntheticSet
from datafree.reconstruction.base import Reconstructor

SOURCES = ["noise", "zeroq", "dsg", "genie", "sadag", "real"]
METHODS = ("nearest", "adaround", "qdrop", "genie_m")
KEYS = (
    "source", "method", "bits", "seed", "image_seed", "images", "synthesis", "iterations",
    "lr_factor",
)  # fmt: skip


def reconstructed(
    name: str,
    folded: fx.GraphModule,
    student: fx.GraphModule,
    images: SyntheticSet,
    args: Any,
    checkpoint: Path | None = None,
) -> dict[str, float]:
    """Let `student` learn; seconds per 1,000 steps and the process's peak memory so far.

    `name` may end in options that are not the default: ``genie_m+steps_below=8``. A call that goes
    on from `checkpoint` measures nothing: part of the work was done before.
    """
    method = _method(name, args)
    if method is None:
        return {}
    resumed = checkpoint is not None and checkpoint.exists()
    started = time.perf_counter()
    outcomes = method.reconstruct(
        folded, student, images.images, seed=args.seed, checkpoint=checkpoint
    )
    seconds = time.perf_counter() - started
    if resumed:
        return {}
    return {
        "seconds": seconds,
        "seconds_per_1000": 1000 * seconds / (args.iterations * len(outcomes)),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def _method(name: str, args: Any) -> Reconstructor | None:
    if name.startswith("nearest"):
        return None
    stem, *options = name.split("+")
    chosen = {k: float(v) for k, _, v in (option.partition("=") for option in options)}
    given = {"iterations": args.iterations, "lr_factor": args.lr_factor, **chosen}
    return reconstructor(stem, **given)


def learning(name: str, args: Any) -> dict[str, float]:
    """Steps and the factor on all rates of the method called `name`; 0 where nothing is learned."""
    method = _method(name, args)
    if method is None:
        return {"iterations": 0, "lr_factor": 0}
    return {"iterations": args.iterations, "lr_factor": method.factor(args.iterations)}


def measure(args: argparse.Namespace, record: Record) -> None:
    """Fill every missing cell of the record."""
    teacher, graph = load(args.network)
    folded = fast_folded(graph)
    batches = test_batches(teacher.spec, args.eval_batch, args.limit)
    for source in args.sources:
        for bits in args.bits:
            # SADAG's images are made for a student.
            full = f"sadag-{bits}" if source == "sadag" else source
            images = ImageSet(
                args.network, full, args.images, args.synthesis_iterations, args.image_seed
            ).get(teacher, graph)
            for name in args.methods:
                cell = {
                    "source": source, "method": name, "bits": bits, "seed": args.seed,
                    "image_seed": args.image_seed, "images": args.images,
                    "synthesis": steps_of(source, args.synthesis_iterations),
                    **learning(name, args),
                }  # fmt: skip
                if record.has(**cell):
                    continue
                learned = not name.startswith("nearest")
                student = calibrated(folded, bits, images.images, learned=learned)
                unfinished = RESULTS / "images" / f"unfinished_{'_'.join(map(str, cell.values()))}"
                extra = reconstructed(
                    name, folded, student, images, args, unfinished.with_suffix(".safetensors")
                )
                found = top1({"student": student}, batches)
                record.add(
                    **cell, **extra, top1=found.top1["student"], test_images=found.images,
                    environment=environment(),
                )  # fmt: skip
                print(f"{bits} {source} {name}: {found.top1['student']:.2f} {extra}", flush=True)


def table(args: argparse.Namespace, record: Record) -> str:
    """The record as Markdown: one block per bit width."""
    env = record.cells[-1]["environment"]
    lines = [
        f"# {args.network}: images x reconstructions",
        "",
        f"Top-1 on {record.cells[-1]['test_images']} images, one set of {args.images} images a"
        " source; mean ± deviation where several seeds of the reconstruction were tried."
        f" {args.synthesis_iterations} synthesis steps (zeroq, dsg, genie; sadag a fifth more),"
        f" {args.iterations} steps per unit (layer for adaround, block for qdrop and genie_m) at"
        f" {learning('adaround', args)['lr_factor']:g} times the papers' rates,"
        " policy `brecq`, every layer input, weight and activation ranges of least error (power"
        " 2.4).",
        "",
        f"{env['cpu']}, {env['cores']} cores, {env['threads']} thread(s), torch {env['torch']},"
        f" {env['date']}. Command: `python benchmarks/reconstruction_table.py --bits"
        f" {' '.join(args.bits)} --images {args.images} --synthesis-iterations"
        f" {args.synthesis_iterations} --iterations {args.iterations} --seed {args.seed}"
        f"{'' if args.lr_factor is None else f' --lr-factor {args.lr_factor:g}'}`",
    ]
    for bits in args.bits:
        lines += ["", f"## {bits}", "", "| images | " + " | ".join(args.methods) + " |"]
        lines += ["|---" * (len(args.methods) + 1) + "|"]
        for source in args.sources:
            values = [
                record.mean_spread(
                    "top1", source=source, method=name, bits=bits, image_seed=args.image_seed,
                    images=args.images, synthesis=steps_of(source, args.synthesis_iterations),
                    **learning(name, args),
                )
                for name in args.methods
            ]  # fmt: skip
            lines.append(f"| {source} | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the command line, measure, write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet20_cifar10jpeg")
    parser.add_argument("--bits", nargs="+", default=["W4A4", "W3A3", "W2A4", "W2A2"])
    parser.add_argument("--seed", type=int, default=0, help="of the reconstruction")
    parser.add_argument("--image-seed", type=int, default=0)
    parser.add_argument("--sources", nargs="+", default=SOURCES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--synthesis-iterations", type=int, default=500)
    parser.add_argument("--iterations", type=int, default=20_000)
    parser.add_argument("--lr-factor", type=float, default=None, help="on rates; default: by steps")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--eval-batch", type=int, default=250)
    parser.add_argument("--table-only", action="store_true", help="measure nothing")
    args = parser.parse_args()
    record = Record(RESULTS / f"reconstruction_{args.network}.jsonl", KEYS)
    if not args.table_only:
        measure(args, record)
    write_text(RESULTS / f"reconstruction_{args.network}.md", table(args, record))


if __name__ == "__main__":
    main()
