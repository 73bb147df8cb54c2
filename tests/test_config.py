from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from datafree.config import (
    AllocationConfig,
    InputSpec,
    Method,
    ModelConfig,
    RunConfig,
    Scheme,
    build,
    load_config,
    save_config,
)
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


@pytest.mark.parametrize("bits", [1, 9, 0, -4, 32])
def test_weight_bits_out_of_range(bits: int) -> None:
    with pytest.raises(ConfigError, match="weights"):
        build(Scheme, {"weights": bits}, "scheme")


@pytest.mark.parametrize("bits", [1, 9, 16, 31, 33])
def test_activation_bits_out_of_range(bits: int) -> None:
    with pytest.raises(ConfigError, match=f"activations: must be 2 to 8, or 32 .*, got {bits}"):
        build(Scheme, {"activations": bits}, "scheme")


def test_labels() -> None:
    assert Scheme().label == "W8A8"
    assert Scheme(weights=4, activations=32).label == "W4A32"
    assert Scheme(weights=4, layer_bits={"conv": 3}).label == "WmixedA8"


@pytest.mark.parametrize("bits", [1, 9])
def test_layer_bits_out_of_range(bits: int) -> None:
    with pytest.raises(ConfigError, match=r"layer_bits\.conv"):
        build(Scheme, {"layer_bits": {"conv": bits}}, "scheme")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({}, "give either average_bits or budget"),
        ({"average_bits": 4, "budget": "1MB"}, "give either average_bits or budget"),
        ({"average_bits": 1.9}, "average_bits: .* greater than or equal to 2"),
        ({"average_bits": float("nan")}, "average_bits"),
        ({"average_bits": 4, "bits": ()}, "bits: .* at least 1 item"),
        ({"average_bits": 4, "bits": (4, 16)}, r"bits\.1"),
    ],
)
def test_allocations_that_cannot_be(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^allocation: .*{message}"):
        build(AllocationConfig, wanted, "allocation")


def test_candidate_bits_are_sorted_and_each_once() -> None:
    assert AllocationConfig(average_bits=4, bits=(8, 2, 4, 2)).bits == (2, 4, 8)


def test_layer_bits_are_a_copy_and_survive_a_file(tmp_path: Path) -> None:
    given = {"layers.0.conv": 3, "fc": 8}
    scheme = Scheme(layer_bits=given)
    given["fc"] = 2
    assert scheme.layer_bits == {"layers.0.conv": 3, "fc": 8}
    config = RunConfig(model=ModelConfig(source="x"), scheme=scheme)
    save_config(config, tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml") == config


def test_configurations_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Scheme().weights = 4


def test_a_file_repeats_the_run(tmp_path: Path) -> None:
    config = RunConfig(
        model=ModelConfig(
            source="timm:x",
            weights=Path("w.safetensors"),
            input_shape=(3, 8, 8),
            mean=(0.1, 0.2, 0.3),
        ),
        scheme=Scheme(weights=3, activations=32, ste="full", policy="first_last_8"),
        synthesis=Method(name="zeroq", options={"iterations": 7, "learning_rate": 0.1}),
        images=5,
        calibration=Method(name="ema", options={"mode": "momentum"}),
        data=Path("some") / "data.npz",
        seed=9,
        device="cpu",
    )
    path = tmp_path / "config.yaml"
    save_config(config, path)
    assert load_config(path) == config


def test_a_file_spells_out_every_default(tmp_path: Path) -> None:
    save_config(RunConfig(model=ModelConfig(source="x")), tmp_path / "c.yaml")
    text = (tmp_path / "c.yaml").read_text()
    assert all(f"{name}:" in text for name in (*RunConfig.model_fields, *Scheme.model_fields))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {source: x}\nimagse: 3\n", "imagse is not known .known: model, "),
        ("model: {source: x}\nscheme: {bits: 3}\n", "scheme.bits is not known .known: weights, "),
        ("images: 3\n", "model: Field required"),
        ("model: {source: x}\nimages: 0\n", "images: Input should be greater"),
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
        ({"scheme": {"weights": 7}}, "analytic"),
        ({"scheme": {"layer_bits": {"conv": 4}}}, "analytic"),
        ({"scheme": {"weights": 4}, "reconstruction": {"name": "adaround"}}, None),
        ({"scheme": {"weights": 4}, "training": {"name": "dfqf"}}, None),
        ({"bias_correction": "analytic", "training": {"name": "dfqf"}}, "analytic"),
        ({"scheme": {"weights": 4}, "bias_correction": "none"}, None),
        ({"bias_correction": "empirical"}, "empirical"),
        ({"bias_correction": "analytic", "reconstruction": {"name": "qdrop"}}, "analytic"),
    ],
)
def test_biases_are_corrected_where_low_bits_are_rounded_to_the_nearest(
    changes: dict[str, Any], rule: str | None
) -> None:
    config = build(RunConfig, {"model": {"source": "net"}, **changes}, "run")
    assert config.bias_rule == rule
