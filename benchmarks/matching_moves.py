"""How far SADAG's matching moved Genie's images: distances over norms, per image.

    python benchmarks/matching_moves.py

Both sets begin with the same warm-up and seed; they are those of `reconstruction_table.py`.
"""

from __future__ import annotations

import argparse

from common import ImageSet, load

NETWORK = "resnet20_cifar10jpeg"


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bits", nargs="+", default=["W4A4", "W3A3", "W2A4", "W2A2"])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--synthesis-iterations", type=int, default=500)
    args = parser.parse_args()
    teacher, graph = load(NETWORK)
    budget = (args.images, args.synthesis_iterations, 0)
    before = ImageSet(NETWORK, "genie", *budget).get(teacher, graph).images.flatten(1)
    for bits in args.bits:
        after = ImageSet(NETWORK, f"sadag-{bits}", *budget).get(teacher, graph).images.flatten(1)
        moved = (after - before).norm(dim=1) / before.norm(dim=1)
        print(f"{bits}: {moved.mean():.3f}, {moved.min():.3f} to {moved.max():.3f}", flush=True)


if __name__ == "__main__":
    main()
