"""Records are JSON that any reader takes, and nothing in them is lost or made up."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from datafree.errors import DatafreeError
from datafree.jsons import from_json, to_json


def strict(text: str) -> Any:
    def refused(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refused)


VALUE: dict[str, Any] = {
    "a": math.inf, "b": [1, -math.inf, {"c": [math.inf]}], "d": None, "e": "text", "f": True,
    "g": (0.5, math.inf),
}  # fmt: skip


def test_infinities_are_strings_at_any_depth_and_come_back() -> None:
    text = to_json(VALUE)
    assert strict(text)["b"][1:] == ["-Infinity", {"c": ["Infinity"]}]
    assert from_json(text) == {**VALUE, "g": [0.5, math.inf]}


@pytest.mark.parametrize("text", ["Infinity", "-Infinity", "\\Infinity", "\\\\-Infinity", "\\x"])
def test_texts_that_read_like_infinities_stay_texts(text: str) -> None:
    assert from_json(to_json([text, math.inf])) == [text, math.inf]


@pytest.mark.parametrize("value", [{"a": {"b": math.nan}}, [1.0, [math.nan]]])
def test_nan_is_refused_by_its_place(value: Any) -> None:
    with pytest.raises(DatafreeError, match=r"^metrics\.json, (a, b|1, 0): .* not a number"):
        to_json(value, "metrics.json")


@pytest.mark.parametrize("text", ["[NaN]", "[Infinity]", '{"a": -Infinity}', "{"])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not JSON|Expecting"):
        from_json(text)
