"""Layers one by one in a run: what it proposes, and what following it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import datafree
from datafree.allocation.isolation import Isolation, Share
from datafree.cli.console import measured_rows
from datafree.config import RunConfig
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.quant.modules import QUANTIZED
from datafree.runs.pipeline import Result
from datafree.runs.weakest import proposal
from networks import SPEC, build, images

pytestmark = pytest.mark.integration
LAYERS = ("stem", "depthwise", "pointwise", "grouped", "linear")
OWN: dict[str, Any] = {"layer_bits": {"point*": "W8A8", "grouped": 6}, "keep_float": ["depthwise"]}


def quantized(**wanted: Any) -> Result:
    fields: dict[str, Any] = {
        "images": images(8),
        "holdout": 0,
        "latency": False,
        "export": False,
        **wanted,
    }
    return datafree.quantize(
        build("Grouped"), input_shape=SPEC.shape, device="cpu", calibrator="minmax", **fields
    )


def check_layers(result: Result) -> None:
    """The layers of `OWN` are as asked, in the student itself."""
    kept, wide, six = (
        result.student.get_submodule(n) for n in ("depthwise", "pointwise", "grouped")
    )
    assert not isinstance(kept, QUANTIZED)
    assert isinstance(wide, QUANTIZED) and wide.weight_quantizer.grid.bits == 8
    assert isinstance(six, QUANTIZED) and six.weight_quantizer.grid.bits == 6
    assert result.metrics["keep_float"] == ["depthwise"]


@pytest.mark.parametrize(
    "method",
    [
        {},
        *({"reconstruction": n} for n in ("adaround", "brecq", "qdrop", "genie_m")),
        {"equalize": True, "split_outliers": 0.1, "bias_correction": "empirical"},
        {"bias_correction": "analytic"},
    ],
)
def test_own_layers_with_every_rounding(method: dict[str, Any]) -> None:
    options = {"reconstruction_options": {"iterations": 3}} if "reconstruction" in method else {}
    result = quantized(bits="W4A4", **OWN, **method, **options)
    check_layers(result)
    teacher = fold_batch_norms(result.teacher).get_submodule("depthwise")
    kept = result.student.get_submodule("depthwise")
    if "equalize" not in method:
        assert torch.equal(kept.weight, teacher.weight)  # pyright: ignore


@pytest.mark.parametrize("training", ["dfqf", "gdfq", "dsg_qat"])
def test_own_layers_with_every_training(training: str) -> None:
    options = {"iterations": 2, "warmup": 2, "batch_size": 4, "width": 8}
    result = datafree.quantize(
        build("Grouped"), input_shape=SPEC.shape, device="cpu", latency=False, export=False,
        bits="W4A4", training=training, training_options=options, images=4, holdout=4, **OWN,
    )  # fmt: skip
    check_layers(result)
    assert set(result.metrics["isolation"]["by_layer"]) == set(LAYERS) - {"depthwise"}


def test_own_layers_are_paid_for_by_a_budget() -> None:
    """Of 630 weights 216 of the stem and 30 of the last layer are left to choose."""
    result = quantized(bits="W4A4", average_bits=3, candidate_bits=(2, 4), **OWN)
    check_layers(result)
    chosen = result.metrics["allocation"]
    assert {name: chosen["layer_bits"][name] for name in ("pointwise", "grouped")} == {
        "pointwise": 8, "grouped": 6,
    }  # fmt: skip
    assert "depthwise" not in chosen["layer_bits"]
    elements = chosen["elements"]
    fixed = 8 * elements["pointwise"] + 6 * elements["grouped"] + 32 * elements["depthwise"]
    assert fixed < chosen["cost"] <= fixed + 3 * (elements["stem"] + elements["linear"])
    assert result.config.layer_bits["pointwise"] == "W8A8"
    with pytest.raises(datafree.errors.ConfigError, match="average_bits has none to choose"):
        quantized(bits="W4A4", average_bits=3, layer_bits={"*": 4})


@pytest.mark.e2e
@pytest.mark.parametrize("target", ["onnxruntime", "paper", "qnn"])
def test_files_have_the_layer_in_float_and_the_report_says_so(tmp_path: Path, target: str) -> None:
    result = quantized(output=tmp_path / "run", export=True, target=target, keep_float="pointwise")
    floats = result.metrics["runtime"]["floats"]
    kept = {layer["name"]: layer["reason"] for layer in floats}
    assert kept["pointwise"] == "kept in float as asked"
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(record["results"]["isolation"]["by_layer"]) == set(LAYERS) - {"pointwise"}


def test_following_the_proposal_brings_the_student_nearer() -> None:
    """All but one layer have 8 bits: that one is named, and with 8 bits nothing is left to do."""
    weak = {"depthwise": "W2A2"}
    first = quantized(bits="W8A8", target="paper", layer_bits=weak)
    found = first.metrics["isolation"]
    assert found["weakest"] == "depthwise"
    assert found["proposal"] == "--layer-bits depthwise=W8A8"
    second = quantized(bits="W8A8", target="paper", layer_bits={"depthwise": "W8A8"})
    assert second.metrics["isolation"]["total"] < 0.1 * found["total"]
    assert "isolation" not in quantized(isolate=False).metrics


@pytest.mark.parametrize(
    ("fields", "total", "expected"),
    [
        ({"bits": "W4A8"}, 1.0, "--layer-bits pointwise=8"),
        ({"bits": "W4A4"}, 1.0, "--layer-bits pointwise=W8A8"),
        ({"bits": "W4A32"}, 1.0, "--layer-bits pointwise=8"),
        ({"bits": "W8A8"}, 1.0, "--keep-float pointwise"),
        ({"bits": "W8A8", "target": "litert"}, 1.0, "--keep-float pointwise"),
        ({"bits": "W4A4"}, 0.001, None),
    ],
)
def test_what_is_proposed(fields: dict[str, Any], total: float, expected: str | None) -> None:
    config = RunConfig(model="x", **fields)
    graph = fold_batch_norms(capture(build("Grouped"), SPEC))
    student = insert_quantizers(graph, config.scheme, SPEC)
    shares = {"stem": Share(0.1 * total, 0.95 * total), "pointwise": Share(0.5 * total, total / 2)}
    assert proposal(Isolation(total, shares, 5, 8), student, config) == expected


def test_a_row_of_the_table_by_hand() -> None:
    shares = {"a": {"alone": 0.25, "without": 0.125}}
    found = {
        "weakest": "a", "total": 0.5, "measured": 1, "layers": 3, "by_layer": shares,
        "proposal": "--layer-bits a=8",
    }  # fmt: skip
    assert measured_rows({"isolation": found, "sqnr_db": {"z": 1.0}}) == [
        (
            "weakest layer",
            "a: divergence 0.25 by itself, 0.125 instead of 0.5 without it"
            " (1 of 3 layers measured)",
        ),
        ("", "try --layer-bits a=8"),
    ]
