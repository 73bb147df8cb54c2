"""Mixed precision through the whole pipeline, the Python interface and the files of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import datafree
from datafree.cli.console import bits_rows
from datafree.config import RunConfig, load_config, merge
from datafree.errors import ConfigError
from datafree.graph.insert import quantizable_layers
from datafree.runs import post_training, synthesizing
from datafree.runs.finished import restored
from datafree.runs.pipeline import Result, run
from networks import SPEC, build, images

pytestmark = pytest.mark.integration


def config(**changes: Any) -> RunConfig:
    """Four noise images, an average of 3.5 bits, no export."""
    base = RunConfig(
        model="digits_resnet8",
        policy="first_last_8",
        weight_range="mse",
        method="noise",
        images=4,
        average_bits=3.5,
        candidate_bits=(2, 4, 8),
        holdout=0,
        export=False,
        latency=False,
        device="cpu",
    )
    return RunConfig.model_validate(merge(base.model_dump(), changes))


def bits_of(result: Result) -> dict[str, int]:
    return {
        path: result.student.get_submodule(path).weight_quantizer.grid.bits  # pyright: ignore
        for path in quantizable_layers(result.teacher)
    }


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run with learned rounding and export, made once."""
    wanted = config(
        export=True, reconstruction="adaround", reconstruction_options={"iterations": 5}
    )
    return run(wanted, folder=tmp_path_factory.mktemp("runs") / "full")


@pytest.mark.e2e
def test_the_chosen_bits_reach_the_student_and_the_record(full: Result) -> None:
    assert full.folder is not None
    record = json.loads((full.folder / "metrics.json").read_text(encoding="utf-8"))
    chosen = record["results"]["allocation"]
    assert chosen["layer_bits"] == bits_of(full)
    assert chosen["layer_bits"]["stem.0"] == chosen["layer_bits"]["classifier"] == 8
    assert 3 <= chosen["average_bits"] <= 3.5
    assert len(set(bits_of(full).values())) > 1
    assert full.config.layer_bits == bits_of(full)
    written = json.loads((full.folder / "allocation.json").read_text(encoding="utf-8"))
    assert written["chosen"] == chosen
    assert (full.folder / "frontier.png").stat().st_size > 1000
    assert set(record["hashes"]) >= {"allocation.json", "frontier.png"}
    assert list(record["seconds"])[2:4] == ["allocation", "calibration"]


@pytest.mark.e2e
def test_the_written_files_compute_the_same(full: Result) -> None:
    assert full.metrics["onnx"]["parity"]["mismatches"] == 0
    assert full.metrics["pt2"]["parity"]["difference"] == 0
    # 2- and 4-bit codes take half a byte each, 8-bit codes one.
    elements, bits = full.metrics["allocation"]["elements"], bits_of(full)
    codes = sum(n * (0.5 if bits[path] <= 4 else 1) for path, n in elements.items())
    assert codes < full.metrics["onnx"]["weight_bytes"] < codes + 6 * 400


@pytest.mark.e2e
def test_a_finished_run_can_be_loaded_and_repeated(full: Result, tmp_path: Path) -> None:
    assert full.folder is not None
    loaded, x = restored(full.folder), full.images.images
    assert loaded.config.scheme.label == "WmixedA8"
    with torch.no_grad():
        assert torch.equal(loaded.student(x), full.student(x))
    asked = load_config(full.folder / "config.yaml")
    assert (asked.average_bits, asked.candidate_bits) == (3.5, (2, 4, 8))
    assert asked.layer_bits == {}
    again = run(asked.model_copy(update={"export": False}), folder=tmp_path / "again")
    assert again.metrics["allocation"] == full.metrics["allocation"]


def test_an_interrupted_run_keeps_its_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(config())

    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(post_training, "calibrate", interrupt)
        run(config(), folder=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(post_training, "allocate", interrupt)
        result = run(config(), folder=tmp_path)
    assert result.metrics == expected.metrics
    # Of another run nothing is left.
    uniform = run(
        config(average_bits=None, candidate_bits=(2, 3, 4, 5, 6, 8)), folder=tmp_path, force=True
    )
    assert set(bits_of(uniform).values()) == {8}
    assert not {"allocation.json", "frontier.png"} & {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": "1B"}, "1B cannot be kept to: the least is .* kB, with 2 bits"),
        ({"budget": "tiny"}, "budget 'tiny' is not understood"),
        ({"policy": "all", "layer_bits": {"*": 4}}, "average_bits has none to choose"),
    ],
)
def test_mistakes_are_told_before_images_are_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("synthesised before checking")

    monkeypatch.setattr(synthesizing, "synthesize_images", never)
    with pytest.raises(ConfigError, match=message):
        run(config(**changes), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def quantized(**wanted: Any) -> Result:
    return datafree.quantize(
        build("Grouped"), input_shape=SPEC.shape, images=images(4), holdout=0, device="cpu",
        calibrator="minmax", **wanted,
    )  # fmt: skip


def test_from_python() -> None:
    """Grouped has 630 weights; a stem of 216, 72, 96, 216 and 30."""
    average = quantized(average_bits=3, candidate_bits=(2, 4))
    assert set(average.config.layer_bits.values()) == {2, 4}
    assert average.metrics["allocation"]["cost"] <= 3 * 630
    assert average.config.scheme.weight_range == "mse"
    budget = quantized(budget="0.2kB", weight_range="minmax")
    assert budget.metrics["allocation"]["weight_bytes"] <= 200
    assert budget.config.scheme.weight_range == "minmax"


@pytest.mark.parametrize(
    "wanted",
    [{"average_bits": 4, "budget": "1MB"}, {"candidate_bits": (4,)}, {"average_bits": 9}],
)
def test_what_python_is_refused(wanted: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"quantize: .*(average_bits (and|or) budget|than or)"):
        quantized(**wanted)


def test_rows_of_the_table_by_hand() -> None:
    names = [f"layer{i}" for i in range(8)]
    allocation = {
        "layer_bits": dict.fromkeys(names, 4) | {"head": 8, "tail": 2},
        "elements": dict.fromkeys(names, 10) | {"head": 15, "tail": 5},
    }
    assert bits_rows(allocation) == [
        ("2", "5.0 %", "tail"),
        ("4", "80.0 %", "layer0, layer1, layer2, layer3, layer4, layer5 and 2 more"),
        ("8", "15.0 %", "head"),
    ]
