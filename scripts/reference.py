"""Write the reference pages from the fields of configurations and methods.

    python scripts/reference.py            # writes docs/reference/
    python scripts/reference.py --check    # exit code 1 where a page is not what this would write

What an option means, its default and its range are told once, on its field; so are the
hyper-parameters of methods. Functions and classes are told in their docstrings, which the
documentation is built from: their pages list the modules.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

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
PACKAGES = {
    "synthesis": "Images from a network",
    "calibrators": "Ranges of activations",
    "corrections": "Weights and biases changed before",
    "allocation": "Mixed precision, and what single layers lose",
    "reconstruction": "Learned rounding",
    "training": "Fine-tuning and distillation",
    "losses": "Losses",
    "quant": "Grids and quantized layers",
    "targets": "Runtimes to quantize for",
    "graph": "The graph of a network",
    "models": "Networks from files and libraries",
    "images": "Sets of images",
    "generators": "Generator networks",
    "data": "Labelled images",
    "evaluate": "Measures on labelled images",
    "verdict": "Judgement without labels",
    "export": "Files",
    "runtimes": "Runtimes that files are tried in",
    "sweeps": "Many runs from one file",
    "testing": "Contracts for methods from outside",
}
"""What stages are made of, by the name behind `datafree.`, in the order of a run."""
PYTHON = """# Functions and classes

Everything that stages are made of: each can be used by itself, and methods from outside derive from
these classes. What most users need is less: [Python interface](../api.md). Names that begin with an
underscore are nobody's to use.

This page and those below it are written by `python scripts/reference.py` from the modules.

| package | what is in it |
| --- | --- |
"""
MODULE = """
## {name}

```{{eval-rst}}
.. automodule:: {name}
   :members:
   :show-inheritance:
```
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
    return text + "".join(method_section(one) for name in STEPS for one in explained(name))


def modules(package: str) -> list[str]:
    """Modules of a package, itself first, that have public functions or classes of their own."""
    root = importlib.import_module(f"datafree.{package}")
    below = pkgutil.walk_packages(getattr(root, "__path__", []), f"{root.__name__}.")
    names = [root.__name__, *(module.name for module in below)]
    public = [name for name in names if not any(p.startswith("_") for p in name.split("."))]
    return [name for name in public if _own(importlib.import_module(name))]


def _own(module: ModuleType) -> list[str]:
    """Names of public functions and classes that are defined in a module."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    ]


def python_pages() -> dict[Path, str]:
    """A page for every package, and one that lists them."""
    rows = "".join(
        f"| [`{name}`](python/{name}.md) | {what} |\n" for name, what in PACKAGES.items()
    )
    below = "\n".join(f"python/{name}" for name in PACKAGES)
    found = {FOLDER / "python.md": f"{PYTHON}{rows}\n```{{toctree}}\n:hidden:\n\n{below}\n```\n"}
    for package, what in PACKAGES.items():
        text = "".join(MODULE.format(name=name) for name in modules(package))
        found[FOLDER / "python" / f"{package}.md"] = f"# {what}\n{text}"
    return found


def pages() -> dict[Path, str]:
    """What stands in every page."""
    own = {FOLDER / "options.md": options_page(), FOLDER / "methods.md": methods_page()}
    return own | python_pages()


def main() -> None:
    """Write the pages, or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    found = pages()
    old = [
        path.name
        for path, text in found.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    old += [path.name for path in FOLDER.rglob("*.md") if path not in found]
    if args.check:
        sys.exit(f"out of date: {', '.join(old)}: run scripts/reference.py" if old else 0)
    (FOLDER / "python").mkdir(parents=True, exist_ok=True)
    for path in set(FOLDER.rglob("*.md")) - set(found):
        path.unlink()
    for path, text in found.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
