"""The page of published results: blocks made from `targets.csv` and records.

``<!-- targets: SOURCE [DATASET [ARCH]] -->`` and ``<!-- end -->`` stand around rows of a paper's
table, ``<!-- targets: summary -->`` around their count.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations

from benchmarks import published
from benchmarks.blocks import named, rendered
from benchmarks.page import Shown, Source, caption, filled, number
from benchmarks.targets import FLOAT, Ours, Target, commands, found
from datafree.errors import ConfigError, UnknownNameError

SUMMARY = "summary"
PAPERS = {
    "T1": "DSG, Table 1: its parts",
    "T2": "DSG, Table 2: calibration, CIFAR-10",
    "T3a": "DSG, Table 3a: calibration, ResNets",
    "T3b": "DSG, Table 3b: calibration, other networks",
    "T4a": "DSG, Table 4a: fine-tuning, ResNets",
    "T4b": "DSG, Table 4b: fine-tuning, other networks",
    "T5": "DSG, Table 5: calibrators",
    "T6": "DSG, Table 6: with DFQ",
    "T7": "DSG, Table 7: with AdaRound",
    "S-resnet18": "DSG, slides: ResNet-18",
    "S-motivation": "DSG, slides: motivation",
    "F-T2": "DFQF, Table 2: distillation",
    "F-T3": "DFQF, Table 3: losses, steps",
    "F-T4": "DFQF, Table 4: quantization",
    "A-T1": "SADAG, Table 1: real images",
    "A-T2": "SADAG, Table 2: CIFAR-100",
    "A-T3": "SADAG, Table 3: ImageNet",
    "A-footnote1": "SADAG, footnote 1",
    "A-T4": "SADAG, Table 4: number of images",
    "A-T5": "SADAG, Table 5: a weight",
    "A-T6": "SADAG, Table 6: the other weight",
}
"""Sources in the order of the page, in words."""
_MARK = "targets"
_ORDERS = {
    "same": "in the paper's order",
    "other": "the other way round",
    "near": "nearer to each other than their spread over seeds",
    "single": "with a row of one seed, which say nothing",
}
_STATES = ("reproduced", "repeated", "not run")
_PLACES = ("¹", "²", "³", "⁴")
_NOTHING = "–"  # noqa: RUF001 - a dash
Sources = Callable[[str], Source]
Pair = tuple[Target, Ours]
Orders = dict[frozenset[tuple[str, str, str]], str]
"""By the two numbers of a pair: ``same``, ``other``, ``near`` or ``single``."""


def render(text: str, rows: Sequence[Target], sources: Sources) -> str:
    """A page with the blocks between its comments made anew.

    Args:
        text: of the page.
        rows: of `targets.csv`.
        sources: the table called so, with its records.

    Raises:
        ConfigError: a block that no row belongs to, or a row whose cell is not there.
    """

    def body(words: str) -> str:
        return _summary(rows, sources) if words == SUMMARY else _shown(rows, words, sources)

    return rendered(text, _MARK, body)


def blocks_in(text: str) -> list[str]:
    """The words of the blocks that a page shows."""
    return named(text, _MARK)


def chosen(rows: Iterable[Target], words: str) -> list[Target]:
    """Rows of a block: ``SOURCE``, ``SOURCE DATASET`` or ``SOURCE DATASET ARCH``.

    Raises:
        UnknownNameError: no such source.
        ConfigError: the block is empty.
    """
    asked = words.split()
    if asked[0] not in PAPERS:
        raise UnknownNameError("source of targets", asked[0], PAPERS)
    of = [row for row in rows if [row.source, row.dataset, row.arch][: len(asked)] == asked]
    if not of:
        raise ConfigError(f"no row of targets.csv belongs to {words!r}")
    return of


def _summary(rows: Sequence[Target], sources: Sources) -> str:
    """Rows by source and state, and how often orders agree."""
    lines: list[Sequence[object]] = []
    orders: Orders = {}
    for source, title in PAPERS.items():
        of = [row for row in rows if row.source == source]
        states = Counter(row.state for row in of)
        lines.append([title, len(of), *(states[state] for state in _STATES)])
        orders |= _orders([(row, _found(row, sources)) for row in of if row.run])
    states = Counter(row.state for row in rows)
    lines.append(["all", len(rows), *(states[state] for state in _STATES)])
    grid = _grid(["paper", "rows", *_STATES], lines)
    return f"{grid}\n\n{filled(_told(orders))}"


def _shown(rows: Sequence[Target], words: str, sources: Sources) -> str:
    """What was run of a block beside the paper's numbers, then what was not."""
    of = chosen(rows, words)
    run = [(row, _found(row, sources)) for row in of if row.run]
    parts = _beside(run, _floats(rows, of[0].source)) if run else []
    for what in dict.fromkeys(row.missing for row in of if not row.run):
        alike = [row for row in of if row.missing == what]
        parts += [filled(f"**Not run.** Missing: {what}."), _published(alike)]
    if elsewhere := _elsewhere(of):
        told = "**On the network and data of the paper**, its first width; `--bits` has others:"
        parts += [told, "\n".join(["```sh", *elsewhere, "```"])]
    return "\n\n".join(parts)


def _elsewhere(rows: Iterable[Target]) -> list[str]:
    """One command for each network and method that has a public name."""
    told: dict[tuple[str, str], str] = {}
    for row in rows:
        told.setdefault((row.arch, row.method), published.command(row))
    return list(dict.fromkeys(filter(None, told.values())))


def _found(row: Target, sources: Sources) -> Ours:
    return found(row, sources, f"targets.csv, {row.source}, {row.method}, {row.arch}, {row.bits}")


def _floats(rows: Iterable[Target], source: str) -> dict[tuple[str, str], float]:
    """What float networks have in a paper's table, or else in another table of that paper."""
    found: dict[tuple[str, str], float] = {}
    for row in sorted(rows, key=lambda row: row.source != source):
        if row.source[0] == source[0] and _method(row) == FLOAT:
            found.setdefault((row.dataset, row.arch), row.published)
    return found


def _beside(run: Sequence[Pair], floats: Mapping[tuple[str, str], float]) -> list[str]:
    """Published numbers and ours, how ours were measured, commands."""
    changes = Shown(run[0][1].source.table).changes  # one list, so that marks do not repeat
    names = dict.fromkeys(ours.source.table.name for row, ours in run if _method(row) != FLOAT)
    names = list(names or dict.fromkeys(ours.source.table.name for _, ours in run))
    shown: dict[str, Shown] = {}
    lines: list[Sequence[str]] = []
    several = len({(row.dataset, row.arch) for row, _ in run}) > 1
    for row, ours in run:
        table = ours.source.table
        marks = shown.setdefault(table.name, Shown(table, changes=changes)).marks
        place = _PLACES[names.index(table.name)] if len(names) > 1 and table.name in names else ""
        theirs = floats.get((row.dataset, row.arch))
        lost = None if theirs is None else theirs - row.published
        lines.append([
            *[f"{row.arch}, {row.dataset}"] * several, _method(row), row.bits, row.top1,
            _lost(lost, row), number(ours.values, 2) + marks(ours.records.values()) + place,
            _lost(ours.teacher - ours.mean, row), row.state,
        ])  # fmt: skip
    heads = ["method", "bits", "published", "lost", "here", "lost here", "state"]
    told = [
        filled(f"{f'{place} ' * (len(names) > 1)}{caption(shown[name].table, shown[name].cells)}")
        for name, place in zip(names, _PLACES, strict=False)
    ]
    notes = map(filled, Shown(run[0][1].source.table, changes=changes).notes())
    orders = _orders(run)
    code = "\n".join(["```sh", *commands([row for row, _ in run]), "```"])
    return [
        _grid(["network"] * several + heads, lines), *[filled(_told(orders))] * bool(orders),
        *told, *notes, code,
    ]  # fmt: skip


def _lost(points: float | None, row: Target) -> str:
    return _NOTHING if points is None or _method(row) == FLOAT else f"{points:.2f}"


def _method(row: Target) -> str:
    if row.method in ("fp32", "teacher"):
        return FLOAT
    name, _, option = row.method.partition("|")
    return f"{name} ({option})" if option else name


def _published(rows: Sequence[Target]) -> str:
    """Numbers of a paper by network, method and bits."""
    widths = sorted({(-int(row.W), -int(row.A), row.bits) for row in rows if row.W.isdecimal()})
    bits = [name for *_, name in widths] or [rows[0].bits]
    several = len({(row.dataset, row.arch) for row in rows}) > 1
    places: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        names = (*[f"{row.arch}, {row.dataset}"] * several, _method(row))
        places.setdefault(names, {})[row.bits] = row.top1
    lines = [[*names, *(own.get(one, _NOTHING) for one in bits)] for names, own in places.items()]
    return _grid([*["network"] * several, "method", *bits], lines)


def _orders(run: Sequence[Pair]) -> Orders:
    """Pairs of rows whose cells differ in one axis: whether ours stand as the paper's do.

    Papers repeat numbers from table to table; a pair of the same numbers has the same key.
    """
    told: Orders = {}
    for (a, our_a), (b, our_b) in combinations(run, 2):
        key = frozenset((row.top1, row.table, row.cell) for row in (a, b))
        if not _alike(a, b) or a.published == b.published:
            continue
        ours = our_a.mean - our_b.mean
        if our_a.spread is None or our_b.spread is None:
            told[key] = "single"
        elif abs(ours) <= math.hypot(our_a.spread, our_b.spread):
            told[key] = "near"
        else:
            told[key] = "same" if (ours > 0) == (a.published > b.published) else "other"
    return told


def _alike(a: Target, b: Target) -> bool:
    """Whether they are of one network at the same bits, and their cells differ in one axis."""
    if any(getattr(a, name) != getattr(b, name) for name in ("table", "dataset", "arch", "bits")):
        return False
    return sum(a.where[axis] != b.where[axis] for axis in a.where) == 1 and FLOAT not in (
        _method(a), _method(b)
    )  # fmt: skip


def _told(orders: Orders) -> str:
    count = Counter(orders.values())
    parts = [f"{count[order]} {words}" for order, words in _ORDERS.items() if count[order]]
    return f"Pairs of rows at the same bits that differ in one thing: {', '.join(parts)}."


def _grid(heads: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)
