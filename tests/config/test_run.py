"""A run: what is refused, what follows from what, and its file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from datafree.config import (
    BudgetOptions,
    Hyperparameters,
    RunConfig,
    Scheme,
    build,
    load_config,
    save_config,
)
from datafree.errors import ConfigError
from datafree.images import SyntheticSet
from datafree.testing.networks import SPEC


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"average_bits": 4, "budget": "1MB"}, "average_bits and budget exclude each other"),
        ({"average_bits": 1.9}, "average_bits: .* greater than or equal to 2"),
        ({"average_bits": float("nan")}, "average_bits"),
        ({"average_bits": 4, "candidate_bits": ()}, "candidate_bits: .* at least 1 item"),
        ({"average_bits": 4, "candidate_bits": (4, 16)}, r"candidate_bits\.1"),
    ],
)
def test_allocations_that_cannot_be(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^allocation: .*{message}"):
        build(BudgetOptions, wanted, "allocation")


def test_candidate_bits_are_sorted_and_each_once() -> None:
    assert BudgetOptions(candidate_bits=(8, 2, 4, 2)).candidate_bits == (2, 4, 8)


def test_layer_bits_are_a_copy_and_survive_a_file(tmp_path: Path) -> None:
    given = {"layers.0.conv": 3, "fc": 8}
    scheme = Scheme(layer_bits=given)
    given["fc"] = 2
    assert scheme.layer_bits == {"layers.0.conv": 3, "fc": 8}
    config = RunConfig(model="x", layer_bits=scheme.layer_bits)
    save_config(config, tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml") == config


def test_a_file_repeats_the_run(tmp_path: Path) -> None:
    config = RunConfig(
        model="timm:x",
        weights_file=Path("w.safetensors"),
        input_shape=(3, 8, 8),
        mean=(0.1, 0.2, 0.3),
        bits="W3A32",
        ste="full",
        policy="first_last_8",
        method="zeroq",
        method_options={"iterations": 7, "learning_rate": 0.1},
        images=5,
        calibrator="ema",
        calibrator_options={"mode": "momentum"},
        data=Path("some") / "data.npz",
        seed=9,
        device="cpu",
    )
    path = tmp_path / "config.yaml"
    save_config(config, path)
    assert load_config(path) == config


def test_a_file_spells_out_every_default(tmp_path: Path) -> None:
    save_config(RunConfig(model="x"), tmp_path / "c.yaml")
    text = (tmp_path / "c.yaml").read_text()
    assert all(f"{name}:" in text for name in RunConfig.model_fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: x\nimagse: 3\n", "imagse is not known .did you mean images"),
        ("model: x\nwhatever: {bits: 3}\n", "whatever is not known .known: model, "),
        ("images: 3\n", "model: Field required"),
        ("model: x\nimages: 0\n", "images: Input should be greater"),
        ("- 1\n", "is not a run configuration"),
        ("", "is not a run configuration"),
        ("a: [\n", "cannot read configuration"),
        ("\x00", "cannot read configuration"),
    ],
)
def test_files_that_are_no_run(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)
    assert "c.yaml" in str(caught.value)


def test_a_missing_or_binary_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read configuration"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match="cannot read configuration"):
        load_config(tmp_path / "b.yaml")


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({}, None),
        ({"bits": "W7A8"}, "analytic"),
        ({"layer_bits": {"conv": 4}}, "analytic"),
        ({"bits": "W4A8", "reconstruction": "adaround"}, None),
        ({"bits": "W4A8", "training": "dfqf"}, None),
        ({"bias_correction": "analytic", "training": "dfqf"}, "analytic"),
        ({"bits": "W4A8", "bias_correction": "none"}, None),
        ({"bias_correction": "empirical"}, "empirical"),
        ({"bias_correction": "analytic", "reconstruction": "qdrop"}, "analytic"),
    ],
)
def test_biases_are_corrected_where_low_bits_are_rounded_to_the_nearest(
    changes: dict[str, Any], rule: str | None
) -> None:
    config = build(RunConfig, {"model": "net", **changes}, "run")
    assert config.bias_rule == rule


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("90s", 90), ("30m", 1800), ("1.5h", 5400), (90, 90), ("90", 90), (None, None)],
)
def test_times(given: Any, seconds: float | None) -> None:
    config = build(RunConfig, {"model": "net", "training": "dfqf", "max_time": given}, "run")
    assert config.max_seconds == seconds


@pytest.mark.parametrize("given", ["", "m", "1d", "1,5h", "0s", -1, float("nan")])
def test_other_times_are_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"max_time: .*(90s, 30m or 1\.5h|more than 0)"):
        build(RunConfig, {"model": "net", "training": "dfqf", "max_time": given}, "run")


def test_images_are_a_file_of_images(tmp_path: Path) -> None:
    path = tmp_path / "i.safetensors"
    SyntheticSet(torch.zeros(6, *SPEC.shape), SPEC).save(path)
    for given in (path, str(path)):
        made = build(RunConfig, {"model": "net", "images": given}, "run")
        assert (made.image_file, made.images, made.method) == (path, 6, "dsg,psaq,prior")


def test_images_are_a_number_or_a_generator() -> None:
    assert build(RunConfig, {"model": "net", "images": "64"}, "run").images == 64
    made = build(RunConfig, {"model": "net", "images": "run/generator.safetensors"}, "run")
    assert made.method == "generator"
    assert made.method_options == {"path": "run/generator.safetensors"}
    with pytest.raises(ConfigError, match="neither a number of images nor a generator"):
        build(RunConfig, {"model": "net", "images": "many"}, "run")


def test_texts_become_numbers() -> None:
    config = build(
        RunConfig,
        {"model": "net", "mean": "0.5, 1", "input_shape": "2,8,8", "candidate_bits": "4,2",
         "average_bits": "3"},
        "run",
    )  # fmt: skip
    assert config.mean == (0.5, 1.0)
    assert config.input_shape == (2, 8, 8)
    assert config.candidate_bits == (2, 4)


def test_weight_ranges_follow_what_is_learned() -> None:
    ranges = {
        name: build(RunConfig, {"model": "net", **fields}, "run").scheme.weight_range
        for name, fields in {
            "plain": {},
            "rounded": {"reconstruction": "qdrop"},
            "mixed": {"average_bits": 4},
            "told": {"reconstruction": "qdrop", "weight_range": "minmax"},
        }.items()
    }
    assert ranges == {"plain": "minmax", "rounded": "mse", "mixed": "mse", "told": "minmax"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"training_options": {"warmup": 1}}, "training_options were given without a training"),
        ({"candidate_bits": (2, 4)}, "candidate_bits go with average_bits or budget"),
        ({"photo_share": 0.25}, "photo_share goes with photos"),
        ({"photos": "p", "image_file": "set.safetensors"}, "images names a file: give one of them"),
        ({"generator": "g.pt"}, "generator goes with training"),
        ({"student": "timm:x"}, "student goes with training"),
        ({"precision": "bf16"}, "precision goes with training"),
        ({"training": "dfqf", "average_bits": 4}, "training has no mixed precision yet"),
        ({"training": "dfqf", "bias_correction": "empirical"}, "training learns biases on images"),
        ({"training": "dfqf", "student": "timm:x"}, "the training distill goes with student"),
        ({"training": "distill"}, "the training distill goes with student"),
        ({"float_student": True}, "float_student goes with student"),
        ({"training": "distill", "student": "timm:x", "float_student": True,
          "reconstruction": "adaround"}, "a float student has no rounding to learn"),
        ({"training": "distill", "student": "timm:x", "float_student": True,
          "keep_float": ("fc",)}, "layer_bits and keep_float are for a quantized student"),
    ],
)  # fmt: skip
def test_fields_that_do_not_go_together(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        build(RunConfig, {"model": "net", **fields}, "run")
    assert "\n" not in str(caught.value)


class Clipped(Hyperparameters):
    """Options of a method that may clip nothing."""

    clip: float = math.inf


def test_infinity_is_an_option_only_where_it_is_the_default() -> None:
    assert Clipped().clip == math.inf
    assert Clipped(clip=2.0).clip == 2.0
    with pytest.raises(ConfigError, match=r"clip is -inf: give a number of at most 1e\+30"):
        build(Clipped, {"clip": -math.inf}, "option of clipped")
