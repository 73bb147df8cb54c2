"""The page is one file, well formed, complete for who cannot see, and safe."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from datafree.images import SyntheticSet
from datafree.report import Report, Source, collect, render
from datafree.report.frontier import FrontierPlot
from datafree.report.page import bar, embedded, percent, plots, short

pytestmark = pytest.mark.integration

SECTIONS = (
    "verdict", "change", "layers", "images", "statistics", "histograms", "frontier", "repeat",
    "methods",
)  # fmt: skip
VOID = {"meta", "link", "img", "br"}
EVIL = "</script><script>alert('x')</script><b>&\""


class Page(HTMLParser):
    """Elements of a page with their attributes; complains of tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def all(self, name: str) -> list[str]:
        return [str(attrs[name]) for _, attrs in self.elements if name in attrs]


@pytest.fixture(scope="module")
def text(report: Report) -> str:
    return render(report)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_it_is_one_small_file_without_addresses_to_load_from(text: str, page: Page) -> None:
    assert len(text.encode()) < 1_500_000
    assert all(link.startswith(("#", "data:")) for link in page.all("href"))
    assert all(link.startswith("data:") for link in page.all("src"))
    assert "@import" not in text and "url(http" not in text
    (policy,) = [p for p in page.all("content") if "default-src" in p]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe-inline" not in policy.partition("script-src")[2]


def test_sections_come_in_order_with_the_verdict_first(page: Page) -> None:
    found = [attrs["id"] for tag, attrs in page.elements if tag == "section"]
    assert found == list(SECTIONS)


def test_names_are_unique_and_what_refers_to_them_is_right(page: Page) -> None:
    names = page.all("id")
    assert len(names) == len(set(names))
    assert {link[1:] for link in page.all("href") if link.startswith("#")} <= set(names)
    assert set(page.all("aria-labelledby")) <= set(names)


def test_everything_to_be_seen_is_told_in_words(page: Page, report: Report) -> None:
    images = [attrs for tag, attrs in page.elements if tag == "img"]
    assert len(images) == 8
    assert all(attrs["alt"] for attrs in images)
    drawn = [attrs for _, attrs in page.elements if attrs.get("role") == "img"]
    assert all(len(str(attrs["aria-label"])) > 40 for attrs in drawn)
    assert {attrs["data-plot"] for attrs in drawn} == set(plots(report))
    scrolled = [attrs for _, attrs in page.elements if attrs.get("class") == "scroll"]
    assert all(attrs["tabindex"] == "0" for attrs in scrolled)


def test_numbers_stand_in_the_page_itself(text: str, report: Report) -> None:
    assert report.layers is not None
    for row in report.layers.rows:
        assert f"<code>{row.path}</code>" in text
        assert f"{row.weights:,}" in text
        assert f"{row.sqnr_db:.1f} dB" in text
    assert "datafree quantize digits_resnet8" in text
    assert "Nobody (2020), Noise" in text


def test_what_strangers_named_stays_text(report: Report) -> None:
    assert report.layers is not None
    row = replace(report.layers.rows[0], path=EVIL, inputs=((EVIL, report.layers.rows[0].weight),))
    layers = replace(report.layers, rows=(row,), weakest=(row,))
    picture = replace(report.pictures[0], text=EVIL, caption=EVIL)
    head = replace(report.headline, title=EVIL, sentence=EVIL, notes=(EVIL,), word=EVIL)
    assert report.sets is not None
    channel = replace(report.sets.channels[0], path=EVIL)
    evil = replace(
        report, name=EVIL, headline=head, layers=layers, pictures=(picture,), command=EVIL,
        call=EVIL, environment={EVIL: EVIL}, sets=replace(report.sets, channels=(channel,)),
    )  # fmt: skip
    text = render(evil)
    assert "<script>alert" not in text
    assert "<b>&" not in text
    assert [tag for tag, _ in Page(text).elements].count("script") == 4


def test_a_run_with_nothing_says_what_is_missing(source: Source) -> None:
    bare = replace(
        source, images=SyntheticSet.none(source.spec), metrics={}, seconds={}, methods=(),
        asked=source.asked.model_copy(update={"model": "<Net in memory>"}),
    )  # fmt: skip
    text = render(collect(bare))
    page = Page(text)
    assert [attrs["id"] for tag, attrs in page.elements if tag == "section"] == list(SECTIONS)
    assert "This run measured nothing" in text
    assert "This run used no images" in text
    assert "The network was in memory" in text
    assert text.count('class="missing"') >= 6


def test_a_float_student_has_no_layers(source: Source) -> None:
    config = source.config.model_copy(update={"float_student": True})
    text = render(collect(replace(source, config=config)))
    assert "The student of this run is not quantized" in text
    Page(text)


def test_the_frontier_is_told(report: Report) -> None:
    line, chosen = ((1.0, 2.0), (3.0, 0.1)), (2.0, 0.5)
    frontier = FrontierPlot("kB", line, (("4", 2.5, 0.7),), chosen, "4 bits on average", 3.9)
    text = render(replace(report, frontier=frontier))
    assert "3.90 bits on average" in text
    assert "4 bits 2.5 kB and 0.7 nats" in text


def test_isolated_measures_have_columns(source: Source) -> None:
    shares = {path: {"alone": 0.1, "without": 0.2} for path in source.metrics["sqnr_db"]}
    metrics = {**source.metrics, "isolation": {"total": 0.4, "by_layer": shares}}
    text = render(collect(replace(source, metrics=metrics)))
    assert "--length:50.0%" in text
    assert ">without</th>" in text
    plain = {name: value for name, value in source.metrics.items() if name != "isolation"}
    assert ">without</th>" not in render(collect(replace(source, metrics=plain)))


def test_embedded_values_can_be_read_and_end_no_script() -> None:
    text = embedded({EVIL: [1, "<!--"]})
    assert "<" not in text and ">" not in text
    assert json.loads(text) == {EVIL: [1, "<!--"]}


def test_numbers_are_as_exact_as_they_are_worth() -> None:
    assert [percent(x) for x in (None, 0, 0.00001, 0.0123, 0.5)] == [
        "\N{EN DASH}", "0 %", "< 0.01 %", "1.23 %", "50.0 %",
    ]  # fmt: skip
    assert [bar(x) for x in (None, 20.0, 0.0, -5.0)] == ["0.0", "10.0", "100.0", "100.0"]
    assert short(0.123456) == "0.123"


def test_the_libraries_are_those_that_their_licences_stand_beside(text: str) -> None:
    assert re.search(r"https://d3js.org v7\.\d", text)
    assert "@observablehq/plot v0.6.17" in text
    assert "Copyright 2010-2026 Mike Bostock" in text
    assert "Observable, Inc." in text
