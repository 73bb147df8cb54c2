"""Top-1 of ResNet-20 with learned rounding, before and after biases are corrected.

    python benchmarks/biases_after_rounding.py --iterations 300

Why `--bias-correction auto` leaves learned rounding alone: 256 images of Genie (500 steps), policy
`brecq`, seed 0. Prints its results and keeps nothing.
"""

from __future__ import annotations

import argparse

import torch
from common import ImageSet, calibrated, load, reconstructor, scheme_of, test_batches

from datafree.config import ModelConfig, RunConfig
from datafree.corrections.analytic_bias import correct_biases_analytically
from datafree.corrections.prepare import prepare
from datafree.evaluate import top1

NETWORK = "resnet20_cifar10jpeg"
CASES = (("W2A4", "adaround"), ("W3A3", "genie_m"), ("W4A4", "adaround"))


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--limit", type=int, default=None)
    args = parser.parse_args()
    teacher, graph = load(NETWORK)
    images = ImageSet(NETWORK, "genie", 256, 500, 0).get(teacher, graph).images
    config = RunConfig(model=ModelConfig(source=NETWORK), scheme=scheme_of("W4A4"))
    folded, statistics = prepare(graph, config)
    folded = folded.to(memory_format=torch.channels_last)  # pyright: ignore
    batches = test_batches(teacher.spec, limit=args.limit)
    for bits, name in CASES:
        student = calibrated(folded, bits, images)
        method = reconstructor(name, iterations=args.iterations)
        method.reconstruct(folded, student, images)
        learned = top1({"student": student}, batches).top1["student"]
        correct_biases_analytically(folded, student, statistics, teacher.spec)
        both = top1({"student": student}, batches).top1["student"]
        print(f"{bits} {name}: {learned:.2f}, biases corrected {both:.2f}", flush=True)


if __name__ == "__main__":
    main()
