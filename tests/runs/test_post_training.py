"""Networks whose branches become one convolution, through every stage of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import datafree
from datafree.graph.taps import batch_norms
from networks import SPEC, build

LAYERS = ["stem", "wide", "deep", "linear"]
BRANCHES = ["stem", "wide", "point", "deep", "twin", "scale", "linear"]
SHORT: dict[str, Any] = {
    "warmup": 2, "iterations": 2, "batch_size": 4, "width": 4, "calibration_images": 8,
    "holdout": 4, "checks": 1,
}  # fmt: skip

pytestmark = pytest.mark.integration


def quantized(folder: Path, **options: Any) -> datafree.Result:
    return datafree.quantize(
        build("Branched"), input_shape=SPEC.shape, mean=SPEC.mean, std=SPEC.std, images=8,
        output=folder / "run", **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"method": "noise", "equalize": True, "absorb_biases": True, "bias_correction": "analytic"},
        {"method": "noise", "split_outliers": 0.1, "bias_correction": "empirical"},
        {"method": "zeroq", "method_options": {"iterations": 2}},
        {"method": "noise", "reconstruction": "adaround",
         "reconstruction_options": {"iterations": 2}},
        {"training": "dfqf", "training_options": SHORT},
        {"training": "dfqf", "training_options": SHORT, "bias_correction": "analytic"},
    ],
    ids=lambda options: " ".join(f"{value}" for value in list(options.values())[:2])[:20],
)  # fmt: skip
def test_branches_are_one_layer_in_every_stage(options: dict[str, Any], tmp_path: Path) -> None:
    result = quantized(tmp_path, **options)
    assert list(result.metrics["sqnr_db"]) == LAYERS
    assert min(result.metrics["sqnr_db"].values()) > 10
    assert not batch_norms(result.student)
    assert result.metrics["onnx"]["parity"]["mismatches"] == 0
    assert result.metrics["onnx"]["unquantized_bytes"] == 0


def test_bits_are_chosen_for_merged_layers(tmp_path: Path) -> None:
    result = quantized(tmp_path, method="noise", average_bits=6)
    assert list(result.config.layer_bits) == LAYERS


def test_a_student_with_norms_keeps_its_branches(tmp_path: Path) -> None:
    """Its bits are those of all its layers."""
    options = SHORT | {"batch_norm": "frozen"}
    result = quantized(tmp_path, training="dfqf", training_options=options, layer_bits={"point": 4})
    assert sorted(result.metrics["sqnr_db"]) == sorted(BRANCHES)
    assert len(batch_norms(result.student)) == 5


def test_ranges_of_merged_layers_are_known_from_norms(tmp_path: Path) -> None:
    """The last sum of this network has branches without a norm, so that nobody knows its range."""
    with pytest.raises(datafree.DatafreeError, match="range"):
        quantized(tmp_path, calibrator="bn_statistics")
