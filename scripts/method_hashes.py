"""What every method makes of the digits network, as hashes: has a change of the code changed it?

    python scripts/method_hashes.py --write      # before a change
    python scripts/method_hashes.py              # after it: compares, and names what differs

`method_hashes.txt` has what the last comparison said.

Every image method, calibrator, reconstruction and training runs once with settings so small that
all of them take a minute. Hashes hold for one processor and one version of torch, which are written
beside them: on another machine write first, from the commit before the change. Runs are for the
target `paper`, whose numbers a new target of the library does not change.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import datafree
from datafree.config import Frozen, RunConfig
from datafree.generators import Generator, GeneratorConfig, save_generator
from datafree.registry import available, load
from datafree.runs.record import environment
from datafree.synthesis.base import Synthesizer
from datafree.tensors import random_numbers, state_digest

RECORD = Path(__file__).with_suffix(".json")
TINY: dict[str, dict[str, Any]] = {
    "synthesis": {
        "iterations": 4, "matching_iterations": 3, "student_iterations": 3, "margin_images": 16,
        "latent_dim": 16,
    },
    "calibrators": {},
    "reconstruction": {"iterations": 4, "activation_iterations": 3, "batch_size": 8},
    "training": {
        "warmup": 3, "iterations": 4, "batch_size": 8, "calibration_images": 16, "holdout": 16,
        "checks": 2, "margin_images": 16, "latent": 10, "width": 8,
    },
}  # fmt: skip
BASE: dict[str, Any] = {
    "model": "digits_resnet8",
    "target": "paper",
    "bits": "W3A4",
    "weight_range": "minmax",
    "method": "zeroq",
    "method_options": {"iterations": 4},
    "images": 8,
    "holdout": 0,
    "export": False,
    "device": "cpu",
    "seed": 5,
}
FIELDS = {
    "synthesis": "method",
    "calibrators": "calibrator",
    "reconstruction": "reconstruction",
    "training": "training",
}
"""Packages of methods, and the field of a run that chooses from each."""


def run_of(package: str, name: str, generator: Path) -> RunConfig:
    """The run that hashes method `name` of `package`, with as few steps as it allows."""
    cls = load(f"datafree.{package}", name, Frozen)
    options = {k: v for k, v in TINY[package].items() if k in cls.model_fields}
    if name == "generator":
        options["path"] = str(generator)
    field = FIELDS[package]
    chosen: dict[str, Any] = {**BASE, field: name, f"{field}_options": options}
    if name == "distill":
        chosen["student"] = "digits_resnet8"
    return RunConfig.model_validate(chosen)


def hashes(generator: Path) -> dict[str, dict[str, str]]:
    """By ``package/name``: the digests of images and student."""
    found: dict[str, dict[str, str]] = {}
    for package in FIELDS:
        for name in available(f"datafree.{package}"):
            cls = load(f"datafree.{package}", name, Frozen)
            if issubclass(cls, Synthesizer) and cls.needs_attention:
                continue  # the digits network has none
            result = datafree.run(run_of(package, name, generator))
            found[f"{package}/{name}"] = {
                "images": result.images.digest(),
                "student": state_digest(result.student.state_dict()),
            }
            print(f"{package}/{name}", flush=True)
    return found


def main() -> None:
    """Write the record, or compare with it; exit code 1 where anything differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write {RECORD.name}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "generator.safetensors"
        config = GeneratorConfig(shape=(1, 8, 8), classes=10, latent=10, width=8)
        save_generator(Generator(config, random_numbers(0, "weights")), path)
        found = hashes(path)
    env = {key: environment()[key] for key in ("processor", "packages")}
    if args.write:
        RECORD.write_text(json.dumps({"environment": env, "hashes": found}, indent=2) + "\n")
        return
    before = json.loads(RECORD.read_text())["hashes"]
    wrong = sorted(name for name in before | found if before.get(name) != found.get(name))
    print(f"{len(found) - len(wrong)} of {len(before)} are the same")
    sys.exit(f"different: {', '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main()
