"""Recipes: what they are made of, and how options are laid over them."""

from __future__ import annotations

from typing import Any

import pytest
import typer.main
from typer.core import TyperGroup

from datafree.cli.app import app
from datafree.cli.options import images_fields, method_fields
from datafree.config import RunConfig, build, merge
from datafree.errors import UnknownNameError
from datafree.recipes import RECIPES, laid_over, recipe_fields

MODEL: dict[str, Any] = {"model": {"source": "digits_resnet8"}}


OF_QUANTIZE = [name for name, recipe in RECIPES.items() if recipe.command == "quantize"]


@pytest.mark.parametrize("name", OF_QUANTIZE)
def test_a_recipe_is_a_run_without_network_and_bits(name: str) -> None:
    fields = recipe_fields(name)
    config = build(RunConfig, merge(MODEL, fields), name)
    assert "model" not in fields
    assert not {"weights", "activations", "policy"} & set(fields.get("scheme", {}))
    assert (config.scheme.weights, config.scheme.activations) == (8, 8)
    if config.reconstruction is not None:
        assert config.scheme.weight_range == "mse"


def test_no_recipe_changes_nothing() -> None:
    assert recipe_fields(None) == {}


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(
        UnknownNameError, match="unknown recipe of quantize 'balance': did you mean balanced"
    ):
        recipe_fields("balance")


def test_options_are_laid_over_a_recipe() -> None:
    start = {"synthesis": {"name": "dsg", "options": {"iterations": 200, "epsilon": 0.5}}}
    same = merge(start, {"synthesis": {"options": {"iterations": 9}}, "images": None})
    assert same == {"synthesis": {"name": "dsg", "options": {"iterations": 9, "epsilon": 0.5}}}
    named = {"name": "dsg", "options": {"iterations": 9}}
    assert merge(start, {"synthesis": named}) == same
    other = merge(start, {"synthesis": {"name": "zeroq", "options": {}}})
    assert other == {"synthesis": {"name": "zeroq", "options": {}}}
    assert merge(start, {"synthesis": {}}) == start
    assert start["synthesis"]["options"] == {"iterations": 200, "epsilon": 0.5}


def test_options_are_laid_over_defaults() -> None:
    merged = merge({}, {"scheme": {"weights": 3}, "synthesis": {"options": {"iterations": 9}}})
    assert merged["scheme"]["activations"] == 8
    assert merged["synthesis"] == {"name": "dsg", "options": {"iterations": 9}}


@pytest.mark.parametrize("name", OF_QUANTIZE)
def test_the_options_shown_choose_the_same(name: str) -> None:
    """Typed on the command line after a network, they give the fields of the recipe."""
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    quantize = command.commands["quantize"]
    words = RECIPES[name].described().split()
    given = {
        k: v for k, v in quantize.make_context("quantize", ["net", *words]).params.items() if v
    }
    fields = recipe_fields(name)
    assert images_fields(given.get("images")).get("images") == fields.get("images")
    for key in ("equalize", "replace_relu6", "absorb_biases", "bias_correction"):
        assert given.get(key) == fields.get(key)
    methods = {"synthesis": "method", "calibration": "calibrator"}
    for key in ("synthesis", "calibration", "reconstruction", "training"):
        assert given.get(methods.get(key, key)) == fields.get(key, {}).get("name")
    options = method_fields(None, given.get("training_option")).get("options", {})
    assert options == fields.get("training", {}).get("options", {})
    scheme = fields.get("scheme", {})
    assert given.get("weight_range") == scheme.get("weight_range")
    assert given.get("per_tensor", False) == (scheme.get("weight_granularity") == "tensor")


def test_nothing_of_another_choice_stays() -> None:
    best = build(RunConfig, laid_over(MODEL, "best"), "best")
    again = build(RunConfig, laid_over(best.model_dump(), "dfq"), "dfq")
    assert again == build(RunConfig, laid_over(MODEL, "dfq"), "dfq")
    narrow = merge(best.model_dump(), {"scheme": {"weights": 3}})
    assert build(RunConfig, laid_over(narrow, "dfq"), "dfq").scheme.weights == 3
    assert laid_over(MODEL, None) == MODEL


def test_a_part_of_a_recipe_can_be_taken_back() -> None:
    base = laid_over(MODEL, "balanced")
    plain = build(RunConfig, merge(base, {"reconstruction": {"name": "none"}}), "balanced")
    assert plain.reconstruction is None
    base = laid_over(MODEL, "dfq")
    assert build(RunConfig, merge(base, {"bias_correction": "none"}), "dfq").bias_correction is None


def test_the_options_of_a_recipe_of_distill_choose_the_same() -> None:
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    words = RECIPES["short"].described().split()
    given = command.commands["distill"].make_context("distill", ["net", *words]).params
    training = recipe_fields("short", "distill")["training"]
    assert method_fields(None, given["option"])["options"] == training["options"]
    student = {"student": {"source": "small.py:build"}, "float_student": True}
    build(RunConfig, merge({**MODEL, **student}, {"training": training}), "short")


@pytest.mark.parametrize(("name", "command"), [("short", "quantize"), ("trained", "distill")])
def test_a_recipe_of_the_other_command_is_refused(name: str, command: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown recipe of {command} '{name}'"):
        recipe_fields(name, command)
