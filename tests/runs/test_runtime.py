"""What a runtime made of a student: in every run, and measured once more."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import datafree
from datafree.config import RunConfig
from datafree.config.options import BenchmarkOptions
from datafree.errors import ConfigError, InferenceError, UnknownNameError
from datafree.runs.benchmark import benchmark_run
from datafree.runs.pipeline import Result, run
from datafree.runs.runtime import Settings, runtime_facts
from datafree.testing.watching import Counter
from networks import SPEC, build
from onnx_graphs import Draft, conv, saved

pytestmark = pytest.mark.integration

CONFIG = RunConfig(
    model="digits_resnet8", bits="W8A8", method="noise", images=4, calibrator="minmax", holdout=0,
    device="cpu",
)  # fmt: skip
QUICK = BenchmarkOptions(threads=(1,), batch=(1,), seconds=0.05)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run with everything, made once."""
    return run(CONFIG, folder=tmp_path_factory.mktemp("runs") / "made")


@pytest.fixture
def folder(made: Result, tmp_path: Path) -> Path:
    """A copy of it to write to."""
    assert made.folder is not None
    return shutil.copytree(made.folder, tmp_path / "run")


def test_a_run_tells_what_the_runtime_made_of_its_file(made: Result) -> None:
    assert made.folder is not None
    facts = made.metrics["runtime"]
    assert facts["runtime"].startswith("onnxruntime 1.")
    assert facts["total"] == 10  # stem, three blocks with two shortcuts, classifier
    assert facts["integer"] + len(facts["floats"]) == facts["total"]
    assert all(layer["name"] and layer["reason"] for layer in facts["floats"])
    assert facts["bytes"] == (made.folder / "student.onnx").stat().st_size
    assert facts["bytes"] < facts["float_bytes"]
    cells = [(row["threads"], row["batch"]) for row in facts["latency_ms"]]
    assert cells[:2] == [(1, 1), (1, 8)]
    for row in facts["latency_ms"]:
        assert row["float"] > 0 and row["student"] > 0
    written = json.loads((made.folder / "metrics.json").read_text(encoding="utf-8"))
    assert written["runtime"] == json.loads(json.dumps(facts))
    assert not (made.folder / "float.onnx").exists()
    assert "runtime" in made.seconds


def test_without_latency_kernels_are_told_and_nothing_is_timed(
    folder: Path, made: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datafree.runs.runtime.float_file", None)  # called, it would fail
    facts = runtime_facts(folder / "student.onnx", None, None)
    assert facts["integer"] == made.metrics["runtime"]["integer"]
    assert "latency_ms" not in facts
    assert all(layer["share"] is None for layer in facts["floats"])


def test_a_run_is_measured_again(folder: Path, made: Result) -> None:
    progress = Counter()
    facts = benchmark_run(folder, QUICK, progress)
    known = made.metrics["runtime"]
    for name in ("runtime", "integer", "total", "bytes", "float_bytes"):
        assert facts[name] == known[name]
    assert [(row["threads"], row["batch"]) for row in facts["latency_ms"]] == [(1, 1)]
    assert progress.done == 1
    written = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))
    assert list(written) == ["onnxruntime"]
    environment = written["onnxruntime"].pop("environment")
    assert environment["packages"]["onnxruntime"] in facts["runtime"]
    assert written["onnxruntime"] == json.loads(json.dumps(facts))


def test_other_runtimes_stand_beside(folder: Path) -> None:
    pytest.importorskip("openvino")
    given = {"float_file": _float(folder)}
    benchmark_run(folder, QUICK.model_copy(update=given))
    facts = benchmark_run(folder, QUICK.model_copy(update=given | {"runtime": "openvino"}))
    assert facts["runtime"].startswith("openvino")
    written = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))
    assert list(written) == ["onnxruntime", "openvino"]


def test_the_float_network_can_be_kept_and_is_taken_again(folder: Path) -> None:
    benchmark_run(folder, QUICK.model_copy(update={"keep_float": True}))
    kept = folder / "float.onnx"
    types = {node.op_type for node in onnx.load(kept).graph.node}
    assert "Conv" in types and not types & {"QuantizeLinear", "BatchNormalization"}
    (folder / "student.safetensors").unlink()  # no network can be made from this folder any more
    assert benchmark_run(folder, QUICK)["float_bytes"] == kept.stat().st_size


def test_a_teacher_in_memory_is_in_its_result(tmp_path: Path) -> None:
    result = datafree.quantize(
        build("Tiny"), input_shape=SPEC.shape, method="noise", images=4, calibrator="minmax",
        holdout=0, latency=False, output=tmp_path / "run", device="cpu",
    )  # fmt: skip
    facts = datafree.benchmark(result, threads=[1], batch=[1], seconds=0.05)
    assert len(facts["latency_ms"]) == 1
    kept = datafree.benchmark(tmp_path / "run", threads=[1], batch=[1], seconds=0.05)
    assert len(kept["latency_ms"]) == 1


def test_files_of_any_tool(tmp_path: Path) -> None:
    draft = Draft()
    student = saved(draft.model(draft.quantized(conv(draft), "o")), tmp_path)
    weight = Draft()
    name = weight.constant("w", np.ones((8, 8, 3, 3), np.float32))
    (tmp_path / "other").mkdir()
    base = saved(weight.model(weight.node("Conv", ["x", name], "y")), tmp_path / "other")
    facts = datafree.benchmark(student, float_file=base, threads=[1], batch=[1, 2], seconds=0.05)
    assert (facts["integer"], facts["total"]) == (1, 1)
    assert [row["batch"] for row in facts["latency_ms"]] == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["draft.onnx", "other"]
    alone = datafree.benchmark(student)
    assert alone["integer"] == 1 and "latency_ms" not in alone


def test_a_setting_without_time_is_told(tmp_path: Path) -> None:
    draft = Draft()
    path = saved(draft.model(draft.quantized(conv(draft), "o")), tmp_path)
    settings = Settings(threads=(1,), batches=(1, 50_000), seconds=0.01)
    facts = runtime_facts(path, path, (8, 12, 12), settings)
    assert [row["batch"] for row in facts["latency_ms"]] == [1]
    assert any("Left out for want of time: 1 thread, batch 50000" in n for n in facts["notes"])


def _float(folder: Path) -> Path:
    """Any network of the same input will do where none is looked at."""
    return folder / "student.onnx"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"runtime": "onnxruntim"}, UnknownNameError, "unknown runtime"),
        ({"float_file": Path("none.onnx")}, InferenceError, "none.onnx"),
    ],
)
def test_mistakes_are_named(
    change: dict[str, Any], error: type[Exception], message: str, folder: Path
) -> None:
    with pytest.raises(error, match=message):
        benchmark_run(folder, QUICK.model_copy(update=change))


def test_folders_without_a_student_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "student.onnx").unlink()
    with pytest.raises(ConfigError, match=r"holds no student\.onnx: write it with datafree export"):
        benchmark_run(folder, QUICK)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="is not a run"):
        benchmark_run(tmp_path / "empty", QUICK)
    with pytest.raises(ConfigError, match="there is no"):
        benchmark_run(tmp_path / "nowhere", QUICK)


def test_a_file_the_runtime_refuses_does_not_end_a_run(made: Result, tmp_path: Path) -> None:
    """The run is told, with what the runtime said."""
    from datafree.progress import silent
    from datafree.runs.runtime import facts_of_run

    draft = Draft()
    path = saved(draft.model(draft.node("NoSuchOperator", ["x"], "y")), tmp_path)
    facts = facts_of_run(
        path, made.teacher, made.spec, "onnxruntime", latency=False, progress=silent
    )
    assert "NoSuchOperator" in facts["error"]


def test_a_run_is_measured_in_the_runtime_of_its_target(made: Result) -> None:
    """Where that is not installed, in onnxruntime, and the run says so."""
    from datafree.progress import silent
    from datafree.runs.runtime import facts_of_run

    assert made.folder is not None
    facts = facts_of_run(
        made.folder / "student.onnx", made.teacher, made.spec, "openvino",
        latency=False, progress=silent,
    )  # fmt: skip
    if find_spec("openvino") is None:
        assert facts["runtime"].startswith("onnxruntime ")
        assert "pip install 'datafree[openvino]'" in facts["notes"][0]
    else:
        assert facts["runtime"].startswith("openvino ")


def test_files_that_take_bytes_are_measured_too(tmp_path: Path) -> None:
    result = run(
        CONFIG.model_copy(update={"input_uint8": True, "latency": True}), folder=tmp_path / "run"
    )
    facts = result.metrics["runtime"]
    assert facts["integer"] == facts["total"] == 10
    assert all(row["student"] > 0 for row in facts["latency_ms"])
    again = benchmark_run(tmp_path / "run", QUICK)
    assert again["latency_ms"]
