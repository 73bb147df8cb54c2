from __future__ import annotations

from typing import Any

import pytest

from datafree.config import InputSpec, build
from datafree.errors import ConfigError

INPUT: dict[str, Any] = {"shape": (3, 8, 8), "mean": (0, 0, 0), "std": (1, 1, 1), "classes": 5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (3, 0, 8)}, "at least 1"),
        ({"shape": (3, 8)}, "shape"),
        ({"mean": (0,)}, "mean has 1 values for 3 channels"),
        ({"std": (1, 1)}, "std has 2 values for 3 channels"),
        ({"std": (1, 0, 1)}, "std must be positive"),
        ({"classes": 0}, "classes"),
        (
            {"mean": (123.675, 116.28, 103.53)},
            "pixels from 0 to 255: divide both by 255, mean=0.485",
        ),
        ({"std": (58.395, 57.12, 57.375)}, "std=0.229,0.224,0.225"),
        ({"size": 3}, "size is not known .known: shape, mean, std, classes"),
    ],
)
def test_an_input_that_cannot_be_is_refused_in_one_line(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^input: .*{message}") as caught:
        build(InputSpec, {**INPUT, **change}, "input")
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match="classes: Field required"):
        build(InputSpec, {k: v for k, v in INPUT.items() if k != "classes"}, "input")
