"""Whoever makes a configuration in Python is refused in a line, as on the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import datafree
from datafree.config import InputSpec, RunConfig, Scheme, build
from datafree.config.base import Frozen
from datafree.errors import ConfigError
from datafree.reconstruction.genie_m import GenieM


class Inner(Frozen):
    """For tests."""

    number: int = 0


class Outer(Frozen):
    """For tests."""

    inner: Inner = Inner()


def made(cls: Any, *values: Any, **fields: Any) -> Any:
    """As somebody writes it whom no type checker tells."""
    return cls(*values, **fields)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Scheme(bits="W9A9"), "Scheme: bits: W9A9: weights have 2 to 8 bits"),
        (
            lambda: made(RunConfig, model="x", bitz=3),
            "RunConfig: bitz is not known (did you mean bits?)",
        ),
        (lambda: GenieM(drop=2.0), "GenieM: drop: Input should be less than 1"),
        (lambda: made(InputSpec), "InputSpec: shape: Field required"),
        (lambda: made(Inner, 3), "Inner: 3 has no name: write which field it is, as in name=value"),
        (
            lambda: made(Outer, inner={"number": "x"}),
            "Outer: inner.number: Input should be",
        ),
        (
            lambda: build(Outer, {"inner": {"figure": 1}}, "outer"),
            "outer: inner.figure is not known",
        ),
    ],
)
def test_what_cannot_be_is_one_line(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_what_can_be_is_made_as_before() -> None:
    assert Outer(inner=Inner(number=2)) == Outer.model_validate({"inner": {"number": 2}})
    assert build(Outer, {}, "outer").inner.number == 0


@pytest.mark.parametrize(("value", "name"), [(3, "an int"), ([], "a list")])
def test_what_is_no_path(value: object, name: str) -> None:
    for field in ("data", "output"):
        with pytest.raises(ConfigError, match=rf"^quantize: {field}: give a path, not {name}$"):
            datafree.quantize("digits_resnet8", **{field: value})  # pyright: ignore


def test_options_have_names() -> None:
    with pytest.raises(ConfigError, match=r"^distill: 'plain' has no name"):
        datafree.distill("digits_resnet8", "plain")  # pyright: ignore
    with pytest.raises(ConfigError, match=r"^benchmark takes the result or the folder of a run"):
        datafree.benchmark(None)  # pyright: ignore
