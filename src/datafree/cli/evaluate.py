"""The command that measures networks on labelled images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datafree.cli import console
from datafree.cli.options import Argument, Command, Option, field_option, given_fields, trust_option
from datafree.config import RunConfig
from datafree.errors import ConfigError

_TEXT = """Measure teacher and student of a finished run, or an ONNX file, on labelled images.

RUN is a folder that quantize wrote, wherever it is now; what is measured is written into it, as
evaluation.json. Or it is an ONNX file alone: one of datafree says itself what it takes, of another
give --mean and --std.

\b
Examples:
  datafree evaluate run --data test.npz
  datafree evaluate run/student.onnx --data test.npz
"""
_OF_FILES = ("input_shape", "mean", "std", "task")


def _evaluate(run: str, onnx: bool, trust_code: bool, **options: Any) -> None:
    path, changes = Path(run), given_fields(options)
    if path.is_file() or path.suffix == ".onnx":
        if onnx:
            raise ConfigError(
                f"--onnx goes with a run's folder, and {path} is a file: leave it out"
            )
        from datafree.runs.file_alone import evaluate_file

        measured = evaluate_file(path, changes, progress=console.progress)
        _show(f"{path}, {measured['test_images']} images", measured)
        return
    if given := [name for name in _OF_FILES if name in changes]:
        raise ConfigError(
            f"--{given[0].replace('_', '-')} goes with an ONNX file; a run knows it: leave it out"
        )
    from datafree.runs.finished import evaluate_run

    progress = console.progress
    found = console.with_trust(
        lambda trusted: evaluate_run(
            path, changes, onnx=onnx, trust_code=trusted, progress=progress
        ),
        trust_code,
    )
    config, measured = found.config, found.measured
    title = f"{config.model} {config.label}, {config.rules_told}"
    _show(f"{title}, {measured['test_images']} images", measured)
    console.out.print(found.note or f"written to {path}/evaluation.json", highlight=False)


def _show(title: str, measured: Mapping[str, Any]) -> None:
    ((measure, (what, unit)),) = (item for item in console.MEASURES.items() if item[0] in measured)
    rows = [(name, f"{value:.2f}") for name, value in measured[measure].items()]
    console.show_table(title, ("network", what + unit), rows)


evaluate = Command(
    "evaluate",
    help=_TEXT,
    callback=_evaluate,
    params=[
        Argument("run", "Model", "Folder written by quantize, or an ONNX file."),
        *(field_option(RunConfig, name) for name in _OF_FILES),
        field_option(RunConfig, "data"),
        field_option(RunConfig, "limit"),
        field_option(RunConfig, "metric"),
        field_option(RunConfig, "decode"),
        field_option(RunConfig, "images_per_batch"),
        Option(
            ["--onnx"], "Output", is_flag=True,
            help="Also run student.onnx in onnxruntime (exact mode).",
        ),
        field_option(RunConfig, "device"),
        trust_option(),
    ],
)  # fmt: skip
