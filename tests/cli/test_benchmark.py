"""`datafree benchmark`: what it prints and writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import QUICK, Command, refused
from onnx_graphs import Draft, conv, saved

pytestmark = pytest.mark.integration
FAST = ("--threads", "1", "--batch", "1,2", "--seconds", "0.1")


def test_a_run_is_measured(datafree_command: Command) -> None:
    done = datafree_command("quantize", "digits_resnet8", *QUICK)
    assert done.code == 0, done.err
    assert "10 of 10 layers" in done.out and "latency" not in done.out
    done = datafree_command("benchmark", "run", *FAST)
    assert done.code == 0, done.err
    for part in (
        "run in onnxruntime", "integer kernels", "10 of 10 layers", "processor", "kB, float",
        "latency, 1 thread", "batch 2", "medians and quartiles", "speed-up",
    ):  # fmt: skip
        assert part in done.out
    written = json.loads(Path("run/benchmark.json").read_text(encoding="utf-8"))
    assert [row["batch"] for row in written["onnxruntime"]["latency_ms"]] == [1, 2]


def test_files_and_mistakes(datafree_command: Command, tmp_path: Path) -> None:
    draft = Draft()
    path = saved(draft.model(draft.quantized(conv(draft), "o")), tmp_path)
    done = datafree_command("benchmark", path, "--float-file", path, *FAST)
    assert done.code == 0, done.err
    assert "1 of 1 layers" in done.out and "layers in float" not in done.out
    alone = datafree_command("benchmark", path)
    assert alone.code == 0 and "latency" not in alone.out and "--float-file" in alone.out
    refused(datafree_command("benchmark", "nowhere"), "there is no nowhere")
    refused(datafree_command("benchmark", path, "--runtime", "tflite"), "unknown runtime")
    refused(datafree_command("benchmark", path, "--threads", "many"), "threads")
