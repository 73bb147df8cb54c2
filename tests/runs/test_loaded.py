"""Runs as objects, pages and comparisons: read from folders that were moved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import datafree
from datafree.config import RunConfig
from datafree.errors import ConfigError
from datafree.models import from_module
from datafree.runs.compared import compare_runs
from datafree.runs.curves import plot_layers
from datafree.runs.loaded import Run, load_run
from datafree.runs.page import page_of, size_in_words, verdict_of
from datafree.runs.pipeline import Result, run
from datafree.runs.repeating import repeated
from networks import SPEC, build

pytestmark = pytest.mark.integration


def made_in(folder: Path, bits: str, **changes: object) -> Result:
    teacher = from_module(build("Tiny"), input_shape=SPEC.shape)
    config = RunConfig(
        model="<Tiny in memory>", input_shape=SPEC.shape, bits=bits, method="noise", images=4,
        calibrator="minmax", holdout=4, export=False, latency=False, device="cpu",
    )  # fmt: skip
    return run(config.model_copy(update=changes), teacher=teacher, folder=folder)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    first = tmp_path_factory.mktemp("first")
    return {bits: made_in(first / bits, bits) for bits in ("W8A8", "W4A4")}


@pytest.fixture(scope="module")
def moved(results: dict[str, Result], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("elsewhere") / "runs"
    folder = results["W8A8"].folder
    assert folder is not None
    shutil.move(folder.parent, place)
    return place


def test_a_moved_run_is_what_quantize_returned(results: dict[str, Result], moved: Path) -> None:
    made, loaded = results["W8A8"], datafree.load_run(moved / "W8A8")
    assert isinstance(loaded, Run)
    assert loaded.config == made.config
    assert loaded.metrics.keys() - {"teacher_file"} == made.metrics.keys() - {"teacher_file"}
    assert loaded.metrics["held_out"] == made.metrics["held_out"]
    assert loaded.seconds.keys() == made.seconds.keys()
    assert loaded.images.digest() == made.images.digest()
    x = made.images.images
    with torch.no_grad():
        assert torch.equal(loaded.student(x), made.student(x))
        assert torch.equal(loaded.teacher(x), made.teacher(x))
    assert loaded.result is loaded.result


def test_a_run_cannot_be_changed(moved: Path) -> None:
    with pytest.raises(AttributeError):
        load_run(moved / "W8A8").folder = Path()  # pyright: ignore[reportAttributeAccessIssue]


def test_reading_a_run_loads_no_network(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datafree.runs.loaded.restored", None)
    loaded = load_run(str(moved / "W4A4"))
    assert loaded.metrics["task"] == "classes"
    assert len(loaded.images) == 4


def test_a_moved_run_is_exported(moved: Path, tmp_path: Path) -> None:
    told = load_run(moved / "W4A4").export(tmp_path / "again.pt2")
    assert told["parity"]["mismatches"] == 0


def test_a_moved_run_is_repeated_from_the_network_it_kept(
    results: dict[str, Result], moved: Path, tmp_path: Path
) -> None:
    config = repeated(moved / "W4A4" / "config.yaml")
    assert config == repeated(moved / "W4A4")
    again = run(config, folder=tmp_path / "again")
    made = results["W4A4"]
    assert again.metrics["teacher"] == made.metrics["teacher"]
    x = made.images.images
    with torch.no_grad():
        assert torch.equal(again.student(x), made.student(x))
    assert (tmp_path / "again" / "teacher.pt2").exists()


def test_without_the_network_there_is_nothing_to_repeat(tmp_path: Path) -> None:
    made_in(tmp_path, "W8A8", keep_teacher=False)
    with pytest.raises(ConfigError, match="call quantize in Python again"):
        repeated(tmp_path / "config.yaml")


def test_a_page_has_what_was_measured(moved: Path) -> None:
    page = page_of(load_run(moved / "W4A4").stored)
    rows = {s.title: dict(s.rows) for s in page.sections}
    assert page.title == f"<Tiny in memory> W4A4 in {moved / 'W4A4'}"
    assert "same prediction" in rows["how good"]["unlabelled"]
    noise = load_run(moved / "W4A4").metrics["sqnr_db"]
    assert next(iter(rows["weakest layers"])) == min(noise, key=lambda name: noise[name])
    assert rows["files"].keys() == {path.name for path in (moved / "W4A4").iterdir()}
    assert page.command.endswith("W4A4/config.yaml --output again")


def test_a_comparison_has_differences_alone(moved: Path) -> None:
    found = compare_runs([moved / "W8A8", moved / "W4A4"])
    assert found.names == ("W8A8", "W4A4")
    assert found.settings == (("bits", ("W8A8", "W4A4")),)
    measures = dict(found.measures)
    assert measures["bits"] == ("W8A8", "W4A4")
    told = load_run(moved / "W4A4").metrics["held_out"]["kl"]
    assert measures["KL"][1] == f"{told:.4f}"
    assert "student.onnx" not in measures  # no run has one
    assert found.notes == ()
    assert list(found.layers["W8A8"]) == list(load_run(moved / "W8A8").metrics["sqnr_db"])


def test_what_must_not_be_compared_is_noted(moved: Path, tmp_path: Path) -> None:
    made_in(tmp_path / "W8A8", "W8A8", policy="first_last_8", seed=1)
    record = json.loads((tmp_path / "W8A8" / "metrics.json").read_text())
    record["environment"]["packages"]["torch"] = "9.9"
    (tmp_path / "W8A8" / "metrics.json").write_text(json.dumps(record))
    found = compare_runs([moved / "W8A8", tmp_path / "W8A8"])
    assert len(set(found.names)) == 2
    assert {name for name, _ in found.settings} == {"policy", "seed"}
    assert any("policies differ" in note for note in found.notes)
    assert any("torch" in note for note in found.notes)


def test_one_run_alone_is_not_compared(moved: Path) -> None:
    with pytest.raises(ConfigError, match="at least two"):
        compare_runs([moved / "W8A8"])


def test_layers_are_drawn(moved: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = compare_runs([moved / "W8A8", moved / "W4A4"])
    plot_layers(found.layers, tmp_path / "layers.svg")
    drawn = (tmp_path / "layers.svg").read_text()
    assert drawn.count('id="line2d_') > 2
    with pytest.raises(ConfigError, match="no picture"):
        plot_layers(found.layers, tmp_path / "layers.txt")
    with pytest.raises(ConfigError, match="made without images"):
        plot_layers({"a": {}}, tmp_path / "none.png")


def complaint(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_run(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_run_says_what_it_is(moved: Path, tmp_path: Path) -> None:
    assert "there is no folder" in complaint(tmp_path / "none")
    assert "is a file" in complaint(moved / "W8A8" / "metrics.json")
    assert "is not a run" in complaint(tmp_path)
    assert "W4A4 in it is one" in complaint(moved)
    with pytest.raises(ConfigError, match="not a int"):
        load_run(3)  # pyright: ignore[reportArgumentType]


def copied(moved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(moved / "W8A8", tmp_path / "copy"))


def test_unfinished_and_damaged_runs(moved: Path, tmp_path: Path) -> None:
    folder = copied(moved, tmp_path)
    (folder / "metrics.json").write_text("{")
    assert "cannot read" in complaint(folder)
    (folder / "metrics.json").write_text("[]")
    assert "not the record of a run" in complaint(folder)
    (folder / "metrics.json").unlink()
    assert "--resume" in complaint(folder)


def test_a_run_of_another_version_says_so(moved: Path, tmp_path: Path) -> None:
    folder = copied(moved, tmp_path)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "warp": 9}))
    assert "warp is not known" in complaint(folder)
    record = json.loads((folder / "metrics.json").read_text())
    record["environment"]["packages"]["datafree"] = "7.0"
    (folder / "metrics.json").write_text(json.dumps(record))
    assert "was written by datafree 7.0, and this is" in complaint(folder)


@pytest.mark.parametrize(
    ("size", "told"), [(12, "12 bytes"), (1500, "1.5 kB"), (97_400, "97 kB"), (3e9, "3.0 GB")]
)
def test_sizes(size: float, told: str) -> None:
    assert size_in_words(int(size)) == told


def test_a_verdict_is_a_word_and_its_reason() -> None:
    assert verdict_of({}) == ""
    assert verdict_of({"verdict": {"word": "check", "why": "1 to 2 points lost"}}) == (
        "check, 1 to 2 points lost"
    )
