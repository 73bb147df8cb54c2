"""The page of licences names what an installation brings, and what its metadata say."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_FAMILIES = {
    "MIT": "MIT", "BSD": "BSD", "Apache": "Apache-2.0", "Python Software Foundation": "PSF",
    "PSF": "PSF",
}  # fmt: skip
_COPYLEFT = re.compile(r"\b(A?GPL|LGPL|MPL|EUPL|CDDL)\b|General Public")


def wanted(root: Path) -> dict[str, str]:
    """Every dependency that a user's installation may bring, by whether it is always there."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    groups = {"always": project["dependencies"], **project["optional-dependencies"]}
    groups.pop("all")
    return {
        re.split(r"[<>=\[ ]", one)[0]: group if group == "always" else f"extra `{group}`"
        for group, several in groups.items()
        for one in several
    }


def named(root: Path) -> dict[str, tuple[str, str]]:
    rows = re.findall(
        r"^\| (\S+) \| (\S+) \| (.+?) \|$", (root / "docs/licences.md").read_text(), re.M
    )
    return {name: (licence, when) for name, licence, when in rows if name not in ("package", "---")}


def told(name: str) -> str:
    """What the installed package says of its licence."""
    fields = metadata(name).json
    classes = [str(c) for c in fields.get("classifier", []) if str(c).startswith("License ::")]
    alone = str(fields.get("license_expression") or "")
    return alone or "; ".join(classes) or str(fields.get("license") or "").partition("\n")[0]


def test_every_dependency_is_named() -> None:
    assert {name: when for name, (_, when) in named(ROOT).items()} == wanted(ROOT)


def test_licences_are_those_of_the_packages() -> None:
    compared = 0
    for name, (licence, _) in named(ROOT).items():
        try:
            said = told(name)
        except PackageNotFoundError:
            continue
        assert not _COPYLEFT.search(said), name
        family = next(family for start, family in _FAMILIES.items() if licence.startswith(start))
        assert any(word in said for word, one in _FAMILIES.items() if one == family), (name, said)
        compared += 1
    if not compared:
        pytest.skip("no package is installed with its metadata")
    assert compared >= 14
