"""What is proposed, and that it can be carried out."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datafree.cli import console
from datafree.cli.app import app
from datafree.config import RunConfig
from datafree.report import Report, Source
from datafree.report.advice import Advice, advised

pytestmark = pytest.mark.integration


def proposals(source: Source, report: Report, **changes: Any) -> list[Advice]:
    assert report.layers is not None
    return list(advised(replace(unjudged(source), **changes), report.layers))


def unjudged(source: Source) -> Source:
    """As it would be without a verdict."""
    metrics = {name: value for name, value in source.metrics.items() if name != "verdict"}
    return replace(source, metrics=metrics)


def starts(found: list[Advice]) -> list[str]:
    return [one.text.split()[0] for one in found]


def test_labels_bits_and_rounding_are_proposed(source: Source, report: Report) -> None:
    assert report.layers is not None
    found = proposals(source, report)
    assert starts(found) == ["Nothing", "Give", "Learn"]
    weak = report.layers.weakest
    assert f"{weak[0].path} and {weak[1].path}" in found[1].text


def test_commands_are_understood_beside_the_run(
    source: Source, report: Report, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    seen: list[RunConfig] = []

    def keep(config: RunConfig, output: Path, *, force: bool) -> None:
        seen.append(config)

    monkeypatch.setattr(console, "run_and_show", keep)
    found = proposals(replace(source, name=folder.name), report)
    for one in found[1:]:
        assert one.command is not None
        app.main(shlex.split(one.command)[1:], standalone_mode=False)
    assert report.layers is not None
    assert seen[0].layer_bits == {row.path: 8 for row in report.layers.weakest[:2]}
    assert (seen[1].reconstruction, seen[1].images) == ("genie_m", 256)
    assert all(config.bits == "W4A4" and config.method == "noise" for config in seen)


def test_nothing_is_proposed_that_was_done(source: Source, report: Report) -> None:
    done = source.asked.model_copy(update={"reconstruction": "genie_m"})
    metrics = {"top1": {"teacher": 1.0, "student": 1.0}, "test_images": 1}
    assert starts(proposals(source, report, asked=done, config=done, metrics=metrics)) == ["Give"]
    undecided = {**metrics, "reconstruction": [{"rounded": 10, "undecided": 5}]}
    found = proposals(source, report, asked=done, config=done, metrics=undecided)
    assert "50 % of the roundings" in found[1].text


def test_layers_of_8_bits_get_no_more(source: Source, report: Report) -> None:
    assert report.layers is not None
    rows = tuple(replace(r, weight=replace(r.weight, bits=8)) for r in report.layers.rows)
    layers = replace(report.layers, rows=rows, weakest=rows)
    eight = source.asked.model_copy(update={"bits": "W8A8"})
    assert starts(list(advised(replace(unjudged(source), config=eight), layers))) == ["Nothing"]


def test_much_clipping_asks_for_other_ranges(source: Source, report: Report) -> None:
    assert report.layers is not None
    (name, found), *_ = report.layers.rows[1].inputs
    row = replace(report.layers.rows[1], inputs=((name, replace(found, clipped=0.125)),))
    layers = replace(report.layers, rows=(row,))
    asked = source.asked.model_copy(update={"calibrator": "mse"})
    last = advised(replace(source, asked=asked), layers)[-1]
    assert "at most 12.5 %" in last.text
    assert last.command is not None
    assert "--calibrator minmax" in last.command


def test_a_network_in_memory_gets_words_and_no_command(source: Source, report: Report) -> None:
    asked = source.asked.model_copy(update={"model": "<Net in memory>"})
    found = proposals(source, report, asked=asked, config=asked)
    assert [one.command for one in found[1:]] == [None, None]
