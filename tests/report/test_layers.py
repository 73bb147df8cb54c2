"""Rows of layers: sizes, noise, and which is weakest."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

from datafree.quant.grid import Grid
from datafree.quant.modules import Quantizer, quantize_layer
from datafree.report import Report, Source, collect
from datafree.report.layers import described, isolated, layers_of

pytestmark = pytest.mark.integration


def test_every_quantized_layer_has_a_row_in_order(report: Report, source: Source) -> None:
    assert report.layers is not None
    assert [row.path for row in report.layers.rows] == list(source.metrics["sqnr_db"])
    first, last = report.layers.rows[0], report.layers.rows[-1]
    assert (first.path, first.kind, first.weights) == ("stem.0", "3x3, 1 to 16", 144)
    assert (last.path, last.kind, last.weights) == ("classifier", "linear, 64 to 10", 640)
    assert first.weight.bits == 4
    assert [found.bits for _, found in first.inputs] == [8], "the image has 8 bits"
    assert all(row.sqnr_db == source.metrics["sqnr_db"][row.path] for row in report.layers.rows)


def test_without_isolated_measures_the_weakest_adds_most_noise_of_its_own(source: Source) -> None:
    metrics = {name: value for name, value in source.metrics.items() if name != "isolation"}
    report = collect(replace(source, metrics=metrics))
    assert report.layers is not None
    noises = [row.own_noise for row in report.layers.weakest]
    assert noises == sorted(noises, reverse=True)
    assert "adds most noise" in report.layers.measure
    assert "Layers were not quantized one by one in this run." in report.layers.missing


def test_isolated_measures_decide_where_there_are_some(source: Source) -> None:
    shares = {
        path: {"alone": 0.1 * place, "without": 1.0 - 0.05 * place}
        for place, path in enumerate(source.metrics["sqnr_db"])
    }
    found = layers_of(source.student, {}, [], {"isolation": {"total": 1.0, "by_layer": shares}})
    last = list(shares)[-1]
    assert found.weakest[0].path == last
    assert found.total == 1.0
    assert found.alone(found.weakest[0]) == 1.0
    assert found.blame(found.weakest[0]) == pytest.approx(0.45)
    assert found.missing == (
        "Noise over all layers before was not measured: the run had no images.",
    )


def test_what_was_not_measured_is_not_invented() -> None:
    assert isolated({}) == ({}, None)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.Conv2d(8, 8, 3, groups=8, stride=2), "3x3, 8 to 8, depthwise, stride 2"),
        (nn.Conv2d(8, 16, (1, 5), groups=4), "1x5, 8 to 16, 4 groups"),
        (nn.Conv1d(2, 3, 7), "7, 2 to 3"),
        (nn.Linear(5, 6), "linear, 5 to 6"),
    ],
)
def test_layers_are_described(layer: nn.Module, text: str) -> None:
    assert described(quantize_layer(layer, Quantizer(Grid(8)))) == text


def test_an_unclipped_layer_of_a_float_input_says_so(report: Report) -> None:
    assert report.layers is not None
    row = report.layers.rows[0]
    assert replace(row, inputs=()).clipped == row.weight.clipped
