"""Tables of what was done to the toolkit: faults, changed files, drawn networks, tests.

Their records are written by programs of their own, see docs/results/attacks.md, where each table
stands between ``<!-- attacks: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.blocks import named, rendered
from benchmarks.place import Place
from datafree.errors import ConfigError

_MARK = "attacks"
_FAULTS = {
    "kill": "killed", "terminate": "SIGTERM", "interrupt": "Ctrl-C", "full": "disk full",
    "size": "size limit", "read-only": "read-only", "vanished": "no folder", "twice": "two at once",
}  # fmt: skip


def render(text: str, place: Place) -> str:
    """A page with the tables between its comments made anew.

    Raises:
        ConfigError: there is no table of a name.
    """

    def body(name: str) -> str:
        if name not in _TABLES:
            raise ConfigError(f"no attack is called {name}: choose from {', '.join(_TABLES)}")
        return _TABLES[name](place.house / "results")

    return rendered(text, _MARK, body)


def tables_in(text: str) -> list[str]:
    """Tables that a page shows."""
    return named(text, _MARK)


def _faults(results: Path) -> str:
    """Command by fault: tries, and in brackets those that ended without a result."""
    told = json.loads((results / "faults.json").read_text(encoding="utf-8"))
    cells = {(cell["command"], cell["fault"]): cell for cell in told["cells"]}
    rows = [
        [command, *(_tries(cells[command, fault]) for fault in _FAULTS)]
        for command in dict.fromkeys(cell["command"] for cell in told["cells"])
    ]
    early = sum(cell["ended early"] for cell in told["cells"])
    below = (
        f"{told['tries']} tries in {told['seconds'] / 60:.0f} minutes, {early} of which ended"
        f" without a result; {len(told['wrong'])} left anything behind that should not be."
    )
    return _grid(["command", *_FAULTS.values()], rows, below)


def _tries(cell: dict[str, Any]) -> str:
    return f"{cell['tries']} ({cell['ended early']})"


def _fuzzed(results: Path) -> str:
    """By reader: executions, what was taken, time."""
    text = (results / "fuzz.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.splitlines()]
    rows: list[list[str]] = []
    for reader in sorted({record["cell"]["reader"] for record in records}):
        own = [record for record in records if record["cell"]["reader"] == reader]
        last = own[-1]["measured"]
        rows.append([
            reader, f"{_sum(own, 'executions'):,}", f"{_sum(own, 'accepted'):,}",
            f"{sum(one['seconds'] for one in own) / 60:.1f}", f"{last['slowest']:.1f}",
            str(len(last["findings"])),
        ])  # fmt: skip
    below = (
        f"{_sum(records, 'executions'):,} executions in"
        f" {sum(one['seconds'] for one in records) / 60:.0f} minutes. The slowest and the findings"
        " are those of a reader's last run."
    )
    heads = ["reader", "executions", "taken", "minutes", "slowest, s", "findings left"]
    return _grid(heads, rows, below)


def _sum(records: Iterable[Any], name: str) -> int:
    return sum(record["measured"][name] for record in records)


def _networks(results: Path) -> str:
    """By width: files of drawn networks, refused and different ones."""
    text = (results / "drawn_networks.jsonl").read_text(encoding="utf-8")
    cells = [json.loads(line) for line in text.splitlines()]
    rows: list[list[str]] = []
    for bits in dict.fromkeys(cell["bits"] for cell in cells):
        own = [cell for cell in cells if cell["bits"] == bits]
        whole = [cell for cell in own if "refused" not in cell and not cell["float"]]
        rows.append([
            bits, str(len(own)), str(sum("refused" in cell for cell in own)), str(len(whole)),
            str(sum(cell["difference"] > 0 for cell in whole)),
            str(sum(cell.get("other predictions", 0) for cell in own)),
        ])  # fmt: skip
    count = len({cell["seed"] for cell in cells})
    below = f"{count} networks, 64 images each."
    heads = ["bits", "files", "refused", "integer as a whole", "of these different",
             "other predictions"]  # fmt: skip
    return _grid(heads, rows, below)


def _mutations(results: Path) -> str:
    """By module: changes, and how many of them a test noticed."""
    told = json.loads((results / "mutations.json").read_text(encoding="utf-8"))
    rows = [
        [
            f"`{name}`", str(one["noticed"] + len(one["survived"])), str(one["noticed"]),
            f"{_score([one]):.1f}", str(len(one["equivalent"])),
        ]
        for name, one in told.items()
    ]  # fmt: skip
    parts = {
        folder: _score([one for name, one in told.items() if name.startswith(f"{folder}/")])
        for folder in dict.fromkeys(name.partition("/")[0] for name in told)
    }
    scores = ", ".join(f"{score:.1f} % in `{folder}/`" for folder, score in parts.items())
    return _grid(["module", "changes", "noticed", "%", "set aside"], rows, f"Noticed are {scores}.")


def _score(modules: list[dict[str, Any]]) -> float:
    noticed = sum(one["noticed"] for one in modules)
    return 100 * noticed / max(1, noticed + sum(len(one["survived"]) for one in modules))


def _branches(results: Path) -> str:
    """By folder of the package: branches, and how many of them tests take."""
    told = json.loads((results / "branches.json").read_text(encoding="utf-8"))
    rows = [
        [
            "beside the folders" if name == "." else f"`{name}/`", str(one["branches"]),
            str(one["taken"]), _share(one["taken"], one["branches"]),
            _share(one["run"], one["lines"]),
        ]
        for name, one in told["parts"].items()
    ]  # fmt: skip
    whole = told["all"]
    both = whole["branches"] + whole["lines"]
    below = (
        f"Taken are {whole['taken']:,} of {whole['branches']:,} branches,"
        f" {_share(whole['taken'], whole['branches'])} %, and run {whole['run']:,} of"
        f" {whole['lines']:,} statements, {_share(whole['run'], whole['lines'])} %: together, as"
        f" coverage counts, {_share(whole['taken'] + whole['run'], both)} %. Commit"
        f" {told['commit']}."
    )
    return _grid(["folder", "branches", "taken", "%", "statements, %"], rows, below)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}"


def _grid(heads: list[str], rows: list[list[str]], below: str) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return (
        "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{textwrap.fill(below, 99)}"
    )


_TABLES: dict[str, Callable[[Path], str]] = {
    "faults": _faults, "fuzz": _fuzzed, "networks": _networks, "mutations": _mutations,
    "branches": _branches,
}  # fmt: skip
