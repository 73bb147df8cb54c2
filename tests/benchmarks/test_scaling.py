"""How costs grow, on costs that are known; the page is what the records say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from benchmarks.page import Source
from benchmarks.page import render as rendered
from benchmarks.place import Place
from benchmarks.record import Record, latest
from benchmarks.scaling import AXES, Curve, Models, blocks_in, cores, curves, render
from benchmarks.scaling_fit import (
    HELD_OUT,
    Checked,
    Linear,
    Power,
    batched,
    block_features,
    generator_features,
    pass_features,
    rest,
    rest_features,
)
from benchmarks.scaling_plot import lines
from benchmarks.table import load_tables
from benchmarks.various import built
from torch import nn

from datafree.errors import ConfigError

PLACE = Place.here()
TABLES = load_tables(PLACE.house / "tables")
PAGE = PLACE.root / "docs" / "scaling.md"


def source(name: str) -> Source:
    return Source(TABLES[name], latest(TABLES[name], PLACE))


def sizes(macs: float, kept: float, layers: int, **more: float) -> dict[str, float]:
    return {
        "macs": macs,
        "kept": kept,
        "layers": layers,
        "weights": 5e5,
        "batch": 4,
        "passes": 2,
        **more,
    }


def a_record(network: str, images: int, **measured: Any) -> Record:
    return Record(
        table="scaling", cell={"network": network, "images": str(images), "seed": 0},
        measured={"images": images, **measured}, environment={"date": "2026-11-27"},
    )  # fmt: skip


def test_an_exponent_by_hand() -> None:
    exact = Power.of([1, 2, 4], [3, 3 * 2**1.5, 24])
    assert exact.exponent == pytest.approx(1.5)
    assert exact.error == pytest.approx(0, abs=1e-9)
    assert exact.at(16) == pytest.approx(192)
    # Logarithms 0, 1, 0 at -1, 0, 1: no slope; squares 1/9, 4/9, 1/9 over one degree and 2.
    found = Power.of([1 / math.e, 1, math.e], [1, math.e, 1])
    assert found.exponent == pytest.approx(0)
    assert found.error == pytest.approx(math.sqrt(2 / 3 / 2))
    assert str(found) == "0.00 ± 0.58"


def test_features_by_hand() -> None:
    told = sizes(2e9, 5e8, 10, pixels=1e6, generator=3e9)
    assert pass_features(told) == {"gmacs": 8, "gbytes": 2, "layers": 20, "mweights": 1}
    assert block_features(told) == {"gmacs": 8, "gbytes": 2, "layers": 10, "mweights": 0.5}
    assert generator_features(told) == {
        "gmacs": 8, "gbytes": 2, "layers": 10, "mweights": 0.5, "megapixels": 4, "gweights": 3,
    }  # fmt: skip
    assert rest_features(told) == {
        "run": 1,
        "layers": 10,
        "gmacs": 2,
        "gbytes": 0.5,
        "mweights": 0.5,
    }


def test_prices_that_are_there_are_found_and_none_is_negative() -> None:
    networks = [sizes(m * 1e8, k * 1e7, n) for m, k, n in ((1, 9, 20), (20, 3, 50), (4, 7, 110))]
    wanted = [0.5 * f["gmacs"] + 2 * f["gbytes"] for f in map(pass_features, networks)]
    prices = Linear.of(pass_features, networks, wanted).prices
    assert prices == pytest.approx(
        {"gmacs": 0.5, "gbytes": 2, "layers": 0, "mweights": 0}, abs=1e-9
    )
    against = [one["gmacs"] - 0.001 * one["layers"] for one in map(pass_features, networks)]
    assert min(Linear.of(pass_features, networks, against).prices.values()) == 0


def test_the_network_held_out_is_not_seen() -> None:
    known = {
        name: sizes(1e8 * (5 + 7 * n % 11), 1e7 * (1 + 5 * n % 7), 20 + 9 * n % 40)
        for n, name in enumerate(["a", "b", "c", "d", "e", HELD_OUT])
    }
    seconds = {
        name: 0.3 * told["gmacs"] + told["gbytes"] + 1e-3 * told["layers"]
        for name, told in ((name, pass_features(one)) for name, one in known.items())
    }
    exact = Checked.of(pass_features, seconds, known, HELD_OUT)
    assert exact.error == pytest.approx(0, abs=1e-6)
    assert exact.usual == pytest.approx(0, abs=1e-6)
    assert set(exact.errors) == {"a", "b", "c", "d", "e"}
    moved = Checked.of(pass_features, {**seconds, HELD_OUT: 2 * seconds[HELD_OUT]}, known, HELD_OUT)
    assert moved.model.prices == exact.model.prices
    assert moved.error == pytest.approx(-0.5)
    outlier = Checked.of(pass_features, {**seconds, "c": 3 * seconds["c"]}, known, HELD_OUT)
    assert outlier.errors["c"] == pytest.approx(-2 / 3, abs=0.01)


def test_errors_are_relative_and_have_signs() -> None:
    checked = Checked(Linear({}, pass_features), {"a": 0.1, "b": -0.3}, 2.0, 3.0)
    assert (checked.worst, checked.error) == ("b", 0.5)
    assert checked.usual == pytest.approx(0.2)


@pytest.mark.parametrize(("side", "passes"), [(32, 1), (96, 2), (224, 32)])
def test_a_batch_passes_as_the_cache_allows(side: int, passes: int) -> None:
    told = batched({"pixels": side * side, "macs": 1.0}, 32)
    assert told == {"pixels": side * side, "macs": 1.0, "batch": 32, "passes": passes}


def test_a_core_is_busy_all_day() -> None:
    assert cores(86.4) == pytest.approx(1)
    assert rest({"run": {"seconds": 50.0}, "dsg": {"step": 2.0}}) == 30


def test_curves_are_against_images_and_blocks() -> None:
    records = [
        a_record("resnet20", 32, zeroq={"seconds": 1.0}, export={"seconds": 5.0}),
        a_record("resnet20", 64, zeroq={"seconds": 2.0}, allocation={}),
        a_record("resnet20", 128, zeroq={"seconds": 4.0}),
        a_record("resnet56", 32, zeroq={"seconds": 3.0}, export={"seconds": 9.0}),
        a_record("resnet110", 32, zeroq={"seconds": 6.0}, export={"seconds": 16.0}),
        a_record("resnet18", 4, zeroq={"seconds": 7.0}),
    ]
    (images,) = curves(records, "images")
    assert (images.part, images.sizes, images.seconds) == ("zeroq", (32, 64, 128), (1, 2, 4))
    assert images.power.exponent == pytest.approx(1)
    blocks = curves(records, "blocks")
    assert [curve.part for curve in blocks] == ["zeroq", "export"]
    assert blocks[0].sizes == (9, 27, 54) and blocks[0].power.exponent == pytest.approx(1)


def test_the_picture_is_written(tmp_path: Path) -> None:
    curve = Curve("zeroq", (1, 2, 4), (3, 6, 12), Power.of([1, 2, 4], [3, 6, 12]))
    lines({axis: [curve] for axis in AXES}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("depth", [20, 110])
def test_deep_networks_have_their_layers(depth: int) -> None:
    """6 n + 2 of them, and two where a stage begins with other shapes."""
    model, shape = built(f"resnet{depth}")
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert (len(layers), shape) == (depth + 2, (3, 32, 32))


def test_the_page_shows_what_the_records_say() -> None:
    text = PAGE.read_text(encoding="utf-8")
    made = render(rendered(text, source), source)
    assert made == text, "run `python -m benchmarks render`"
    assert len(set(blocks_in(text))) == len(blocks_in(text)) == 7
    with pytest.raises(ConfigError, match="no block of scaling is called month"):
        render("<!-- scaling: month -->\n<!-- end -->", source)


def test_costs_are_in_proportion_to_images_and_depth() -> None:
    """Issue 22: exponents at most 1.05, of all that is no matter of layers tried one by one."""
    records = tuple(source("scaling").records.values())
    for axis in AXES:
        found = {curve.part: curve for curve in curves(records, axis)}
        for part in ("zeroq", "genie", "calibration", "genie_m"):
            assert found[part].power.exponent <= 1.05
            assert len(found[part].sizes) == {"images": 6, "blocks": 5}[axis]


def test_models_tell_what_was_held_out() -> None:
    models = Models.of(source)
    for method, checked in models.steps.items():
        assert abs(checked.error) < 0.35, method
        assert HELD_OUT not in checked.errors and len(checked.errors) == 11
    assert models.default_run(HELD_OUT) > 10 * models.default_run("resnet20")
