"""The record of a run."""

from __future__ import annotations

import copy
import gc
import json
import math
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from datafree.errors import DatafreeError
from datafree.files import sha256
from datafree.jsons import from_json
from datafree.runs.record import Stopwatch, environment, write_metrics
from networks import captured


def test_stages_stand_in_order_and_add_up() -> None:
    watch = Stopwatch()
    with watch.stage("first"):
        pass
    with watch.stage("second"):
        pass
    before = watch.seconds["first"]
    with watch.stage("first"):
        sum(range(10_000))
    assert list(watch.seconds) == ["first", "second"]
    assert watch.seconds["first"] > before


def test_a_failing_stage_is_timed() -> None:
    watch = Stopwatch()
    with pytest.raises(ValueError, match="oops"), watch.stage("bad"):
        raise ValueError("oops")
    assert "bad" in watch.seconds


def test_what_a_stage_leaves_is_given_back() -> None:
    """Of a large network: graphs refer to themselves, and live until circles are looked for."""
    watch = Stopwatch()
    with watch.stage("capture"):
        watch.network = nn.Linear(2048, 2048)
    gc.disable()
    try:
        with watch.stage("next"):
            copied = copy.deepcopy(captured("Tiny"))
            gone = weakref.ref(copied)
            del copied
        assert gone() is None
    finally:
        gc.enable()


def test_environment_names_machine_and_versions() -> None:
    found = environment()
    assert found["packages"]["torch"] == torch.__version__
    assert found["packages"]["datafree"]
    assert found["threads"] == torch.get_num_threads()
    assert json.loads(json.dumps(found)) == found


def test_metrics_hold_results_hashes_and_times(tmp_path: Path) -> None:
    (tmp_path / "b.bin").write_bytes(b"b")
    (tmp_path / "a.bin").write_bytes(b"a")
    (tmp_path / ".hidden").touch()
    (tmp_path / "folder").mkdir()
    path = tmp_path / "metrics.json"
    path.write_text("old", encoding="utf-8")
    write_metrics(path, {"top1": {"student": 97.5}}, {"capture": 1.23456})
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["results"] == {"top1": {"student": 97.5}}
    assert record["seconds"] == {"capture": 1.235}
    assert list(record["hashes"].items()) == [
        (name, sha256(tmp_path / name)) for name in ("a.bin", "b.bin")
    ]
    assert path.read_text(encoding="utf-8").endswith("}\n")


def test_what_a_runtime_measured_is_no_result_of_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    results = {"top1": {"student": 97.5}, "runtime": {"integer": 3, "latency_ms": [1.5]}}
    write_metrics(path, results, {})
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["results"] == {"top1": {"student": 97.5}}
    assert record["runtime"] == {"integer": 3, "latency_ms": [1.5]}
    assert "runtime" in results


def test_records_are_json_without_nan_or_infinities(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    results = {"sqnr_db": {"a": math.inf, "c": 3.0}, "history": [{"kl": -math.inf}]}
    write_metrics(path, results, {})
    text = path.read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail)["results"] == {
        "sqnr_db": {"a": "Infinity", "c": 3.0}, "history": [{"kl": "-Infinity"}],
    }  # fmt: skip
    assert from_json(text)["results"] == results


def test_a_result_that_is_no_number_is_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    with pytest.raises(DatafreeError, match=r"metrics\.json, results, kl: .* not a number"):
        write_metrics(path, {"kl": math.nan}, {})
    assert not path.exists()
