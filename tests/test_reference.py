"""The reference knows every public function, class and method, and explains each."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import datafree
from conftest import ROOT
from datafree.registry import KINDS, built_in

SOURCE = ROOT / "src" / "datafree"
DOCS = ROOT / "docs"
ELSEWHERE = {
    "adapters": "docs/api.md", "detection": "docs/api.md", "zoo": "docs/api.md",
    "errors": "docs/api.md", "api": "docs/api.md", "config": "docs/reference/options.md",
    "recipes": "docs/cli.md", "cli": "docs/cli.md", "runs": "docs/api.md",
}  # fmt: skip
"""What users meet by another page: functions of `datafree` itself, options, commands."""
INSIDE = {"bounds", "files", "jsons", "pictures", "progress", "registry", "report", "tensors",
          "user_code"}  # fmt: skip
"""Helpers that stages share, and the makers of the report: nobody calls them from outside."""
LISTED = re.compile(r"^\.\. automodule:: (\S+)$", re.MULTILINE)

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="no documentation in this copy")


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Public modules by dotted name, without importing them."""
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts):
            yield ".".join(parts), ast.parse(path.read_text(encoding="utf-8"))


def top(name: str) -> str:
    """``synthesis`` of ``datafree.synthesis.dsg``; nothing of ``datafree``."""
    return name.partition(".")[2].partition(".")[0]


def public(body: list[ast.stmt]) -> list[ast.FunctionDef | ast.ClassDef]:
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [one for one in body if isinstance(one, kinds) and not one.name.startswith("_")]


def listed() -> set[str]:
    pages = [DOCS / "api.md", *(DOCS / "reference").rglob("*.md")]
    return {name for page in pages for name in LISTED.findall(page.read_text(encoding="utf-8"))}


def test_every_module_with_public_names_is_on_a_page() -> None:
    found = {name for name, tree in sources() if public(tree.body)}
    asked = {name for name in found if top(name) not in {*ELSEWHERE, *INSIDE}}
    assert sorted(asked - listed()) == []
    assert "datafree.corrections.equalize" in asked and "datafree.allocation.allocate" in asked


def test_pages_list_modules_once_and_none_that_is_gone() -> None:
    pages = [DOCS / "api.md", *(DOCS / "reference").rglob("*.md")]
    told = [name for page in pages for name in LISTED.findall(page.read_text(encoding="utf-8"))]
    assert len(told) == len(set(told))
    assert set(told) - {name for name, _ in sources()} - {"datafree"} == set()


def test_every_package_is_somewhere() -> None:
    tops, told = ({top(name) for name in names} for names in (dict(sources()), listed()))
    assert sorted(tops - told - set(ELSEWHERE) - INSIDE - {""}) == []
    assert all((ROOT / page).exists() for page in ELSEWHERE.values())


def test_public_functions_classes_and_their_methods_are_explained() -> None:
    """A page built from docstrings leaves out what has none."""
    silent = [
        f"{name}.{one.name}"
        for name, tree in sources()
        for one in public(tree.body)
        if ast.get_docstring(one) is None
    ]
    silent += [
        f"{name}.{cls.name}.{one.name}"
        for name, tree in sources()
        for cls in public(tree.body)
        if isinstance(cls, ast.ClassDef)
        for one in public(cls.body)
        if ast.get_docstring(one) is None
        and not any(isinstance(d, ast.Name) and d.id == "override" for d in one.decorator_list)
    ]
    assert silent == []


def test_every_function_of_the_library_itself_is_on_the_page_of_the_interface() -> None:
    assert "datafree" in listed()
    for name in datafree.__all__:
        assert getattr(datafree, name).__doc__, name


@pytest.mark.parametrize("package", KINDS)
def test_every_method_has_its_section_and_a_row_for_each_field(package: str) -> None:
    from datafree.runs.methods import explain

    page = (DOCS / "reference" / "methods.md").read_text(encoding="utf-8")
    # Papers have images and a training of their own, under one name.
    part = page.partition(f"\n## {KINDS[package].capitalize()}s\n")[2].partition("\n## ")[0]
    for name in built_in(package):
        section = part.partition(f"\n### `{name}`\n")[2].partition("\n### ")[0]
        assert section.strip(), name
        for field in explain(package, name).fields:
            assert f"| `{field.name}` |" in section, f"{name}.{field.name}"


def test_the_index_leads_to_every_page() -> None:
    index = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    for page in (DOCS / "reference" / "python").glob("*.md"):
        assert f"(python/{page.name})" in index and f"\npython/{page.stem}\n" in index
    assert "\nreference/python\n" in (DOCS / "index.md").read_text(encoding="utf-8")


def test_links_of_the_pages_lead_somewhere() -> None:
    page = DOCS / "reference" / "python.md"
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / Path(link)).exists(), link
