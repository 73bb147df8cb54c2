"""Recipes: what they are made of, and how options are laid over them."""

from __future__ import annotations

from typing import Any

import pytest

from datafree.cli.app import app
from datafree.cli.options import given_fields
from datafree.config import RunConfig, build, merge
from datafree.errors import UnknownNameError
from datafree.recipes import RECIPES, laid_over, recipe_fields

MODEL: dict[str, Any] = {"model": "digits_resnet8"}


OF_QUANTIZE = [name for name, recipe in RECIPES.items() if recipe.command == "quantize"]


@pytest.mark.parametrize("name", OF_QUANTIZE)
def test_a_recipe_is_a_run_without_network_and_bits(name: str) -> None:
    fields = recipe_fields(name)
    config = build(RunConfig, merge(MODEL, fields), name)
    assert "model" not in fields
    assert not {"bits", "policy", "placement"} & set(fields)
    assert config.bits == "W8A8"
    if config.rounding is not None:
        assert config.scheme.weight_range == "mse"


def test_no_recipe_changes_nothing() -> None:
    assert recipe_fields(None) == {}


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(
        UnknownNameError, match="unknown recipe of quantize 'balance': did you mean balanced"
    ):
        recipe_fields("balance")


def test_options_are_laid_over_a_recipe() -> None:
    start = {"method": "dsg", "method_options": {"iterations": 200, "epsilon": 0.5}}
    both = {"method": "dsg", "method_options": {"iterations": 9, "epsilon": 0.5}}
    assert merge(start, {"method_options": {"iterations": 9}}) == both
    assert merge(start, {"method": "dsg", "method_options": {"iterations": 9}}) == both
    assert merge(start, {"method": "zeroq"}) == {"method": "zeroq", "method_options": {}}
    assert merge(start, {}) == start
    assert start["method_options"] == {"iterations": 200, "epsilon": 0.5}


def given(command: str, *words: str) -> dict[str, Any]:
    """The fields that `words`, typed after a command and a network, choose."""
    found = app.commands[command].make_context(command, ["net", *words]).params
    for name in ("model", "dry_run", "trust_code"):
        found.pop(name)
    return given_fields(found)


@pytest.mark.parametrize("name", RECIPES)
def test_the_options_shown_choose_the_same(name: str) -> None:
    """Typed on the command line after a network, they give the run of the recipe."""
    recipe = RECIPES[name]
    base = {**MODEL}
    if recipe.command == "distill":
        base |= {"training": "distill", "student": "small.py:build", "float_student": True}
    shown = merge(base, given(recipe.command, *recipe.described().split()))
    made = build(RunConfig, merge(base, recipe.fields), name)
    assert build(RunConfig, shown, name) == made


def test_nothing_of_another_choice_stays() -> None:
    best = build(RunConfig, laid_over(MODEL, "best"), "best")
    again = build(RunConfig, laid_over(best.model_dump(), "dfq"), "dfq")
    assert again == build(RunConfig, laid_over(MODEL, "dfq"), "dfq")
    narrow = merge(best.model_dump(), {"bits": "W3A8"})
    assert build(RunConfig, laid_over(narrow, "dfq"), "dfq").scheme.weights == 3
    assert laid_over(MODEL, None) == MODEL


def test_a_part_of_a_recipe_can_be_taken_back() -> None:
    base = laid_over(MODEL, "balanced")
    plain = build(RunConfig, merge(base, {"reconstruction": "none"}), "balanced")
    assert plain.rounding is None
    base = laid_over(MODEL, "dfq")
    assert build(RunConfig, merge(base, {"bias_correction": "none"}), "dfq").bias_rule is None


@pytest.mark.parametrize(("name", "command"), [("short", "quantize"), ("trained", "distill")])
def test_a_recipe_of_the_other_command_is_refused(name: str, command: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown recipe of {command} '{name}'"):
        recipe_fields(name, command)
