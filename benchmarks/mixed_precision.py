"""Top-1 of mixed against uniform weight precision at equal weight size.

    python benchmarks/mixed_precision.py --policies first_last_8 --methods nearest
    python benchmarks/mixed_precision.py --lr-factor 1

Uniform W3, W4, W5 against an average of as many bits, activations at 8 bits, weight and activation
ranges of least error (power 2.4), images of zeroq; rounded to the nearest and learned by adaround.
Every cell goes to a JSON-lines record as soon as it is measured; a second call goes on where the
first stopped. The table is written beside the record.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from common import RESULTS, ImageSet, Record, environment, load, test_data
from reconstruction_table import learning, reconstructed
from torch import fx

from datafree.allocation.allocate import Allocation, allocate
from datafree.calibrators.base import calibrate
from datafree.calibrators.mse import MSE
from datafree.config import AllocationConfig, Scheme
from datafree.data import open_labelled
from datafree.evaluate import compare, top1
from datafree.files import write_text
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers

METHODS = ("nearest", "nearest_a32", "adaround")
"""`nearest_a32` leaves activations in float: what the weights alone lose."""
KEYS = (
    "source", "policy", "bits", "kind", "method", "seed", "images", "synthesis", "iterations",
    "lr_factor",
)  # fmt: skip


def allocated(
    bits: int, folded: fx.GraphModule, scheme: Scheme, images: Any, args: argparse.Namespace
) -> tuple[Allocation, float]:
    """The bits of every layer at an average of `bits`, drawn and written; seconds it took."""
    started = time.perf_counter()
    found = allocate(folded, scheme, images.images, AllocationConfig(average_bits=bits))
    seconds = time.perf_counter() - started
    if bits == args.bits[len(args.bits) // 2] and scheme.policy == "all":
        found.save_picture(RESULTS / f"mixed_precision_{args.network}.png")
    return found, seconds


def measure(args: argparse.Namespace, record: Record) -> None:
    """Fill every missing cell of the record."""
    teacher, graph = load(args.network)
    folded = fold_batch_norms(graph).to(memory_format=torch.channels_last)  # pyright: ignore
    data = open_labelled(test_data(teacher.spec), teacher.spec)
    batches = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in data.batches(250)]
    for source, policy, bits in (
        (s, p, b) for s in args.sources for p in args.policies for b in args.bits
    ):
        images = ImageSet(
            args.network, source, args.images, args.synthesis_iterations, args.seed
        ).get(teacher, graph)
        scheme = Scheme(weights=bits, policy=policy, weight_range="mse")
        cells = [
            {
                "source": source, "policy": policy, "bits": bits, "kind": kind, "method": method,
                "seed": args.seed, "images": args.images, "synthesis": args.synthesis_iterations,
                **learning(method, args),
            }
            for kind in ("uniform", "mixed") for method in args.methods
        ]  # fmt: skip
        missing = [cell for cell in cells if not record.has(**cell)]
        if not missing:
            continue
        found, seconds = allocated(bits, folded, scheme, images, args)
        for cell in missing:
            mixed = cell["kind"] == "mixed"
            chosen = found.layer_bits if mixed else {}
            total = found.total if mixed else found.uniform[bits]
            a32 = cell["method"] == "nearest_a32"
            changes = {"layer_bits": chosen, "activations": 32 if a32 else 8}
            student = insert_quantizers(folded, scheme.model_copy(update=changes))
            if not a32:
                observe = "float" if cell["method"] == "adaround" else "quantized"
                batches64 = images.images.split(64)
                calibrate(student, batches64, MSE(power=2.4), observe=observe)
            extra = reconstructed(cell["method"], folded, student, images, args)
            accuracy = top1({"student": student}, batches)
            record.add(
                **cell, **extra, top1=accuracy.top1["student"], test_images=accuracy.images,
                kl=compare(folded, student, images.images.split(64)).kl,
                predicted=total.sensitivity, bytes=total.cost / 8,
                layer_bits="".join(str(b) for b in found.layer_bits.values()) if mixed else "",
                allocation_seconds=round(seconds, 1), environment=environment(),
            )  # fmt: skip
            print({k: v for k, v in record.cells[-1].items() if k != "environment"}, flush=True)


def table(args: argparse.Namespace, record: Record) -> str:
    """The whole record as Markdown: one block per source of images and policy."""
    last = record.cells[-1]
    env = last["environment"]
    lines = [
        f"# {args.network}: mixed against uniform weight precision",
        "",
        f"Top-1 on {last['test_images']} images (float 88.02), seed {args.seed}; activations at 8"
        f" bits on every layer input, {args.images} images ({args.synthesis_iterations} synthesis"
        f" steps), adaround with {args.iterations} steps per layer at"
        f" {learning('adaround', args)['lr_factor']:g} times the papers' rate. Bits to choose"
        " from: 2, 3, 4, 5, 6, 8. `nearest_a32`: activations in float. KL: between float network"
        " and student on the images, nats, of `nearest`; predicted: the sum of sensitivities. Bits"
        " by layer in execution order.",
        "",
        f"{env['cpu']}, {env['cores']} cores, {env['threads']} thread(s), torch {env['torch']},"
        f" {env['date']}. Commands: at the head of `mixed_precision.py`.",
    ]
    head = " | ".join(f"{m} top-1" for m in METHODS)
    for source, policy in dict.fromkeys((c["source"], c["policy"]) for c in record.cells):
        lines += ["", f"## {source} images, policy {policy}", ""]
        lines += [f"| weights | kB | {head} | KL | predicted | bits by layer |"]
        lines += ["|---" * (5 + len(METHODS)) + "|"]
        for bits in args.bits:
            for kind in ("uniform", "mixed"):
                where = {"source": source, "policy": policy, "bits": bits, "kind": kind}
                rows = [c for c in record.cells if all(c[k] == v for k, v in where.items())]
                cell = next((c for c in rows if c["method"] == "nearest"), None)
                if cell is None:
                    continue
                values = [
                    record.mean_spread(
                        "top1", **where, method=m,
                        **learning(m, args),
                    )
                    for m in METHODS
                ]  # fmt: skip
                name = f"W{bits}" if kind == "uniform" else f"average {bits}"
                lines.append(
                    f"| {name} | {cell['bytes'] / 1000:.1f} | {' | '.join(values)} |"
                    f" {cell['kl']:.3f} | {cell['predicted']:.3f} | {cell['layer_bits'] or bits} |"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the command line, measure, write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet20_cifar10jpeg")
    parser.add_argument("--bits", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--policies", nargs="+", default=["all"])
    parser.add_argument("--sources", nargs="+", default=["zeroq"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--synthesis-iterations", type=int, default=500)
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--lr-factor", type=float, default=None, help="on rates; default: by steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table-only", action="store_true", help="measure nothing")
    args = parser.parse_args()
    record = Record(RESULTS / f"mixed_precision_{args.network}.jsonl", KEYS)
    if not args.table_only:
        measure(args, record)
    write_text(RESULTS / f"mixed_precision_{args.network}.md", table(args, record))


if __name__ == "__main__":
    main()
