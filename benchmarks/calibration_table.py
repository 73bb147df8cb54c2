"""Top-1 of {noise, zeroq, dsg, real images} x {minmax, percentile, ema, mse} x bits x seeds.

    python benchmarks/calibration_table.py --network resnet20_cifar10jpeg --bits 8 6 4 3
    python benchmarks/calibration_table.py --network mobilenet_v1_075_224_imagenet --bits 8 6

Policy `all`, activations quantized after activation functions, min-max affine weights per channel:
the protocol of the ZeroQ and DSG papers. Every cell goes to a JSON-lines record as soon as it is
measured; a second call goes on where the first stopped. The table is written beside the record.
"""

from __future__ import annotations

import argparse

from common import RESULTS, ImageSet, Record, environment, fast_folded, load, test_batches

from datafree.calibrators.base import Calibrator, calibrate
from datafree.config import Scheme
from datafree.evaluate import top1
from datafree.files import write_text
from datafree.graph.insert import insert_quantizers
from datafree.registry import load as load_method

CALIBRATORS = ("minmax", "percentile", "ema", "mse")
KEYS = ("network", "source", "calibrator", "bits", "seed", "images", "iterations")


def measure(args: argparse.Namespace, record: Record) -> None:
    """Fill every missing cell of the record."""
    teacher, graph = load(args.network)
    folded = fast_folded(graph)
    batches = test_batches(teacher.spec, args.eval_batch)
    if not record.has(
        network=args.network, source="float", calibrator="", bits=32, seed=0, images=0, iterations=0
    ):
        found = top1({"float": folded}, batches)
        accuracy = found.top1["float"]
        record.add(
            network=args.network, source="float", calibrator="", bits=32, seed=0, images=0,
            iterations=0,
            top1=accuracy, test_images=found.images, environment=environment(),
        )  # fmt: skip
        print(f"float {accuracy:.2f}", flush=True)
    for seed in args.seeds:
        for source in args.sources:
            images = ImageSet(
                args.network, source, args.images, args.iterations, seed, args.batch
            ).get(teacher, graph)
            for bits in args.bits:
                for name in args.calibrators:
                    cell = {
                        "network": args.network, "source": source, "calibrator": name, "bits": bits,
                        "seed": seed, "images": args.images, "iterations": args.iterations,
                    }  # fmt: skip
                    if record.has(**cell):
                        continue
                    scheme = Scheme(weights=bits, activations=bits, placement="after_activation")
                    student = insert_quantizers(folded, scheme)
                    calibrator = load_method("datafree.calibrators", name, Calibrator)()
                    calibrate(student, [images.images], calibrator)
                    accuracy = top1({"student": student}, batches).top1["student"]
                    record.add(**cell, top1=accuracy, digest=images.digest()[:16])
                    print(f"W{bits}A{bits} {source} {name} seed {seed}: {accuracy:.2f}", flush=True)


def table(args: argparse.Namespace, record: Record) -> str:
    """The record as Markdown: one block per bit width."""
    head = next(c for c in record.cells if c["source"] == "float")
    env = head["environment"]
    lines = [
        f"# {args.network}: images x calibrators",
        "",
        f"Float top-1 {head['top1']:.2f} on {head['test_images']} images. {args.images} images per"
        f" set, {args.iterations} iterations, policy `all`, activations after activation functions,"
        " affine min-max"
        f" weights per channel; mean ± standard deviation over seeds {args.seeds}.",
        "",
        f"{env['cpu']}, {env['cores']} cores, torch {env['torch']}, {env['date']}. Command:"
        f" `python benchmarks/calibration_table.py --network {args.network} --bits"
        f" {' '.join(map(str, args.bits))} --seeds {' '.join(map(str, args.seeds))}`",
    ]
    for bits in args.bits:
        lines += ["", f"## W{bits}A{bits}", "", "| images | " + " | ".join(args.calibrators) + " |"]
        lines += ["|---" * (len(args.calibrators) + 1) + "|"]
        for source in args.sources:
            values = [
                record.mean_spread("top1", source=source, calibrator=c, bits=bits)
                for c in args.calibrators
            ]
            lines.append(f"| {source} | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the command line, measure, write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet20_cifar10jpeg")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 6, 4, 3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sources", nargs="+", default=["noise", "zeroq", "dsg", "real"])
    parser.add_argument("--calibrators", nargs="+", default=list(CALIBRATORS))
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument("--eval-batch", type=int, default=250)
    args = parser.parse_args()
    record = Record(RESULTS / f"calibration_{args.network}.jsonl", KEYS)
    measure(args, record)
    write_text(RESULTS / f"calibration_{args.network}.md", table(args, record))


if __name__ == "__main__":
    main()
