"""Every command that a page shows is one that the program takes, option by option."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from conftest import ROOT
from datafree.cli.app import app
from datafree.cli.options import given_fields
from datafree.config import RunConfig, build
from datafree.errors import DatafreeError

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL = re.compile(r"^```(?:sh|bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """The calls of `datafree` in the shell blocks of a page, continued lines as one."""
    blocks = "\n".join(SHELL.findall(text)).replace("\\\n", " ")
    lines = [line.strip().removeprefix("$ ") for line in blocks.splitlines()]
    return [line for line in lines if line.startswith("datafree ") and "…" not in line]


def parse(line: str) -> None:
    """Take a command apart as the program would, without doing it."""
    _, *words = shlex.split(line, comments=True)
    words = words[: words.index("&&")] if "&&" in words else words
    if words[0].startswith("-"):
        return
    context = app.commands[words[0]].make_context(words[0], words[1:])
    if words[0] != "quantize":
        return
    given = given_fields(context.params)
    if given.get("model"):
        fields = {name: value for name, value in given.items() if name in RunConfig.model_fields}
        build(RunConfig, fields, "options")


def shown() -> list[tuple[Path, str]]:
    found = [(page, line) for page in PAGES for line in commands(page.read_text(encoding="utf-8"))]
    return [(page, line) for page, line in found if "_build" not in page.parts]


def test_pages_show_many_commands() -> None:
    assert len(shown()) > 30


@pytest.mark.parametrize(
    ("page", "line"), shown(), ids=lambda one: one.stem if isinstance(one, Path) else one[:70]
)
def test_a_command_is_taken(page: Path, line: str) -> None:
    try:
        parse(line)
    except click.exceptions.Exit:
        pass
    except (click.ClickException, DatafreeError) as error:
        pytest.fail(f"{page.name}: {line}: {error}")


@pytest.mark.parametrize(
    "line", ["datafree quantize net.pt2 --bitz W8A8", "datafree quantize net.pt2 --images many"]
)
def test_a_command_with_a_slip_is_not(line: str) -> None:
    with pytest.raises((click.ClickException, DatafreeError)):
        parse(line)
