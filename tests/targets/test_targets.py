"""A target binds what a scheme leaves open and refuses what it does not have."""

from __future__ import annotations

from typing import Any

import pytest

from datafree.config import RunConfig, Scheme, build, merge
from datafree.errors import ConfigError
from datafree.graph.insert import weight_grid
from datafree.graph.placement import activation_grid
from datafree.targets import load_target, target_names


def scheme(**fields: Any) -> Scheme:
    return build(Scheme, fields, "scheme")


def test_every_file_is_a_target() -> None:
    assert target_names() == [
        "executorch", "litert", "onnxruntime", "openvino", "paper", "qnn", "tensorrt", "vitis",
    ]  # fmt: skip
    for name in target_names():
        target = load_target(name)
        assert target.what and target.source and target.numbers


@pytest.mark.parametrize("name", [n for n in target_names() if n != "paper"])
def test_open_fields_are_the_targets(name: str) -> None:
    found = scheme(target=name)
    assert found.placement == "every_edge" and found.symmetric_weights
    assert found.weight_granularity == ("tensor" if name == "vitis" else "channel")
    assert found.symmetric_activations == (name in ("tensorrt", "vitis"))


def test_papers_have_their_own() -> None:
    found = scheme(target="paper")
    assert found.placement == "every_input"
    assert not found.symmetric_weights and not found.symmetric_activations


def test_runs_are_for_onnxruntime_unless_they_say_otherwise() -> None:
    assert RunConfig(model="x").scheme.target == "onnxruntime"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"target": "tensorrt", "bits": "W4A4"},
            "target tensorrt has no W4A4: the nearest is W8A8",
        ),
        ({"target": "vitis", "weight_granularity": "channel"}, "one weight grid per tensor"),
        ({"target": "onnxruntime", "symmetric_weights": False}, "takes zero point 0 for weights"),
        ({"target": "tensorrt", "symmetric_activations": False}, "zero point 0 for activations"),
        ({"target": "openvino", "placement": "every_input"}, "every_edge, not every_input"),
        ({"target": "litert", "layer_bits": {"conv": 4}}, "layer_bits asks for conv: the nearest"),
        ({"target": "onnxruntim"}, "did you mean onnxruntime"),
    ],
)
def test_what_a_target_does_not_have_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        scheme(**fields)
    assert "default factory" not in str(refused.value)


def test_another_target_is_not_bound_by_what_the_first_settled() -> None:
    settled = RunConfig(model="x", target="paper").model_dump()
    moved = build(RunConfig, merge(settled, {"target": "vitis"}), "run")
    assert moved.placement == "every_edge" and moved.weight_granularity == "tensor"


@pytest.mark.parametrize(
    ("name", "bits", "limits"),
    [
        ("onnxruntime", 8, (-128, 127)),
        ("onnxruntime", 4, (-8, 7)),
        ("onnxruntime", 2, (0, 3)),
        ("tensorrt", 8, (-127, 127)),
        ("litert", 8, (-127, 127)),
        ("paper", 8, (0, 255)),
    ],
)
def test_grids_of_weights(name: str, bits: int, limits: tuple[int, int]) -> None:
    grid = weight_grid(scheme(target=name), bits)
    assert (grid.qmin, grid.qmax) == limits


@pytest.mark.parametrize(
    ("name", "signed", "limits"),
    [
        ("onnxruntime", True, (0, 255)),
        ("tensorrt", False, (-128, 127)),
        ("paper", True, (0, 255)),
    ],
)
def test_grids_of_activations(name: str, signed: bool, limits: tuple[int, int]) -> None:
    grid = activation_grid(scheme(target=name), 8, signed=signed)
    assert (grid.qmin, grid.qmax) == limits
