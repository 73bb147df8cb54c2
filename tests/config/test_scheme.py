from __future__ import annotations

import pytest
from pydantic import ValidationError

from datafree.config import Scheme, build
from datafree.errors import ConfigError


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        *((f"W{bits}A8", "weights have 2 to 8 bits") for bits in (1, 9, 0, 32)),
        *((f"W8A{bits}", "activations have 2 to 8 bits, or 32") for bits in (1, 9, 16, 31, 33)),
        ("eight", "'eight' is not understood: write weights and activations as W4A8"),
        ("W-4A8", "is not understood"),
        ("W²A8", "is not understood"),
        (8, "is not understood"),
    ],
)
def test_bits_that_cannot_be(bits: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^scheme: bits: .*{message}"):
        build(Scheme, {"bits": bits}, "scheme")


def test_bits_of_weights_and_activations() -> None:
    scheme = Scheme(bits="w4a32")
    assert (scheme.bits, scheme.weights, scheme.activations) == ("W4A32", 4, 32)
    assert scheme.with_weights(2) == Scheme(bits="W2A32")


def test_labels() -> None:
    assert Scheme().label == "W8A8"
    assert Scheme(bits="W4A32").label == "W4A32"
    assert Scheme(bits="W4A8", layer_bits={"conv": 3}).label == "WmixedA8"


@pytest.mark.parametrize("bits", [1, 9])
def test_layer_bits_out_of_range(bits: int) -> None:
    with pytest.raises(ConfigError, match=r"layer_bits\.conv"):
        build(Scheme, {"layer_bits": {"conv": bits}}, "scheme")


def test_configurations_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Scheme().bits = "W4A8"
