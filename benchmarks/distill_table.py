"""Data-free distillation of LeNet-5 into a network of half its width: DFQF, Tables 1 and 2.

    python benchmarks/distill_table.py
    python benchmarks/distill_table.py --rows IS+adv --steps 5000

The teacher is trained by `train_lenet5.py` on MNIST. It has no batch norm, so the inception score
and the adversarial loss carry the generator; `untrained generator` has neither, the random noise
of Table 1. The student is the best by agreement with the teacher on held-out dreamt images, and
`last` the one after the last step. Every cell goes to a JSON-lines record as soon as it is
measured; a second call goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import time

import lenet5
from common import RESULTS, SHARED, Record, environment
from safetensors.torch import load_file

from datafree.calibrators.mse import MSE
from datafree.data import open_labelled
from datafree.evaluate import top1
from datafree.files import write_text
from datafree.graph.capture import capture
from datafree.models import from_module
from datafree.training.base import Task
from datafree.training.dfqf import forgotten
from datafree.training.distill import Distill

ROWS = {
    "untrained generator": {"inception_weight": 0.0, "gamma": 0.0},
    "IS": {"gamma": 0.0},
    "adv": {"inception_weight": 0.0},
    "IS+adv": {},
    "IS+adv, cross-entropy": {"adversarial": "cross_entropy"},
}
KEYS = ("row", "steps", "batch", "width", "seed")


def measure(args: argparse.Namespace, record: Record) -> None:
    """Fill every missing cell of the record."""
    model = lenet5.lenet5()
    model.load_state_dict(load_file(RESULTS / "lenet5_mnist.safetensors"))
    shape, mean, std = (1, 28, 28), (0.1307,), (0.3081,)
    teacher = from_module(model, input_shape=shape, mean=mean, std=std)
    graph = capture(teacher.model, teacher.spec)
    small = capture(lenet5.lenet5_half().eval(), teacher.spec)
    data = open_labelled(SHARED / "data" / "mnist_test.npz", teacher.spec)
    batches = list(data.batches(500))
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
                graph, graph, teacher.spec, None, MSE(), seed=seed, companion=forgotten(small, seed)
            )
            started = time.perf_counter()
            found = method.train(task)
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


def table(record: Record) -> str:
    """The record as Markdown."""
    last = record.cells[-1]
    env = last["environment"]
    lines = [
        "# LeNet-5 on MNIST into half its width, without data",
        "",
        f"Top-1 on {last['test_images']} images; teacher {last['teacher']:.2f}. The paper: teacher"
        " 98.92, student 98.63 after 200,000 steps of 512 images.",
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
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=32)
    args = parser.parse_args()
    record = Record(RESULTS / "distill_lenet5_mnist.jsonl", KEYS)
    measure(args, record)
    write_text(RESULTS / "distill_lenet5_mnist.md", table(record))


if __name__ == "__main__":
    main()
