"""How the rates of learned rounding should follow the number of steps.

    python benchmarks/rates_by_steps.py --pairs 100:1 100:10 100:30 100:50 100:100 \
        500:1 500:10 500:30
    python benchmarks/rates_by_steps.py --bits W4A4 --pairs 100:1 100:10 100:30
    python benchmarks/rates_by_steps.py --method genie_m --pairs 100:1 --options rounding_lr=0.05 \
        weight_step_lr=0.005 activation_lr=0.002

Top-1 of ResNet-20 on the first test images, and the share of roundings that were still undecided
when learning ended, on 256 images of genie. Prints; keeps no record.
"""

from __future__ import annotations

import argparse

from common import ImageSet, calibrated, fast_folded, load, reconstructor, test_batches

from datafree.evaluate import top1

NETWORK = "resnet20_cifar10jpeg"


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", default="adaround")
    parser.add_argument("--bits", default="W2A4")
    parser.add_argument("--pairs", nargs="+", default=["100:10", "100:50"], help="steps:lr_factor")
    parser.add_argument("--options", nargs="*", default=[], help="of the method, name=number")
    parser.add_argument("--limit", type=int, default=2000)
    args = parser.parse_args()
    teacher, graph = load(NETWORK)
    folded = fast_folded(graph)
    images = ImageSet(NETWORK, "genie", 256, 500, 0).get(teacher, graph).images
    batches = test_batches(teacher.spec, limit=args.limit)
    options = {k: float(v) for k, _, v in (option.partition("=") for option in args.options)}
    for pair in args.pairs:
        steps, _, factor = pair.partition(":")
        given = {"iterations": int(steps), "lr_factor": float(factor), **options}
        student = calibrated(folded, args.bits, images)
        found = reconstructor(args.method, **given).reconstruct(folded, student, images)
        undecided = sum(o.undecided for o in found) / sum(o.rounded for o in found)
        accuracy = top1({"student": student}, batches).top1["student"]
        print(f"{args.bits} {given}: {accuracy:.2f}, {100 * undecided:.1f} % undecided", flush=True)


if __name__ == "__main__":
    main()
