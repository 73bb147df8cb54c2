"""Write the reference pages from the fields of configurations and methods.

    python scripts/reference.py            # writes docs/reference/*.md
    python scripts/reference.py --check    # exit code 1 where a page is not what this would write

What an option means, its default and its range are told once, on its field; so are the
hyper-parameters of methods.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from datafree.api import DistillCall, QuantizeCall, SynthesizeCall
from datafree.config import DistillOptions, Frozen, RunConfig
from datafree.config.fields import (
    PANELS,
    Described,
    describe,
    in_panels,
    option_name,
    panel_of,
)
from datafree.registry import KINDS, built_in
from datafree.runs.methods import BASES, STEPS, Explained, explain, explained

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
CALLS: dict[str, type[Frozen]] = {
    "quantize": QuantizeCall,
    "distill": DistillCall,
    "synthesize": SynthesizeCall,
}
OWNERS = {("quantize", "distill"): "", tuple(CALLS): " *`synthesize` too.*"}
OPTIONS = """# Options

`datafree quantize`, `distill` and `synthesize` take these options on the command line, the
functions of the same names take them as keywords, and `config.yaml` of a run holds them. The name
is the same everywhere: `--max-time` is `max_time` in Python and in files. A dictionary such as
`method_options` is `--method-option NAME=VALUE`, repeated.

Before all of them stands the model: a source as in [Command line](../cli.md), `model=` in Python,
where it can be a module too. An option is of `quantize` and of `distill` unless its line says
otherwise.

This page is written by `python scripts/reference.py` from the fields of `datafree.config`.
"""
METHODS = """# Methods

Every method of this version: what it computes, where it comes from, and its hyper-parameters with
their defaults. `datafree methods NAME` prints the same; methods from outside are explained in
[Adding a method](../extending.md).

This page is written by `python scripts/reference.py` from the methods themselves.
"""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in lines
    )


def option_row(field: Described, commands: Sequence[str]) -> tuple[str, str, str]:
    """Name, default and meaning of one option."""
    name = option_name(field.name)
    python = "" if name == f"--{field.name.replace('_', '-')}" else f" (`{field.name}`)"
    takes = "" if field.choices or not field.allowed else f" ({field.allowed})"
    choices = f" One of {', '.join(f'`{c}`' for c in field.choices)}." if field.choices else ""
    owners = OWNERS.get(tuple(commands), f" *Only {' and '.join(commands)}.*")
    return f"`{name}`{python}", field.default, f"{field.meaning}{takes}{choices}{owners}"


def options_page() -> str:
    """All options by panel."""
    rows: dict[str, list[tuple[str, str, str]]] = {panel: [] for panel in PANELS}
    names = dict.fromkeys([name for cls in CALLS.values() for name in cls.model_fields])
    known = in_panels(RunConfig)
    for name in sorted(names, key=lambda n: known.index(n) if n in known else len(known)):
        owner = next(cls for cls in (RunConfig, *CALLS.values()) if name in cls.model_fields)
        field = describe(owner, name)
        if field.shown.hidden or name == "progress":
            continue
        commands = [command for command, cls in CALLS.items() if name in cls.model_fields]
        rows[panel_of(owner, name)].append(option_row(field, commands))
    text = OPTIONS
    for panel, found in rows.items():
        if not found:  # of commands that have a page of their own
            continue
        text += f"\n## {panel}\n\n{table(('option', 'default', 'meaning'), found)}"
    bits = describe(DistillOptions, "bits")
    return f"{text}\nFor `distill`, `--bits` defaults to {bits.default}: {bits.meaning}\n"


def method_section(method: Explained) -> str:
    """One method."""
    text = f"\n### `{method.name}`\n\n{method.text}\n"
    if method.citation:
        text += f"\nFrom: {method.citation}\n"
    if method.fields:
        rows = [(f"`{f.name}`", f.default, f.allowed, f.meaning) for f in method.fields]
        text += "\n" + table(("hyper-parameter", "default", "takes", "meaning"), rows)
    return text


def methods_page() -> str:
    """All methods by kind."""
    text = METHODS
    for package in BASES:
        text += f"\n## {KINDS[package].capitalize()}s\n"
        for name in built_in(package):
            text += method_section(explain(package, name))
    text += "\n## Last step of `synthesize`\n"
    return text + "".join(method_section(explained(name)) for name in STEPS)


def pages() -> dict[Path, str]:
    """What stands in every page."""
    return {FOLDER / "options.md": options_page(), FOLDER / "methods.md": methods_page()}


def main() -> None:
    """Write the pages, or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    old = [
        path.name
        for path, text in pages().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if args.check:
        sys.exit(f"out of date: {', '.join(old)}: run scripts/reference.py" if old else 0)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
