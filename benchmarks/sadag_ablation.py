"""What SADAG's options are worth: top-1 on its images, one option changed at a time.

    python benchmarks/sadag_ablation.py
    python benchmarks/sadag_ablation.py --variants "rho 0.5" "tau 0.1"
    python benchmarks/sadag_ablation.py --table-only

The warm-up by genie and the student are made once, and every variant goes on from a copy of them:
what differs is the matching alone. `genie` are the images before it. Every cell goes to a
JSON-lines record as soon as it is measured; a second call goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from contextlib import AbstractContextManager
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
    scheme_of,
    test_batches,
)
from torch import Tensor, fx

from datafree.evaluate import top1
from datafree.files import write_text
from datafree.models import Teacher
from datafree.progress import Step, silent
from datafree.synthesis.sadag import SADAG

NETWORK = "resnet20_cifar10jpeg"
VARIANTS: dict[str, dict[str, Any]] = {
    "sadag": {},
    "rho 0.5": {"rho": 0.5},
    "tau 0.1": {"tau": 0.1},
    "perturbation of the code": {"perturb": "official"},
    "rate does not fall": {"matching_gamma": 1.0},
    "rate 0.001": {"matching_generator_lr": 1e-3},
}
KEYS = ("variant", "bits", "images", "synthesis", "matching", "iterations", "method", "seed")


class _PreparedError(Exception):
    """The student is there."""


def until_matching(description: str, total: int) -> AbstractContextManager[Step]:
    """A progress that stops the run where the matching begins."""
    if description == "sadag images":
        raise _PreparedError
    return silent(description, total)


def method_of(variant: str, args: argparse.Namespace) -> SADAG:
    """SADAG with the options of `variant`."""
    return SADAG(
        iterations=args.synthesis, matching_iterations=args.matching, batch_size=128,
        student_iterations=args.iterations, scheme=scheme_of(args.bits), **VARIANTS[variant],
    )  # fmt: skip


def prepared(teacher: Teacher, graph: fx.GraphModule, args: argparse.Namespace) -> Path:
    """Folder with the warm-up and the student, made unless they are there."""
    name = f"sadag_{args.bits}_{args.images}x{args.synthesis}_{args.iterations}"
    folder = RESULTS / "images" / name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        method_of("sadag", args).generate(
            graph, teacher.spec, args.images, progress=until_matching, checkpoint=folder
        )
    except _PreparedError:
        return folder
    raise AssertionError("the matching has another name now")


def images_of(
    variant: str, teacher: Teacher, graph: fx.GraphModule, args: argparse.Namespace
) -> tuple[Tensor, float]:
    """The images (N, C, H, W) of a variant and the seconds of its matching."""
    if variant == "genie":
        kept = ImageSet(NETWORK, "genie", 256, args.synthesis, 0).get(teacher, graph)
        return kept.images[: args.images], 0.0
    start = prepared(teacher, graph, args)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(start, Path(folder) / "copy"))
        made = method_of(variant, args).generate(graph, teacher.spec, args.images, checkpoint=copy)
    return made.images, time.perf_counter() - started


def measure(args: argparse.Namespace, record: Record) -> None:
    """Fill every missing cell of the record."""
    teacher, graph = load(NETWORK)
    folded = fast_folded(graph)
    batches = test_batches(teacher.spec)
    before, _ = images_of("genie", teacher, graph, args)
    for variant in args.variants:
        cells = [
            {
                "variant": variant, "bits": args.bits, "images": args.images,
                "synthesis": args.synthesis, "matching": args.matching,
                "iterations": args.iterations, "method": method, "seed": seed,
            }
            for method in args.methods
            for seed in args.seeds
        ]  # fmt: skip
        missing = [cell for cell in cells if not record.has(**cell)]
        if not missing:
            continue
        images, seconds = images_of(variant, teacher, graph, args)
        moved = ((images - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)).mean()
        for cell in missing:
            student = calibrated(folded, args.bits, images)
            learner = reconstructor(cell["method"], iterations=args.iterations)
            learner.reconstruct(folded, student, images, seed=cell["seed"])
            found = top1({"student": student}, batches)
            record.add(
                **cell, top1=found.top1["student"], moved=moved.item(), seconds=seconds,
                test_images=found.images, environment=environment(),
            )  # fmt: skip
            print(f"{variant} {cell['method']} {cell['seed']}: {found.top1['student']:.2f}, moved"
                  f" {moved:.3f}, {seconds:.0f} s", flush=True)  # fmt: skip


def table(args: argparse.Namespace, record: Record) -> str:
    """The record as Markdown: a line per variant."""
    env = record.cells[-1]["environment"]
    lines = [
        f"# {NETWORK}: what SADAG's options are worth at {args.bits}",
        "",
        f"Top-1 on {record.cells[-1]['test_images']} images, mean ± deviation over seeds"
        f" {' '.join(map(str, args.seeds))} of the reconstruction; {args.images} images,"
        f" {args.synthesis} steps of warm-up and {args.matching} of matching (rho 2, tau 0, power"
        " iteration, rate 0.0001 with a factor of 0.95 a step, unless named),"
        f" {args.iterations} steps per unit, policy `brecq`. `moved`: distance from the images"
        " of `genie`, over their norm.",
        "",
        f"{env['cpu']}, {env['cores']} cores, {env['threads']} thread(s), torch {env['torch']},"
        f" {env['date']}.",
        "",
        "| images | " + " | ".join(args.methods) + " | moved | seconds of matching |",
        "|---" * (len(args.methods) + 3) + "|",
    ]
    where = {"bits": args.bits, "images": args.images, "synthesis": args.synthesis}
    where |= {"matching": args.matching, "iterations": args.iterations}
    for variant in ("genie", *VARIANTS):
        key = {**where, "variant": variant}
        found = [c for c in record.cells if all(c[k] == v for k, v in key.items())]
        if not found:
            continue
        values = [record.mean_spread("top1", **key, method=method) for method in args.methods]
        values += [f"{statistics.mean(c[k] for c in found):.{d}f}" for k, d in _COLUMNS]
        lines.append(f"| {variant} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


_COLUMNS = (("moved", 3), ("seconds", 0))


def main() -> None:
    """Parse the command line, measure, write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bits", default="W2A2")
    parser.add_argument("--variants", nargs="+", default=["genie", *VARIANTS])
    parser.add_argument("--methods", nargs="+", default=["adaround", "genie_m"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--synthesis", type=int, default=500)
    parser.add_argument("--matching", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=500, help="per unit of reconstruction")
    parser.add_argument("--table-only", action="store_true", help="measure nothing")
    args = parser.parse_args()
    record = Record(RESULTS / f"sadag_ablation_{NETWORK}.jsonl", KEYS)
    if not args.table_only:
        measure(args, record)
    path = RESULTS / f"sadag_ablation_{NETWORK}.md"
    write_text(path, table(args, record.of_seeds(args.seeds)))


if __name__ == "__main__":
    main()
