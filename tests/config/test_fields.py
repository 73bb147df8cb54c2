"""What people read of a field is told once, on the field."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field

from datafree.api import DistillCall, QuantizeCall, SynthesizeCall
from datafree.config import Frozen, RunConfig
from datafree.config.fields import Shown, describe, described, option_name, written


class Base(Frozen):
    steps: int = Field(default=500, ge=1)
    """Steps
    of everything."""
    rate: float = Field(default=0.5, gt=0, lt=1)
    """Rate."""


class Method(Base):
    steps: int = Field(default=20, ge=1)
    mode: Literal["fast", "slow"] = "fast"
    """How."""
    limit: Annotated[int | None, Field(ge=2, le=9), Shown("all")] = None
    """At most."""
    names: Annotated[dict[str, int], Shown(value="A=B")] = Field(default_factory=dict)
    """Pairs."""
    wanted: str
    """Has to be given."""


def test_a_field_says_what_it_is() -> None:
    fields = described(Method)
    assert list(fields) == ["steps", "rate", "mode", "limit", "names", "wanted"]
    found = {
        name: (f.kind, f.default, f.allowed, f.meaning, f.shown.value) for name, f in fields.items()
    }
    assert found == {
        "steps": ("int", "20", "at least 1", "Steps of everything.", ""),
        "rate": ("float", "0.5", "more than 0, less than 1", "Rate.", ""),
        "mode": ("str", "fast", "fast or slow", "How.", ""),
        "limit": ("int", "all", "2 to 9", "At most.", ""),
        "names": ("dict", "none", "", "Pairs.", "A=B"),
        "wanted": ("str", "", "", "Has to be given.", ""),
    }
    assert describe(Method, "mode").choices == ("fast", "slow")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "yes"),
        (1e-5, "1e-05"),
        ((2, 3), "2,3"),
        ({"a": 1, "b": False}, "a=1 b=no"),
        ({}, "none"),
    ],
)
def test_values_as_people_write_them(value: object, text: str) -> None:
    assert written(value) == text


def test_names_on_the_command_line() -> None:
    assert option_name("max_time") == "--max-time"
    assert option_name("method_options") == "--method-option"
    assert option_name("average_bits") == "--average-bits"


@pytest.mark.parametrize("cls", [RunConfig, QuantizeCall, DistillCall, SynthesizeCall])
def test_every_option_has_a_meaning_and_a_default_in_words(cls: type[Frozen]) -> None:
    for field in described(cls).values():
        assert field.meaning[:1].isupper() and field.meaning.endswith("."), field.name
        value = cls.model_fields[field.name].get_default(
            call_default_factory=True, validated_data={}
        )
        if value is None and field.name != "recipe":
            assert field.shown.default, f"{field.name} has None for a default: say what that is"
