from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import datafree
from datafree.config import RunConfig, load_config
from datafree.errors import BusyError, ConfigError, OutputError, OutputExistsError
from datafree.runs.folder import (
    METRICS,
    REPLACEMENT,
    interrupted,
    locked,
    refuse,
    workplace,
    writing,
)

QUICK: dict[str, Any] = {
    "method": "noise", "images": 8, "holdout": 8, "isolate": False, "latency": False,
    "report": False, "export": False,
}  # fmt: skip
HOLD = """
import sys, time
from pathlib import Path
from datafree.runs.folder import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
ONE, OTHER = RunConfig(model="digits_resnet8"), RunConfig(model="digits_resnet8", bits="W4A8")


class Stopped(BaseException):
    """As if the process had ended here."""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def made(folder: Path, config: RunConfig, *, origin: str = "o", force: bool = False) -> None:
    """A run that writes its name into two files and a record."""
    with writing(folder, config, origin, force=force) as place:
        (place / "student.onnx").write_text(config.bits)
        (place / METRICS).write_text(config.bits)


def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(BusyError, match=r"another run is writing to .*run: wait"), locked(folder):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with locked(folder):
        assert names(folder) == {".lock"}
    assert names(folder) == set()


def test_what_another_run_finished_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    refuse(tmp_path, OTHER, force=False)  # asked before the other began
    made(tmp_path, ONE)
    with pytest.raises(OutputExistsError, match="exists: choose another output"):
        made(tmp_path, OTHER)
    assert (tmp_path / "student.onnx").read_text() == "W8A8"
    assert load_config(tmp_path / "config.yaml") == ONE


def test_the_old_run_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    made(tmp_path, ONE)
    (tmp_path / "mine.txt").write_text("kept")
    (tmp_path / "weights-0123456789ab.data").write_text("of a large student")
    with writing(tmp_path, OTHER, "o", force=True) as place:
        (place / "student.onnx").write_text("half")
        assert (tmp_path / "student.onnx").read_text() == "W8A8"
        assert (tmp_path / METRICS).exists()
    assert (tmp_path / "student.onnx").read_text() == "W8A8"  # it never was whole
    assert load_config(interrupted(tmp_path)) == OTHER
    with writing(tmp_path, OTHER, "o", force=True) as place:
        assert (place / "student.onnx").read_text() == "half"  # it goes on
        (place / "student.onnx").write_text("W4A8")
        (place / METRICS).write_text("W4A8")
    assert (tmp_path / "student.onnx").read_text() == "W4A8"
    assert load_config(tmp_path / "config.yaml") == OTHER
    found = names(tmp_path) - {"unfinished"}
    assert found == {"config.yaml", METRICS, "student.onnx", "mine.txt"}


@pytest.mark.parametrize("moves", range(4))
def test_a_replacement_interrupted_while_it_is_put_in_place(
    tmp_path: Path, moves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever move it was: no finished run is seen that is half of one and half of the other."""
    made(tmp_path, ONE)
    rename, done = Path.replace, list[Path]()

    def replace(path: Path, target: Path) -> Path:
        if path.parent != target.parent:
            if len(done) == moves:
                raise Stopped
            done.append(path)
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    if moves < 3:
        with pytest.raises(Stopped):
            made(tmp_path, OTHER, force=True)
        assert not (tmp_path / METRICS).exists()
    else:
        made(tmp_path, OTHER, force=True)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="finished: there is nothing to resume"):
        interrupted(tmp_path)
    assert (tmp_path / METRICS).read_text() == "W4A8"
    assert (tmp_path / "student.onnx").read_text() == "W4A8"
    assert load_config(tmp_path / "config.yaml") == OTHER
    assert not (tmp_path / REPLACEMENT).exists()


def test_an_unfinished_run_goes_on_only_from_where_it_came(tmp_path: Path) -> None:
    with writing(tmp_path, ONE, "first", force=False) as place:
        assert place == tmp_path
        (place / "images.safetensors").write_text("made")
    with writing(tmp_path, ONE, "first", force=False) as place:
        assert (place / "images.safetensors").exists()
    with writing(tmp_path, ONE, "another network", force=False) as place:
        assert not (place / "images.safetensors").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot write"), locked(tmp_path / "run"):
        pass
    tmp_path.chmod(0o700)


@pytest.mark.integration
def test_two_runs_started_together_do_not_mix(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "datafree", "quantize", "digits_resnet8", "--output", "run",
        "--method", "noise", "--images", "16", "--holdout", "0", "--no-isolate", "--no-latency",
        "--no-report", "--bits",
    ]  # fmt: skip
    both = [
        subprocess.Popen([*command, bits], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        for bits in ("W8A8", "W4A8")
    ]
    ends = [one.communicate()[1] for one in both]
    assert sorted(one.returncode for one in both) == [0, 2]
    refused = next(text for one, text in zip(both, ends, strict=True) if one.returncode)
    assert "another run is writing to run" in refused or "run exists" in refused
    winner = next(one.args[-1] for one in both if not one.returncode)  # pyright: ignore
    run = datafree.load_run(tmp_path / "run")
    assert run.config.bits == winner
    assert "student.onnx" in names(tmp_path / "run")


@pytest.mark.integration
def test_a_forced_run_that_is_killed_leaves_the_finished_one(tmp_path: Path) -> None:
    datafree.quantize("digits_resnet8", output=tmp_path / "run", **QUICK)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    command = [
        sys.executable, "-m", "datafree", "quantize", "digits_resnet8", "--output", "run",
        "--force", "--bits", "W2A8", "--method", "zeroq", "--images", "64", "--holdout", "0",
        "--no-isolate", "--no-latency", "--no-report", "--no-export", "-o", "batch_size=16",
        "-o", "iterations=30",
    ]  # fmt: skip
    forced = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    place = tmp_path / "run" / REPLACEMENT
    while (
        not list(place.glob("unfinished/batch_*")) and not (place / "images.safetensors").exists()
    ):
        assert forced.poll() is None
        time.sleep(0.05)
    forced.kill()
    forced.wait()
    for path, content in before.items():
        assert path.read_bytes() == content
    assert datafree.load_run(tmp_path / "run").config.bits == "W8A8"
    assert workplace(tmp_path / "run") == place
    again = subprocess.run(
        [sys.executable, "-m", "datafree", "quantize", "--resume", "run"], cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert datafree.load_run(tmp_path / "run").config.bits == "W2A8"
    assert not place.exists()


def test_a_folder_stays_free_where_its_configuration_could_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OutputError("no room")

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("datafree.runs.folder.save_config", full)
        with pytest.raises(OutputError):
            made(folder, ONE)
    made(folder, OTHER)
    assert (folder / METRICS).read_text() == "W4A8"


def test_a_run_whose_configuration_was_removed_meanwhile_has_one(tmp_path: Path) -> None:
    with writing(tmp_path, OTHER, "o", force=False) as place:
        (place / "config.yaml").unlink()
        (place / METRICS).write_text("{}")
    assert load_config(tmp_path / "config.yaml") == OTHER


def test_a_folder_stays_free_where_a_run_was_killed_over_its_configuration(tmp_path: Path) -> None:
    """Killed between the temporary file and its renaming, the first thing that a run writes."""
    (tmp_path / ".datafree-config-abc.yaml").write_text("model: digits", encoding="utf-8")
    refuse(tmp_path, ONE, force=False)
    with writing(tmp_path, ONE, "origin", force=False):
        assert not (tmp_path / ".datafree-config-abc.yaml").exists()
    assert load_config(tmp_path / "config.yaml") == ONE
    (tmp_path / "thesis.tex").touch()
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(OutputExistsError):
        refuse(tmp_path, ONE, force=False)
