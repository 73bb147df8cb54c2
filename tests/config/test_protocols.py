"""Presets of papers: what they settle, what is told of departures, and how choices lie over them.

The expected numbers are those of the papers' own tables of settings, written down here by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from datafree.config import RunConfig, build, load_config, merge, save_config
from datafree.config.options import METHODS
from datafree.config.protocols import PROTOCOLS, Protocol, departures, free_of_protocols
from datafree.errors import ConfigError
from datafree.recipes import laid_over
from datafree.registry import load

# Placement, granularity of weights, zero points of weights and of activations fixed at 0, policy.
GRIDS = {
    "zeroq": ("after_activation", "channel", False, False, "all"),
    "dsg": ("after_activation", "channel", False, False, "all"),
    "gdfq": ("after_activation", "channel", False, False, "all"),
    "dfqf": ("after_activation", "tensor", True, True, "first_last_8"),
    "brecq": ("every_input", "channel", False, False, "brecq"),
    "qdrop": ("every_input", "channel", False, False, "qdrop"),
    "genie": ("every_input", "channel", False, True, "brecq"),
}
PACKAGES = {
    "method": "synthesis", "calibrator": "calibrators",
    "reconstruction": "reconstruction", "training": "training",
}  # fmt: skip


def config(**fields: Any) -> RunConfig:
    return build(RunConfig, {"model": "net", **fields}, "test")


def method_of(run: RunConfig, kind: str) -> Any:
    """The method of a run with its options, as the run will build it."""
    from datafree.config import Hyperparameters

    cls = load(f"datafree.{PACKAGES[kind]}", str(getattr(run, kind)), Hyperparameters)
    return build(cls, getattr(run, f"{kind}_options"), "options")


def test_every_name_has_a_preset() -> None:
    assert set(get_args(Protocol)) == {"paper", *GRIDS} == {"paper", *PROTOCOLS}


@pytest.mark.parametrize("name", GRIDS)
def test_grids_and_places_are_those_of_the_paper(name: str) -> None:
    run = config(protocol=name, bits="W4A4")
    found = (run.placement, run.weight_granularity, run.symmetric_weights,
             run.symmetric_activations, run.policy)  # fmt: skip
    assert found == GRIDS[name]
    assert (run.target, run.bias_rule, run.equalize) == ("paper", None, False)
    assert run.protocol_told == name
    assert run.rules_told == f"policy {GRIDS[name][-1]}, protocol {name}"


@pytest.mark.parametrize("name", GRIDS)
def test_the_methods_take_what_the_preset_gives_them(name: str) -> None:
    run = config(protocol=name)
    for kind in METHODS:
        if getattr(run, kind) not in ("none", "dsg,psaq,prior"):
            method_of(run, kind)


def test_schedules_are_those_of_the_papers() -> None:
    zeroq = method_of(config(protocol="zeroq"), "method")
    assert (zeroq.iterations, zeroq.learning_rate, zeroq.least_fall) == (500, 0.5, 0)
    dsg = method_of(config(protocol="dsg"), "method")
    assert (dsg.batch_size, dsg.epsilon, dsg.least_fall) == (None, 0.9, 0)
    gdfq = method_of(config(protocol="gdfq"), "training")
    assert gdfq.warmup + gdfq.iterations == 400 * 200
    assert (gdfq.weights, gdfq.activations, gdfq.batch_norm) == ("minmax", "fixed", "frozen")
    dfqf = method_of(config(protocol="dfqf"), "training")
    assert (dfqf.warmup, dfqf.iterations) == (200 * 100, 40 * 100)
    assert (dfqf.adversarial, dfqf.alpha, dfqf.beta, dfqf.gamma) == ("cross_entropy", 40, 0.1, 5)
    assert method_of(config(protocol="dfqf"), "calibrator").lower_bound == 0.3
    for name, steps, weight in (("brecq", 20_000, 0.01), ("qdrop", 20_000, 0.01),
                                ("genie", 20_000, 1.0)):  # fmt: skip
        run = config(protocol=name)
        learned = method_of(run, "reconstruction")
        assert (learned.iterations, learned.rounding_weight) == (steps, weight)
        assert learned.factor(steps) == 1, "the papers' own rates"
        assert (run.images, run.weight_range) == (1024, "mse")
        assert method_of(run, "calibrator").power == 2.4
    assert method_of(config(protocol="genie"), "reconstruction").step_rates == "unfolded"
    genie = method_of(config(protocol="genie"), "method")
    assert (genie.iterations, genie.batch_size, genie.latent_dim) == (4000, 128, 256)


def test_gradients_of_clipped_values_pass_in_gdfq_alone() -> None:
    """And Genie's and DFQF's code clips before it rounds, as LSQ does."""
    found = {name: config(protocol=name).ste for name in PROTOCOLS}
    assert found.pop("gdfq") == "full"
    assert found.pop("genie") == found.pop("dfqf") == "clip_first"
    assert set(found.values()) == {"clipped"}


def test_what_is_given_changes_the_preset_and_is_told() -> None:
    run = config(protocol="dsg", policy="brecq", images=64, method_options={"iterations": 50})
    assert (run.policy, run.images) == ("brecq", 64)
    assert run.method_options == {"iterations": 50, "batch_size": None, "least_fall": 0.0}
    assert run.protocol_told == "dsg but policy brecq, method iterations 50, images 64"
    mixed = config(protocol="zeroq", photos="pictures")
    assert mixed.protocol_told == "zeroq but photos pictures"
    other = config(protocol="zeroq", method="genie", method_options={"iterations": 3})
    assert other.method_options == {"iterations": 3}, "options of another method are not zeroq's"
    assert other.protocol_told == "zeroq but method genie"


def test_another_target_takes_its_own_places_and_is_told() -> None:
    run = config(protocol="zeroq", target="openvino")
    assert run.placement == "every_edge"
    told = str(run.protocol_told)
    assert told.startswith("zeroq but target openvino, placement every_edge")


def test_without_a_protocol_nothing_is_told() -> None:
    assert (config().protocol_told, config().rules_told) == (None, "policy all")
    assert config(protocol="paper").protocol_told == "paper"
    plain = config().model_dump()
    assert config(protocol="paper").model_dump() == plain | {"protocol": "paper"}
    assert departures(None, plain) == departures("paper", plain) == {}


@pytest.mark.parametrize("name", GRIDS)
def test_a_file_repeats_the_run(name: str, tmp_path: Path) -> None:
    run = config(protocol=name, bits="W3A3", images=5)
    save_config(run, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == run


def test_another_protocol_takes_the_place_of_the_first() -> None:
    """As `--config run/config.yaml --protocol genie` does; the network and bits stay."""
    first = config(protocol="dfqf", bits="W3A3", seed=7)
    again = build(RunConfig, merge(first.model_dump(), {"protocol": "genie"}), "test")
    assert again == config(protocol="genie", bits="W3A3", seed=7)
    same = build(RunConfig, merge(first.model_dump(), {"protocol": "dfqf", "images": 3}), "test")
    assert same == config(protocol="dfqf", bits="W3A3", seed=7, images=3)


def test_a_recipe_takes_the_place_of_a_protocol() -> None:
    first = config(protocol="dfqf", bits="W3A3")
    again = build(RunConfig, laid_over(first.model_dump(), "fast"), "test")
    assert again == build(RunConfig, laid_over({"model": "net", "bits": "W3A3"}, "fast"), "test")
    assert "policy" not in free_of_protocols(first.model_dump())


@pytest.mark.parametrize("given", ["zeroc", ["zeroq"]])
def test_unknown_protocols_are_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="protocol: Input should be 'paper', 'zeroq'"):
        config(protocol=given)
