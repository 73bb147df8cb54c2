from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datafree.config import RunConfig, Scheme, build, merge
from datafree.config.widths import input_of, layer_width, weights_of, width_for
from datafree.errors import ConfigError

BITS = st.integers(2, 8)
NAMES = st.sampled_from(("a.conv1", "a.conv2", "b.conv1", "b.fc"))
PATTERNS = st.sampled_from(("*", "a.*", "*.conv?", "a.conv1", "b.fc", "*.conv[12]"))


@given(BITS, BITS)
def test_both_numbers_are_read_back(weights: int, activations: int) -> None:
    text = f"w{weights}a{activations}"
    assert weights_of(layer_width(text)) == weights
    assert input_of(layer_width(text)) == activations
    assert layer_width(weights) == layer_width(f" {weights} ") == weights
    assert input_of(layer_width(weights)) is None


@given(NAMES, st.dictionaries(PATTERNS, BITS, max_size=4))
def test_a_name_outweighs_patterns_and_the_last_of_these_holds(
    name: str, widths: dict[str, int]
) -> None:
    expected = None
    for pattern, bits in widths.items():
        if fnmatchcase(name, pattern) and name not in widths:
            expected = pattern, bits
    if name in widths:
        expected = name, widths[name]
    assert width_for(name, widths) == expected  # pyright: ignore


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("float", "keep_float leaves a layer in float"),
        ("W8", "write bits of weights as 8, or of weights and input as W4A8"),
        (True, "True is not understood"),
        (4.5, "4.5 is not understood"),
        ("W4A32", "not 32 bits"),
        (32, "not 32 bits"),
        (1, "weights have 2 to 8 bits"),
        ("W4A9", "its input has 2 to 8 bits"),
    ],
)
def test_what_is_no_width(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"layer_bits\.conv: .*{message}"):
        build(Scheme, {"layer_bits": {"conv": value}}, "scheme")


def test_names_of_layers_in_float() -> None:
    assert Scheme(keep_float="fc").keep_float == ("fc",)  # pyright: ignore
    assert Scheme(keep_float=["fc", "a", "fc"]).keep_float == ("fc", "a")  # pyright: ignore
    assert Scheme(keep_float={"b", "a"}).keep_float == ("a", "b")  # pyright: ignore
    for wrong in ("", ["fc", ""]):
        with pytest.raises(ConfigError, match="an empty name is no layer"):
            build(Scheme, {"keep_float": wrong}, "scheme")


def test_a_number_says_what_is_not_uniform() -> None:
    assert Scheme(bits="W4A8", layer_bits={"conv": 3}).label == "WmixedA8"
    assert Scheme(bits="W4A4", layer_bits={"conv": "W8A8"}).label == "WmixedAmixed"
    assert Scheme(bits="W4A4", keep_float=("fc",)).label == "W4A4+float"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": "litert", "layer_bits": {"fc": "W8A4"}}, "activations of 4 .* for fc: .* is 8"),
        ({"target": "tensorrt", "layer_bits": {"fc": "W4A8"}}, "weights of 4 bits.* for fc: .* 8"),
        ({"bits": "W4A32", "layer_bits": {"fc": "W8A8"}}, "W4A32 leaves .* write fc=8"),
    ],
)
def test_widths_that_the_target_does_not_have(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Scheme, fields, "scheme")


def test_a_float_student_has_no_layers_to_choose() -> None:
    wanted = {"model": "x", "student": "y", "training": "distill", "float_student": True}
    for own in ({"layer_bits": {"fc": 8}}, {"keep_float": ["fc"]}):
        with pytest.raises(ConfigError, match="this one stays in float: give its bits"):
            build(RunConfig, {**wanted, **own}, "options")


def test_layers_are_added_to_those_of_an_earlier_run() -> None:
    base = {"layer_bits": {"a": 3, "b": 4}, "keep_float": ("c",)}
    found = merge(base, {"layer_bits": {"a": "W8A8"}, "keep_float": ["d"]})
    assert list(found["layer_bits"].items()) == [("b", 4), ("a", "W8A8")]
    assert found["keep_float"] == ("c", "d")
    assert merge(base, {"bits": "W4A4"}) == {**base, "bits": "W4A4"}


def test_allocated_bits_keep_what_was_asked_of_inputs() -> None:
    config = RunConfig(model="x", average_bits=4, layer_bits={"a*": "W8A6"})
    found = config.with_layer_bits({"a1": 8, "b": 3}).layer_bits
    assert found == {"a1": "W8A6", "b": 3}
