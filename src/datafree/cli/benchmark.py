"""The command that measures a student in a runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datafree.cli import console
from datafree.cli.options import Argument, Command, field_options, given_fields, trust_option
from datafree.cli.runtimes import (
    latency_rows,
    layer_rows,
    processor_text,
    runtime_rows,
    size_text,
)
from datafree.config import build
from datafree.config.options import BenchmarkOptions

_TEXT = """Measure a student in a runtime: integer kernels, float layers, latency.

RUN is a folder that quantize wrote, whose benchmark.json is then written, or an ONNX file with
integer weights of any tool. Both files are run in turn; medians are of a whole batch.

\b
Examples:
  datafree benchmark run
  datafree benchmark run --runtime openvino --threads 1 --batch 1,32
  datafree benchmark student.onnx --float-file float.onnx
"""


def _benchmark(run: str, trust_code: bool, **options: Any) -> None:
    from datafree.runs.benchmark import benchmark_run

    chosen = build(BenchmarkOptions, given_fields(options), "options")
    facts = console.with_trust(
        lambda trusted: benchmark_run(Path(run), chosen, console.progress, trust_code=trusted),
        trust_code,
    )
    rows = [("processor", processor_text(facts["cpu"])), ("size", size_text(facts))]
    console.show_table(
        f"{run} in {facts['runtime']}", ("what", "found"), rows + runtime_rows(facts)
    )
    if facts["floats"]:
        console.show_table(
            "layers in float", ("layer", "operator", "time", "why"), layer_rows(facts)
        )
    if facts.get("latency_ms"):
        columns = ("threads", "batch", "float, ms", "student, ms", "speed-up", "runs")
        console.show_table("medians and quartiles", columns, latency_rows(facts))
    else:
        console.out.print("Nothing was timed: give the float network with --float-file.")


benchmark = Command(
    "benchmark",
    help=_TEXT,
    callback=_benchmark,
    params=[
        Argument("run", "Model", "Folder written by quantize, or an ONNX file."),
        *field_options(BenchmarkOptions),
        trust_option(),
    ],
)
