"""Mutation testing: change one thing in a module, and see whether its tests notice.

Every module of the folders named is changed in one place at a time (comparisons, signs, numbers,
and/or, any/all, min/max, conditions, statements left out), and the tests that mirror it run on the
change until one fails. Changes that no test notices survive: each is a missing test, or computes
the same. What was decided so stands in the record under ``equivalent``, and is kept.

    PYTHONPATH=src python scripts/mutate.py quant calibrators
    PYTHONPATH=src python scripts/mutate.py quant --only grid

A call that was ended goes on where it stopped. Torch is imported once: every change is tested in a
child of this process.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "results" / "mutations.json"
_SLOW = ("torch.export", "torch.fx", "numpy", "pydantic", "safetensors.torch")
_TOLD_TO_READERS = ("annotation", "returns", "decorator_list", "type_params")
LIMIT = 120  # seconds of one change; endless loops count as noticed

_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
_NAMED = {
    a: b
    for pair in (
        ("any", "all"), ("min", "max"), ("amin", "amax"), ("minimum", "maximum"),
        ("floor", "ceil"), ("argmin", "argmax"),
    )
    for a, b in (pair, pair[::-1])
}  # fmt: skip


def changed(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of `node`, one change each; children are the same objects."""
    made = copy.copy(node)
    if isinstance(made, ast.Compare) and type(made.ops[0]) in _COMPARED:
        made.ops = [_COMPARED[type(made.ops[0])](), *made.ops[1:]]
        yield made
    elif isinstance(made, ast.BoolOp):
        made.op = ast.Or() if isinstance(made.op, ast.And) else ast.And()
        yield made
    elif isinstance(made, ast.BinOp) and type(made.op) in _COMPUTED:
        made.op = _COMPUTED[type(made.op)]()
        yield made
    elif isinstance(made, ast.UnaryOp) and isinstance(made.op, ast.Not | ast.USub):
        yield made.operand
    elif isinstance(made, ast.Constant) and isinstance(made.value, bool | int | float):
        value = made.value
        made.value = not value if isinstance(value, bool) else value + 1
        yield made
    elif isinstance(made, ast.Name) and made.id in _NAMED:
        made.id = _NAMED[made.id]
        yield made
    elif isinstance(made, ast.Attribute) and made.attr in _NAMED:
        made.attr = _NAMED[made.attr]
        yield made
    elif isinstance(made, ast.If | ast.IfExp | ast.While):
        made.test = ast.UnaryOp(ast.Not(), made.test)
        yield made
    elif isinstance(made, ast.AugAssign | ast.Raise) or (
        isinstance(made, ast.Expr) and not isinstance(made.value, ast.Constant)
    ):
        yield ast.Pass()


def _computing(node: ast.AST) -> Iterator[ast.AST]:
    """`node` and what is beneath it, without annotations and decorators."""
    yield node
    for name, value in ast.iter_fields(node):
        if name not in _TOLD_TO_READERS:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _computing(child)


def _left_out(node: ast.AST) -> bool:
    """Whether nothing that can be tested depends on `node`: annotations, imports, assertions."""
    return isinstance(node, ast.Import | ast.ImportFrom | ast.Assert)


def changes(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """(line, place in words, source) of the module after every single change."""
    for parent in _computing(tree):
        for name, value in ast.iter_fields(parent):
            if name in _TOLD_TO_READERS:
                continue
            held: list[Any] = value if isinstance(value, list) else [value]
            for place, node in enumerate(held):
                if not isinstance(node, ast.AST) or _left_out(node) or _left_out(parent):
                    continue
                for other in changed(node):
                    ast.fix_missing_locations(ast.copy_location(other, node))
                    told = f"{_line(node)} -> {_line(other)}"
                    held[place] = other
                    if not isinstance(value, list):
                        setattr(parent, name, other)
                    yield getattr(node, "lineno", 0), told, ast.unparse(tree)
                    held[place] = node
                    if not isinstance(value, list):
                        setattr(parent, name, node)


def _line(node: ast.AST) -> str:
    return ast.unparse(node).splitlines()[0][:80]


class Replaced(importlib.abc.Loader, importlib.abc.MetaPathFinder):
    """Finds one module in a changed source."""

    def __init__(self, module: str, path: Path, source: str) -> None:
        self.module, self.path, self.source = module, path, source

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.module:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.source, str(self.path), "exec"), module.__dict__)


def noticed(module: str, path: Path, source: str, tests: list[str]) -> bool:
    """Whether a test fails on `source`, or does not end."""
    child = os.fork()
    if child == 0:
        os.setsid()
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        sys.meta_path.insert(0, Replaced(module, path, source))
        code = 1
        try:
            import pytest

            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]) != 0)
        finally:
            os._exit(code)  # whatever was raised
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status != 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def tests_of(path: Path) -> list[str]:
    """Files of tests that mirror a module, the folder's own last."""
    folder = ROOT / "tests" / path.parent.name
    stem = path.stem.lstrip("_")
    near = [folder / f"test_{name}.py" for name in ("edges", stem, "sizes")]
    if path.parent.name == "calibrators":
        near.append(folder / "test_contract.py")
    return [str(p) for p in near if p.exists()]


def main() -> None:
    """Mutate the folders named and keep the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--only", nargs="*", help="stems of modules")
    parser.add_argument(
        "--survivors", action="store_true", help="try those again that no test noticed"
    )
    asked = parser.parse_args()
    for name in _SLOW:
        importlib.import_module(name)
    record: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for folder in asked.folders:
        for path in sorted((ROOT / "src/datafree" / folder).glob("*.py")):
            if path.stem != "__init__" and (not asked.only or path.stem in asked.only):
                mutate(path, record, again=asked.survivors)


def mutate(path: Path, record: dict[str, Any], *, again: bool) -> None:
    """Try every change of the module at `path`, and put into `record` what came of it."""
    key = f"{path.parent.name}/{path.name}"
    module, tests = f"datafree.{path.parent.name}.{path.stem}", tests_of(path)
    text = path.read_text(encoding="utf-8")
    if not noticed(module, path, "raise ImportError", tests):
        raise SystemExit(f"{key}: its tests do not import it")
    if noticed(module, path, text, tests):
        raise SystemExit(f"{key}: its tests fail as it is")
    record[key] = told = _begun(record.get(key, {}), text)
    repeated = set(told["survived"]) if again else set[str]()
    for place, (line, change, source) in enumerate(changes(ast.parse(text))):
        name = f"{line}: {change}"
        if place >= told["tried"]:
            told["tried"] += 1
        elif name in repeated:
            told["survived"].remove(name)
        else:
            continue  # tried by an earlier call, on the same text
        if change in told["equivalent"]:
            continue
        if noticed(module, path, source, tests):
            told["noticed"] += 1
        else:
            told["survived"].append(name)
            print(f"{key}:{name}", flush=True)
        _keep(record)
    count = told["noticed"] + len(told["survived"])
    told["score"] = round(100 * told["noticed"] / max(count, 1), 1)
    _keep(record)
    print(f"{key}: {told['score']} % of {count}", flush=True)


def _keep(record: dict[str, Any]) -> None:
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _begun(known: dict[str, Any], text: str) -> dict[str, Any]:
    """The record of a module: as an earlier call left it, or anew where its text has changed."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    if known.get("text") == digest:
        return known
    equivalent = known.get("equivalent", {})
    return {"text": digest, "tried": 0, "noticed": 0, "survived": [], "equivalent": equivalent}


if __name__ == "__main__":
    main()
