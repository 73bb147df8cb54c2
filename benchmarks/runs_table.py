"""A table of runs of the command line: what was chosen, top-1, seconds, machine.

    python benchmarks/runs_table.py trained_resnet20_cifar10jpeg runs/w4a4 runs/w3a3

Reads `config.yaml` and `metrics.json` of every folder, adds them to the record
`results/NAME.jsonl` unless they are there, and writes `results/NAME.md`. Runs without labelled
data are refused: there is nothing to compare.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import RESULTS, Record

from datafree.config import Method, RunConfig, build, load_config
from datafree.files import write_text

_HEAD = (
    "bits", "policy", "placement", "weights per", "rounding", "training", "biases", "seed",
    "teacher", "student", "after the last step", "seconds",
)  # fmt: skip
KEYS = ("student_digest", "config")


def cell(folder: Path) -> dict[str, Any]:
    """What one run chose and measured."""
    config = load_config(folder / "config.yaml")
    told = json.loads((folder / "metrics.json").read_text())
    results, accuracy = told["results"], told["results"].get("top1")
    if accuracy is None:
        raise SystemExit(f"{folder} was measured without labelled data: run it with --data")
    chosen = config.model_dump(mode="json", exclude_defaults=True, exclude={"data"})
    # Where the file lay on the machine that ran it tells nobody anything.
    chosen["model"]["source"] = Path(config.model.source).name
    return {
        "config": chosen,
        "student_digest": told["hashes"]["student.safetensors"],
        "top1": accuracy,
        "test_images": results["test_images"],
        "seconds": told["seconds"],
        "environment": told["environment"],
    }


def row(found: dict[str, Any]) -> str:
    """One line of the table."""
    config = build(RunConfig, found["config"], "record")
    scheme, top1 = config.scheme, found["top1"]
    values = (
        scheme.label, scheme.policy, scheme.placement, scheme.weight_granularity,
        _words(config.reconstruction) or "nearest", _words(config.training) or "none",
        config.bias_rule or "as they are", config.seed, f"{top1['teacher']:.2f}",
        f"{top1['student']:.2f}", f"{top1.get('student after the last step', 0.0):.2f}",
        f"{sum(found['seconds'].values()):.0f}",
    )  # fmt: skip
    return "| " + " | ".join(map(str, values)) + " |"


def _words(method: Method | None) -> str:
    if method is None:
        return ""
    return " ".join([method.name, *(f"{k}={v}" for k, v in method.options.items())])


def main() -> None:
    """Read the folders, fill the record, write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the record")
    parser.add_argument("folders", nargs="*", type=Path, help="of runs; none writes the table")
    args = parser.parse_args()
    record = Record(RESULTS / f"{args.name}.jsonl", KEYS)
    for folder in args.folders:
        found = cell(folder)
        if not record.has(**found):
            record.add(**found)
    env, images = record.cells[-1]["environment"], record.cells[-1]["test_images"]
    lines = [
        f"# {args.name}: runs of the command line",
        "",
        f"Top-1 on {images} images. {env['processor']}, {env['cores']} cores, {env['threads']}"
        f" thread(s), torch {env['packages']['torch']}; seconds from start to checked ONNX file.",
        "",
        "| " + " | ".join(_HEAD) + " |",
        "|---" * len(_HEAD) + "|",
        *(row(found) for found in record.cells),
    ]
    write_text(RESULTS / f"{args.name}.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
