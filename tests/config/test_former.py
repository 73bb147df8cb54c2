"""Programs written for the names that options had before."""

import warnings
from typing import Any

import pytest

from datafree.config.former import renamed

QUANTIZE = ("bits", "method", "method_options", "symmetric_weights", "max_time", "images")
SYNTHESIZE = ("method", "method_options", "images", "seed")


@pytest.mark.parametrize(
    ("given", "known", "now"),
    [
        ({"weights": 4, "activations": 6}, QUANTIZE, {"bits": "W4A6"}),
        ({"weights": 4}, QUANTIZE, {"bits": "W4A8"}),
        ({"weight_symmetric": True}, QUANTIZE, {"symmetric_weights": True}),
        (
            {"weight_symmetric": True},
            (*QUANTIZE, "target"),
            {"symmetric_weights": True, "target": "tensorrt"},
        ),
        (
            {"weight_symmetric": True, "bits": "W4A8"},
            (*QUANTIZE, "target"),
            {"symmetric_weights": True, "bits": "W4A8"},
        ),
        (
            {"weight_symmetric": True, "target": "openvino"},
            (*QUANTIZE, "target"),
            {"symmetric_weights": True, "target": "openvino"},
        ),
        ({"max_seconds": 9.0}, QUANTIZE, {"max_time": 9.0}),
        ({"count": 3}, SYNTHESIZE, {"images": 3}),
        (
            {"iterations": 7, "method_options": {"lr": 1}},
            SYNTHESIZE,
            {"method_options": {"lr": 1, "iterations": 7}},
        ),
    ],
)
def test_former_names_are_understood_and_told(
    given: dict[str, Any], known: tuple[str, ...], now: dict[str, Any]
) -> None:
    with pytest.warns(FutureWarning, match=next(iter(given))):
        assert renamed(given, known) == now


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ({"bits": "W4A4", "images": 3}, QUANTIZE),
        ({"bits": "W4A4", "weights": 8}, QUANTIZE),
        ({"iterations": 7}, QUANTIZE),
        ({"sede": 7}, SYNTHESIZE),
    ],
)
def test_everything_else_is_left_as_it_is(given: dict[str, Any], known: tuple[str, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert renamed(given, known) == given
