"""The page of errors quotes what the library says."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from conftest import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
HEADING = re.compile(r"^### .*$", re.MULTILINE)


def quoted() -> list[str]:
    """Messages in headings: what stands between back quotes, in parts where something varies."""
    headings = HEADING.findall(PAGE.read_text(encoding="utf-8"))
    return [message for heading in headings for message in re.findall(r"`([^`]+)`", heading)]


@cache
def told() -> str:
    """Every constant string of the library, one a line; parts of f-strings stand alone."""
    found: list[str] = []
    for path in sorted((ROOT / "src" / "datafree").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_the_page_quotes_many_messages() -> None:
    assert len(quoted()) >= 15


@pytest.mark.parametrize("message", quoted())
def test_a_quoted_message_is_one_of_the_library(message: str) -> None:
    assert [part for part in message.split("…") if part.strip() not in told()] == []


def test_a_message_that_nobody_says_is_found_out() -> None:
    assert "the network is too blue to be quantized" not in told()


def test_every_heading_is_followed_by_what_to_do(page: Path = PAGE) -> None:
    text = page.read_text(encoding="utf-8")
    parts = re.split(r"^### .*$", text, flags=re.MULTILINE)[1:]
    assert all(len(part.split()) > 12 for part in parts)
