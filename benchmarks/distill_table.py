"""Data-free distillation into a smaller network: DFQF, Tables 1 and 2.

    python benchmarks/distill_table.py
    python benchmarks/distill_table.py --rows IS+adv --steps 5000
    python benchmarks/distill_table.py --pair resnet20_cifar10jpeg --rows IS+BN+adv
    python benchmarks/distill_table.py --pair digits_resnet8 --steps 2000 --batch 64

LeNet-5 into half its width: the teacher is trained by `train_lenet5.py` on MNIST. It has no batch
norm, so the inception score and the adversarial loss carry the generator; `untrained generator` has
neither, the random noise of Table 1. A slow generator has a tenth of the paper's rate and a fifth
of its adversarial weight, for schedules so short that students cannot keep up otherwise. ResNet-20
into ResNet-8, of 78,000 parameters instead of 272,000, and the built-in digits network into three
plain convolutions of 14,000 parameters instead of 78,000: here batch norms help. The student is the
best by agreement with the teacher on held-out dreamt images, and `last` the one after the last
step. Every cell goes to a JSON-lines record as soon as it is measured; a second call goes on where
the first stopped.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lenet5
from common import RESULTS, SHARED, Record, environment, load, load_digits, networks, test_batches
from safetensors.torch import load_file
from torch import Tensor, fx, nn

from datafree.calibrators.mse import MSE
from datafree.config import InputSpec
from datafree.data import open_labelled
from datafree.evaluate import top1
from datafree.files import write_text
from datafree.graph.capture import capture
from datafree.models import from_module
from datafree.training import Task, train
from datafree.training.dfqf import forgotten
from datafree.training.distill import Distill

Loaded = tuple[fx.GraphModule, InputSpec, list[tuple[Tensor, Tensor]]]


def lenet5_mnist() -> Loaded:
    """Teacher, what it takes, test images."""
    model = lenet5.lenet5()
    model.load_state_dict(load_file(RESULTS / "lenet5_mnist.safetensors"))
    teacher = from_module(model, input_shape=(1, 28, 28), mean=lenet5.MEAN, std=lenet5.STD)
    data = open_labelled(SHARED / "data" / "mnist_test.npz", teacher.spec)
    return capture(teacher.model, teacher.spec), teacher.spec, list(data.batches(500))


def resnet20() -> Loaded:
    """Teacher, what it takes, test images."""
    teacher, graph = load("resnet20_cifar10jpeg")
    return graph, teacher.spec, test_batches(teacher.spec)


def digits() -> Loaded:
    """Teacher, what it takes, test images."""
    teacher, graph, batches = load_digits()
    return graph, teacher.spec, batches


def plain_digits() -> nn.Sequential:
    """Three convolutions where the teacher has nine: takes (N, 1, 8, 8), returns (N, 10)."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)]
        layers += [nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


@dataclass(frozen=True)
class Pair:
    """A teacher and what becomes of it.

    Attributes:
        what: for the head of the table.
        load: the teacher.
        student: a new network.
        paper: what there is to compare with.
    """

    what: str
    load: Callable[[], Loaded]
    student: Callable[[], nn.Module]
    paper: str


PAIRS = {
    "lenet5_mnist": Pair(
        "LeNet-5 on MNIST into half its width",
        lenet5_mnist,
        lenet5.lenet5_half,
        "The paper: teacher 98.92, student 98.63 after 200,000 steps of 512 images.",
    ),
    "resnet20_cifar10jpeg": Pair(
        "ResNet-20 on CIFAR-10-J into ResNet-8",
        resnet20,
        lambda: networks().CifarResNet(depth=8),
        "The paper has no such pair.",
    ),
    "digits_resnet8": Pair(
        "ResNet-8 on digits into three plain convolutions",
        digits,
        plain_digits,
        "The paper has no such pair.",
    ),
}
ROWS: dict[str, dict[str, Any]] = {
    "untrained generator": {"inception_weight": 0.0, "beta": 0.0, "gamma": 0.0},
    "IS": {"beta": 0.0, "gamma": 0.0},
    "adv": {"inception_weight": 0.0, "beta": 0.0},
    "IS+adv": {"beta": 0.0},
    "IS+adv, cross-entropy": {"beta": 0.0, "adversarial": "cross_entropy"},
    "IS+BN": {"gamma": 0.0},
    "IS+BN+adv": {},
    "IS+adv, slow generator": {"beta": 0.0, "alpha": 10.0, "gamma": 1.0, "generator_lr": 1e-3},
    "IS+adv, slow generator, five student steps": {
        "beta": 0.0,
        "alpha": 10.0,
        "gamma": 1.0,
        "generator_lr": 1e-3,
        "student_steps": 5,
    },
    "IS+BN+adv, five student steps": {"student_steps": 5},
    "IS+BN+adv, slow generator": {"beta": 10.0, "gamma": 1.0, "generator_lr": 1e-3},
    "IS+BN+adv, slow generator, five student steps": {
        "beta": 10.0,
        "gamma": 1.0,
        "generator_lr": 1e-3,
        "student_steps": 5,
    },
}
WITH_BATCH_NORM = tuple(row for row in ROWS if "BN" in row)
KEYS = ("row", "steps", "batch", "width", "seed")


def measure(args: argparse.Namespace, record: Record) -> None:
    """Fill every missing cell of the record."""
    graph, spec, batches = PAIRS[args.pair].load()
    small = capture(PAIRS[args.pair].student().eval(), spec)
    for seed in args.seeds:
        for row in args.rows:
            cell = {
                "row": row, "steps": args.steps, "batch": args.batch, "width": args.width,
                "seed": seed,
            }  # fmt: skip
            if record.has(**cell):
                continue
            method = Distill.model_validate(
                {"warmup": args.steps, "batch_size": args.batch, "width": args.width,
                 "latent": 100, "checks": 20, **ROWS[row]}
            )  # fmt: skip
            task = Task(
                graph, graph, spec, None, MSE(), seed=seed, companion=forgotten(small, seed)
            )
            started = time.perf_counter()
            found = train(method, task)
            seconds = time.perf_counter() - started
            predictors = {"teacher": graph, "best": found.student, "last": found.last}
            measured = top1(predictors, batches)
            told = found.summary["distillation"]
            record.add(
                **cell, top1=measured.top1["best"], last=measured.top1["last"],
                teacher=measured.top1["teacher"], agreement=told["best"]["agreement"],
                best_step=told["best"]["step"], seconds=seconds, test_images=measured.images,
                environment=environment(),
            )  # fmt: skip
            print(f"{row} seed {seed}: {measured.top1} in {seconds:.0f} s", flush=True)


def table(pair: Pair, record: Record) -> str:
    """The record as Markdown."""
    last = record.cells[-1]
    env = last["environment"]
    lines = [
        f"# {pair.what}, without data",
        "",
        f"Top-1 on {last['test_images']} images; teacher {last['teacher']:.2f}. {pair.paper}",
        "",
        f"{env['cpu']}, {env['cores']} cores, {env['threads']} thread(s), torch {env['torch']},"
        f" {env['date']}.",
        "",
        "| losses | steps x images | generator's width | student | after the last step | seconds |",
        "|---|---|---|---|---|---|",
    ]
    keys = {(c["row"], c["steps"], c["batch"], c["width"]) for c in record.cells}
    for row, steps, batch, width in sorted(keys, key=lambda k: (k[1], list(ROWS).index(k[0]))):
        where = {"row": row, "steps": steps, "batch": batch, "width": width}
        values = [record.mean_spread(name, **where) for name in ("top1", "last", "seconds")]
        lines.append(f"| {row} | {steps} x {batch} | {width} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the command line, measure, write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", default="lenet5_mnist", choices=list(PAIRS))
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), help="default: all that apply")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--table-only", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if args.rows is None:
        without = args.pair == "lenet5_mnist"
        args.rows = [row for row in ROWS if not (without and row in WITH_BATCH_NORM)]
    record = Record(RESULTS / f"distill_{args.pair}.jsonl", KEYS)
    if not args.table_only:
        measure(args, record)
    write_text(RESULTS / f"distill_{args.pair}.md", table(PAIRS[args.pair], record))


if __name__ == "__main__":
    main()
