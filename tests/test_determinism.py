"""The same seed writes the same files: whatever the process, its hash seed and its threads.

Sums of large layers are added in another order with other numbers of threads, so that larger
networks may differ in last bits there; the small one here does not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = (
    *(sys.executable, "-m", "datafree", "quantize", "digits_resnet8", "--bits", "W4A4"),
    *("--method", "zeroq", "--images", "8", "-o", "iterations=6", "--holdout", "8"),
    *("--reconstruction", "adaround", "--reconstruction-option", "iterations=8"),
    *("--keep-teacher", "--no-isolate", "--no-latency", "--no-report", "--output"),
)


@pytest.mark.e2e
def test_hash_seeds_and_threads_change_nothing(tmp_path: Path) -> None:
    hashes: list[dict[str, str]] = []
    for number, (seed, threads) in enumerate((("0", "1"), ("1", "1"), ("2", "2"))):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads}
        run = tmp_path / str(number)
        subprocess.run([*COMMAND, str(run)], check=True, capture_output=True, env=environment)
        hashes.append(json.loads((run / "metrics.json").read_text())["hashes"])
    assert {"student.onnx", "student.pt2", "teacher.pt2", "images.safetensors"} <= set(hashes[0])
    assert hashes[0] == hashes[1]
    assert hashes[0] == hashes[2]
