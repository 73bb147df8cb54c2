"""The floor plan holds: few rooms at the root, and no module imports one that imports it."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import datafree

PACKAGE = Path(datafree.__file__).parent
ROOT_MODULES = 15


def modules() -> dict[str, Path]:
    """Every module under `src/datafree` by its dotted name."""
    found: dict[str, Path] = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ["datafree", *path.relative_to(PACKAGE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: Iterable[str]) -> Iterator[str]:
    """The modules that a file imports, at its head or inside a function, for use or for types."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            for name in node.names:
                # `from package import module` names a module, `from module import name` does not.
                inner = f"{node.module}.{name.name}"
                yield inner if inner in known else str(node.module)


def graph() -> dict[str, set[str]]:
    """By module, the modules it imports."""
    known = modules()
    return {name: set(imported(path, known)) & known.keys() for name, path in known.items()}


def test_no_circle_of_imports() -> None:
    try:
        order = list(TopologicalSorter(graph()).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' imports '.join(error.args[1])}")
    assert order[-1] in ("datafree", "datafree.__main__")
    assert len(order) == len(modules())


def test_a_circle_would_be_seen() -> None:
    edges = graph()
    edges["datafree.errors"].add("datafree.api")
    with pytest.raises(CycleError):
        list(TopologicalSorter(edges).static_order())


def test_few_modules_stand_at_the_root() -> None:
    names = sorted(path.name for path in PACKAGE.glob("*.py"))
    assert len(names) <= ROOT_MODULES, f"give some of these a room: {', '.join(names)}"
