"""Where inputs stand in one tensor, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from datafree.config import InputSpec, RunConfig, build, load_config
from datafree.config.files import save_config
from datafree.config.inputs import Input, Place, canonical, layout, packed_fields
from datafree.errors import ConfigError


def given(name: str, *shape: int, mean: float = 0.0, std: float = 1.0) -> Input:
    kind = "image" if len(shape) == 3 else "values"
    count = shape[0]
    return Input(name=name, shape=shape, kind=kind, mean=(mean,) * count, std=(std,) * count)


@pytest.mark.parametrize(
    ("shape", "plane"),
    [((7,), (7, 1, 1)), ((2, 9), (2, 1, 9)), ((3, 4, 5), (3, 4, 5)), ((3, 2, 4, 5), (3, 8, 5)),
     ((), (1, 1, 1))],
)  # fmt: skip
def test_one_input_keeps_its_numbers_in_their_order(shape: tuple[int, ...], plane: object) -> None:
    assert canonical(shape) == plane


def test_several_inputs_share_the_plane_of_the_first_image() -> None:
    both = (given("vector", 70), given("image", 3, 8, 8), given("grey", 1, 8, 8))
    places, shape = layout(both)
    assert shape == (6, 8, 8)
    # 70 numbers fill two channels of 64.
    assert places == (Place(0, 2, own=False), Place(2, 3, own=True), Place(5, 1, own=True))


def test_without_an_image_the_largest_input_gives_the_plane() -> None:
    places, shape = layout((given("few", 4), given("sound", 2, 50)))
    assert shape == (3, 1, 50) and places[1] == Place(1, 2, own=True)


def test_a_spec_keeps_its_inputs_and_a_plain_one_says_nothing_of_any() -> None:
    inputs = (given("image", 3, 4, 4, mean=0.5, std=0.25), given("vector", 5))
    spec = build(InputSpec, {**packed_fields(inputs), "classes": 3}, "test")
    assert spec.mean == (0.5, 0.5, 0.5, 0.0) and spec.std == (0.25, 0.25, 0.25, 1.0)
    assert spec.image_channels == (True, True, True, False) and spec.picture == (0, 3)
    assert InputSpec.model_validate(spec.model_dump(mode="json")) == spec
    plain = InputSpec(shape=(1, 2, 2), mean=(0.0,), std=(1.0,), classes=2)
    assert "inputs" not in plain.model_dump() and plain.picture == (0, 1)


def test_units_of_pixels_are_refused_of_images_alone() -> None:
    assert given("sound", 1, 9, mean=-40.0, std=30.0).mean == (-40.0,)
    with pytest.raises(ConfigError, match="divide both by 255"):
        build(Input, given("image", 3, 2, 2).model_dump() | {"mean": (120.0,) * 3}, "test")


@pytest.mark.parametrize(
    ("text", "shape"),
    [("1,16000", (1, 16000)), ("3,32,32;10", ((3, 32, 32), (10,))), ("10", (10,)),
     ([[3, 32, 32], [10]], ((3, 32, 32), (10,))), ([[10]], (10,))],
)  # fmt: skip
def test_shapes_are_read_in_every_form(text: object, shape: object) -> None:
    assert RunConfig(model="m", input_shape=text).input_shape == shape  # pyright: ignore


@pytest.mark.parametrize("text", ["3,32,32;", "3,0,1", "a", "3,4.5", ""])
def test_other_shapes_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a shape such as 3,224,224") as caught:
        build(RunConfig, {"model": "m", "input_shape": text}, "options")
    assert "\n" not in str(caught.value)


def test_shapes_means_and_deviations_survive_a_file(tmp_path: Path) -> None:
    told = {"input_shape": "3,32,32;10", "mean": "0.5,0.5,0.5;", "std": "0.5,0.5,0.5;"}
    config = build(RunConfig, {"model": "m", **told}, "options")
    assert config.mean == ((0.5, 0.5, 0.5), ())
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
