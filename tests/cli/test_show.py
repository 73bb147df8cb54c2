"""Finished runs on the command line: shown, compared, evaluated and exported after they moved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from commands import FACTORY, INPUT, Command, refused
from datafree.zoo import load_digits_test

STILL = ("--method", "noise", "--images", "4", "--calibrator", "minmax", "--holdout", "2")
QUIET = ("--device", "cpu", "--no-latency", "--no-export")


@pytest.fixture
def two(datafree_command: Command, tmp_path: Path) -> Path:
    """Two runs of a network whose file is gone, in a folder they were not made in."""
    (tmp_path / "nets.py").write_text(FACTORY)
    for bits in ("W8A8", "W4A4"):
        options = ("--bits", bits, "--keep-teacher", "--output", f"made/{bits}")
        done = datafree_command("quantize", "nets.py:net", *INPUT, *STILL, *QUIET, *options)
        assert done.code == 0, done.err
        assert "teacher.pt2" in done.out
    (tmp_path / "nets.py").unlink()
    shutil.move(tmp_path / "made", tmp_path / "moved")
    return tmp_path / "moved"


@pytest.mark.e2e
def test_moved_runs_are_shown_compared_evaluated_and_exported(
    datafree_command: Command, two: Path, tmp_path: Path
) -> None:
    shown = datafree_command("show", two / "W4A4")
    assert shown.code == 0, shown.err
    for part in ("W4A4, policy all", "weakest layers", "teacher.pt2", "datafree quantize --config"):
        assert part in shown.out
    wide = [line for line in shown.out.splitlines() if len(line) > 80]
    assert all(str(two) in line for line in wide)  # only paths are never broken

    compared = datafree_command("compare", two / "W8A8", two / "W4A4", "--plot", "layers.png")
    assert compared.code == 0, compared.err
    assert "settings that differ" in compared.out
    assert (tmp_path / "layers.png").stat().st_size > 1000

    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (10, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "test.npz", images=images, labels=np.arange(10) % 5)
    done = datafree_command("evaluate", two / "W4A4", "--data", "test.npz")
    assert done.code == 0, done.err
    (written,) = json.loads((two / "W4A4" / "evaluation.json").read_text())
    assert written["test_images"] == 10
    assert "10 images of test.npz" in datafree_command("show", two / "W4A4").out

    done = datafree_command("export", two / "W8A8", "--output", "student.onnx")
    assert done.code == 0, done.err
    alone = datafree_command("evaluate", "student.onnx", "--data", "test.npz")
    assert alone.code == 0, alone.err
    done = datafree_command("evaluate", two / "W8A8", "--data", "test.npz")
    (written,) = json.loads((two / "W8A8" / "evaluation.json").read_text())
    assert f"{written['top1']['student']:.2f}" in alone.out

    again = ("--config", two / "W8A8" / "config.yaml", "--output", "again")
    assert datafree_command("quantize", *again).code == 0
    both = datafree_command("compare", two / "W8A8", "again")
    assert "student" in both.out
    first, second = (
        json.loads((folder / "metrics.json").read_text())["results"]
        for folder in (two / "W8A8", tmp_path / "again")
    )
    assert first["sqnr_db"] == second["sqnr_db"]


@pytest.mark.integration
def test_a_dry_run_tells_time_and_memory_and_writes_nothing(
    datafree_command: Command, tmp_path: Path
) -> None:
    command = ("quantize", "digits_resnet8", "--bits", "W4A4", *STILL, "--dry-run")
    done = datafree_command(*command)
    assert done.code == 0, done.err
    for part in ("4 bits", "expected to take", "GB of memory", "nothing was done"):
        assert part in done.out
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("x")
    refused(datafree_command(*command), "exists", "--force")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("show", "none"), ("there is no folder none",)),
        (("show", "."), ("is not a run",)),
        (("compare", "."), ("at least two",)),
        (("compare", ".", "none", "--plot", "x.txt"), ("no picture", ".png")),
        (("evaluate", "none.onnx"), ("there is no file none.onnx",)),
        (("evaluate", ".", "--mean", "0,0,0"), ("--mean goes with an ONNX file",)),
        (("evaluate", "x.onnx", "--onnx"), ("--onnx goes with a run's folder",)),
    ],
)
def test_mistakes_take_one_line(
    datafree_command: Command, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    refused(datafree_command(*arguments), *parts)


@pytest.mark.e2e
def test_a_file_of_another_tool_is_asked_for_its_normalisation(
    datafree_command: Command, tmp_path: Path
) -> None:
    pixels, labels = load_digits_test()
    np.savez(tmp_path / "digits.npz", images=pixels, labels=labels)
    done = datafree_command("quantize", "digits_resnet8", *STILL, "--no-latency", "--bits", "W8A8")
    assert done.code == 0, done.err
    import onnx

    model = onnx.load(tmp_path / "run" / "student.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    data = ("--data", "digits.npz", "--limit", "50")
    refused(datafree_command("evaluate", "bare.onnx", *data), "--mean and --std")
    given = ("--mean", "0.3054", "--std", "0.376")
    bare = datafree_command("evaluate", "bare.onnx", *data, *given)
    assert bare.code == 0, bare.err
    told = datafree_command("evaluate", "run/student.onnx", *data)
    assert [line.split()[-2] for line in bare.out.splitlines() if "bare.onnx │" in line] == [
        line.split()[-2] for line in told.out.splitlines() if "student.onnx │" in line
    ]
