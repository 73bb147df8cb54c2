"""Top-1 of fine-tuning without data against calibration alone: methods x bits x seeds.

    python benchmarks/finetuning_table.py
    python benchmarks/finetuning_table.py --network resnet20_cifar10jpeg --rows gdfq dsg_qat dfqf \
        --bits W4A4 W3A3 --granularity channel --batch-size 64 --warmup 400 --iterations 800

One warm-up serves all bit widths of a row and seed; the record has its seconds and those of each
fine-tuning. `calibration` rows are the best of several calibrators and weight ranges on test
labels, a bound that no user could choose, once as they are and once with biases corrected. Where
top-1 has no room left, further tables still tell students apart: how far they are from their
teacher on the test images, and, for the digits, their top-1 on test images that were shifted by a
pixel or have noise on them. The student is the best by agreement with the teacher on held-out
dreamt images, and `last` the one after the last step. Every cell goes to a JSON-lines record as
soon as it is measured; a second call goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from bounds import (
    ALONE,
    CALIBRATORS,
    CORRECTED,
    MEASURES,
    Network,
    bounds,
    network,
    scheme_of,
    tested,
)
from common import RESULTS, Record, environment, fast_folded

from datafree.calibrators.mse import MSE
from datafree.config import build
from datafree.evaluate import top1
from datafree.files import write_text
from datafree.generators import save_generator
from datafree.registry import load as load_method
from datafree.training import Task, train
from datafree.training.base import Trainer

# The DSG rows take its parts one after the other; beta 100 is the paper's weight of SCI.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "gdfq": ("gdfq", {}),
    "+SDA": ("dsg_qat", {"enhancement": False, "beta": 0.0}),
    "+SDA +LSE": ("dsg_qat", {"beta": 0.0}),
    "+SDA +LSE +SCI, beta 0.1": ("dsg_qat", {"beta": 0.1}),
    "dsg_qat": ("dsg_qat", {}),
    "dsg_qat, beta 0.1, clips learned": (
        "dsg_qat", {"beta": 0.1, "weights": "clip", "activations": "clip", "steps_lr": 0.1},
    ),
    "+SDA +LSE +SCI, beta 0.1, batches": ("dsg_qat", {"beta": 0.1, "granularity": "batch"}),
    "+SDA +LSE +SCI, beta 0.1, batches, slack 0.1": (
        "dsg_qat", {"beta": 0.1, "granularity": "batch", "epsilon": 0.1},
    ),
    "dsg_qat, beta 0.1, clips learned, distillation 10": (
        "dsg_qat",
        {
            "beta": 0.1, "weights": "clip", "activations": "clip", "steps_lr": 0.1,
            "distillation_weight": 10.0,
        },
    ),
    "gdfq, DSG's schedule": ("gdfq", {"milestones": (0.5,), "nesterov": False}),
    # The first four with statistics a hundred times as heavy, and one schedule for all.
    "gdfq, weight 10": (
        "gdfq", {"statistics_weight": 10.0, "milestones": (0.5,), "nesterov": False},
    ),
    "+SDA, weight 10": ("dsg_qat", {"alpha": 10.0, "enhancement": False, "beta": 0.0}),
    "+SDA +LSE, weight 10": ("dsg_qat", {"alpha": 10.0, "beta": 0.0}),
    "+SDA +LSE +SCI, weight 10, beta 0.1": ("dsg_qat", {"alpha": 10.0, "beta": 0.1}),
    "IS": ("dfqf", {"beta": 0.0, "gamma": 0.0}),
    "IS+BN": ("dfqf", {"gamma": 0.0}),
    "IS+BN, fixed generator": ("dfqf", {"gamma": 0.0, "update_generator": False}),
    "IS+BN, fixed generator, beta 10, rate falls": (
        "dfqf",
        {"gamma": 0.0, "update_generator": False, "beta": 10.0, "milestones": (0.5, 0.8)},
    ),
    "dfqf": ("dfqf", {}),
    "dfqf, fixed generator, beta 10, rate falls": (
        "dfqf", {"update_generator": False, "beta": 10.0, "milestones": (0.5, 0.8)},
    ),
    "dfqf, fixed generator": ("dfqf", {"update_generator": False}),
    "dfqf, cross-entropy": ("dfqf", {"adversarial": "cross_entropy"}),
}  # fmt: skip
DEFAULT = tuple(ROWS)
# The released code of GDFQ and DSG divides the student's divergence by the number of classes.
ROWS |= {
    f"{row}, element": (method, {**options, "reduction": "element"})
    for row, (method, options) in ROWS.items()
    if method != "dfqf"
}
KEYS = ("row", "bits", "granularity", "policy", "seed", "settings")


def trained(
    row: str, net: Network, args: argparse.Namespace, seed: int, record: Record, settings: str
) -> None:
    """Fill the cells of one row and seed: one warm-up, one fine-tuning for every bit width."""
    name, options = ROWS[row]
    common = {
        "warmup": args.warmup, "iterations": args.iterations, "batch_size": args.batch_size,
        "student_lr": args.student_lr, "width": args.width, "holdout": 512, "checks": 10,
        "batch_norm": args.batch_norm,
    }  # fmt: skip
    if args.generator_lr:
        common["generator_lr"] = args.generator_lr
    cls = load_method("datafree.training", name, Trainer)
    method = build(cls, {**common, **options}, row)
    folded = fast_folded(net.graph)
    with tempfile.TemporaryDirectory() as folder:
        warm = Path(folder) / "warm.safetensors"
        for bits in args.bits:
            cell = {
                "row": row, "bits": bits, "granularity": args.granularity, "policy": args.policy,
                "seed": seed, "settings": settings,
            }  # fmt: skip
            if record.has(**cell):
                continue
            task = Task(
                net.graph, folded, net.teacher.spec, scheme_of(bits, args), MSE(), seed=seed,
                generator=warm if warm.exists() else None,
            )  # fmt: skip
            started = time.perf_counter()
            found = train(method, task)
            if found.warm is not None:
                save_generator(found.warm, warm)
            seconds = time.perf_counter() - started
            measured = tested(net, found.student)
            last = top1({"last": found.last}, net.batches)
            tuning = found.summary["fine-tuning"]
            record.add(
                **cell, **measured, last=last.top1["last"],
                agreement=tuning["best"]["agreement"], best_step=tuning["best"]["step"],
                seconds=seconds, tuning_seconds=tuning["seconds"],
                warmup_seconds=found.summary.get("warm-up", {}).get("seconds", 0.0),
                test_images=last.images, environment=environment(),
            )  # fmt: skip
            print(f"{bits} {row} seed {seed}: {measured} in {seconds:.0f} s", flush=True)


def table(args: argparse.Namespace, record: Record) -> str:
    """The record as Markdown: calibration, then one block per schedule."""
    env = record.cells[-1]["environment"]
    tested = max(cell["test_images"] for cell in record.cells)
    columns = ("seconds of warm-up", "of one fine-tuning")
    lines = [
        f"# {args.network}: fine-tuning without data",
        "",
        f"Top-1 on {tested} images, mean and deviation over seeds"
        f" {' '.join(map(str, args.seeds))}; weights per {args.granularity}, policy"
        f" `{args.policy}`, activations quantized after activation functions. Students are the last"
        " not measurably worse than the best by agreement on held-out dreamt images; in brackets"
        " those after the last step.",
        "",
        f"{env['cpu']}, {env['cores']} cores, {env['threads']} thread(s), torch {env['torch']},"
        f" {env['date']}.",
        "",
        "| | " + " | ".join((*args.bits, *columns)) + " |",
        "|---" * (len(args.bits) + len(columns) + 1) + "|",
        _line(ALONE, "", args, record),
        _line(CORRECTED, "", args, record),
    ]
    where = {"granularity": args.granularity, "policy": args.policy}
    cells = [c for c in record.cells if all(c[k] == v for k, v in where.items())]
    for settings in dict.fromkeys(cell["settings"] for cell in cells if cell["settings"]):
        found = {cell["row"] for cell in cells if cell["settings"] == settings}
        lines.append(f"| *{settings}* |" + " |" * (len(args.bits) + len(columns)))
        lines += [_line(row, settings, args, record) for row in ROWS if row in found]
    for measure in MEASURES:
        lines += _further(measure, args, record, where)
    return "\n".join(lines) + "\n"


def _further(
    measure: str, args: argparse.Namespace, record: Record, where: dict[str, Any]
) -> list[str]:
    """The table of another measure, of the cells that have it."""
    matching = [c for c in record.cells if all(c[k] == v for k, v in where.items())]
    measured = [cell for cell in matching if measure in cell]
    if not measured:
        return []
    teachers = [
        cell["teacher"][measure] for cell in measured if measure != "kl" and "teacher" in cell
    ]
    head = MEASURES[measure] + (f"; teacher {teachers[0]:.2f}" if teachers else "")
    lines = [
        "", f"{head}:", "",
        "| | " + " | ".join(args.bits) + " |", "|---" * (len(args.bits) + 1) + "|",
    ]  # fmt: skip
    decimals = 4 if measure == "kl" else 2
    for settings in sorted({cell["settings"] for cell in measured}):
        rows = {cell["row"] for cell in measured if cell["settings"] == settings}
        if settings:
            lines.append(f"| *{settings}* |" + " |" * len(args.bits))
        for row in [name for name in (ALONE, CORRECTED, *ROWS) if name in rows]:
            of_row = {**where, "row": row, "settings": settings}
            cells = [
                record.mean_spread(measure, decimals=decimals, **of_row, bits=bits)
                for bits in args.bits
            ]
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return lines


def _line(row: str, settings: str, args: argparse.Namespace, record: Record) -> str:
    """Top-1 by bits, then the times of warm-up and fine-tuning."""
    where = {
        "row": row, "granularity": args.granularity, "policy": args.policy, "settings": settings,
    }  # fmt: skip
    cells: list[str] = []
    for bits in args.bits:
        text = record.mean_spread("top1", **where, bits=bits)
        if settings and text != "-":
            text += f" ({record.mean_spread('last', **where, bits=bits)})"
        cells.append(text)
    if not settings:
        return f"| {row} | " + " | ".join([*cells, "", ""]) + " |"
    # Only the first bit width of a row warms the generator up.
    measured = [c for c in record.cells if all(c[k] == v for k, v in where.items())]
    first = max(measured, key=lambda c: c["warmup_seconds"])["bits"]
    cells.append(record.mean_spread("warmup_seconds", **where, bits=first))
    cells.append(record.mean_spread("tuning_seconds", **where))
    return f"| {row} | " + " | ".join(cells) + " |"


def main() -> None:
    """Parse the command line, measure, write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="digits_resnet8")
    parser.add_argument("--bits", nargs="+", default=["W3A3", "W2A2"])
    parser.add_argument("--rows", nargs="+", default=DEFAULT, choices=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--granularity", default="tensor", choices=["tensor", "channel"])
    parser.add_argument("--calibrators", nargs="+", default=list(CALIBRATORS))
    parser.add_argument("--policy", default="first_last_8")
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=32, help="of the generator; 128 in the papers")
    parser.add_argument("--student-lr", type=float, default=0.01)
    parser.add_argument("--generator-lr", type=float, help="instead of each method's own")
    parser.add_argument("--batch-norm", default="scaled", choices=["scaled", "folded"])
    parser.add_argument("--table-only", action="store_true", help="measure nothing")
    args = parser.parse_args()
    settings = (
        f"{args.warmup} steps of warm-up, {args.iterations} of fine-tuning, batches of"
        f" {args.batch_size}, student's rate {args.student_lr:g}, generator of width {args.width}"
        + (", scaled" if args.batch_norm == "scaled" else "")
        + (f", generator's rate {args.generator_lr:g}" if args.generator_lr else "")
    )
    record = Record(RESULTS / f"finetuning_{args.network}.jsonl", KEYS)
    if not args.table_only:
        net = network(args.network)
        for seed in args.seeds:
            for bits in args.bits:
                cell = {
                    "bits": bits, "granularity": args.granularity, "policy": args.policy,
                    "seed": seed, "settings": "",
                }  # fmt: skip
                missing = [r for r in (ALONE, CORRECTED) if not record.has(row=r, **cell)]
                found = bounds(net, bits, args, seed) if missing else {}
                for row in missing:
                    cells = {"row": row, **cell, **found[row], "environment": environment()}
                    record.add(**cells, test_images=0)
                    print(f"{bits} {row} seed {seed}: {found[row]}", flush=True)
            for row in args.rows:
                trained(row, net, args, seed, record, settings)
    write_text(RESULTS / f"finetuning_{args.network}.md", table(args, record.of_seeds(args.seeds)))


if __name__ == "__main__":
    main()
