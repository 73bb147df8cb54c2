"""The pictures of docs/gallery.md: eight images of each method, of real networks.

    PYTHONPATH=src:. python scripts/gallery.py            # all of them: half an hour
    PYTHONPATH=src:. python scripts/gallery.py dsg genie  # some

Needs the shared data (`$DATAFREE_SHARED`, or ../shared). Nothing is copied from it: every pixel is
made by a method from the weights of a network. The page names the steps, which are those here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.networks import load
from benchmarks.place import Place

import datafree
from datafree.images import SyntheticSet

FOLDER = Path(__file__).parents[1] / "docs" / "images"
RESNET, VIT = "resnet20_cifar10jpeg", "small_vit_cifar10"
PICTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "noise": (RESNET, "noise", {}),
    "zeroq": (RESNET, "zeroq", {"iterations": 500}),
    "dsg": (RESNET, "dsg", {"iterations": 500}),
    "dsg_excited": (RESNET, "dsg", {"iterations": 500}),
    "intraq": (RESNET, "intraq", {"iterations": 500}),
    "genie": (RESNET, "genie", {"iterations": 500}),
    "sadag": (RESNET, "sadag", {"iterations": 300, "matching_iterations": 20}),
    "psaq": (VIT, "psaq", {"iterations": 500}),
    "sardfq": (VIT, "sardfq", {"iterations": 500}),
    "prior": (VIT, "prior", {"iterations": 200}),
}
"""By file: the network, the method, and its options."""


def picture(name: str) -> SyntheticSet:
    """Eight images."""
    network, method, options = PICTURES[name]
    teacher = load(network, Place.here()).teacher
    return datafree.synthesize(
        teacher.model, input_shape=teacher.spec.shape, mean=teacher.spec.mean,
        std=teacher.spec.std, method=method, method_options=options, images=8, seed=0,
        excite=name.endswith("_excited"), device="cpu",
    )  # fmt: skip


def main(names: list[str]) -> None:
    """Write the pictures called so; all of them where none is named."""
    for name in names or list(PICTURES):
        path = FOLDER / f"gallery_{name}.png"
        picture(name).save_grid(path, columns=8, limit=8)
        print(path, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
