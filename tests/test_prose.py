"""Pages are readable: short paragraphs, short lines."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "results").glob("*.md")),
]
STARTS = ("|", "#", "* ", "- ", "<", "![")


def paragraphs(text: str) -> list[list[str]]:
    """Runs of lines of prose, outside code, tables and pictures; an item of a list is one."""
    found: list[list[str]] = [[]]
    code = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            code = not code
        if code or not line.strip() or line.startswith(STARTS):
            found.append([])
        if not code and line.strip() and not line.lstrip().startswith(("|", "#", "```", "<", "![")):
            found[-1].append(line)
    return [paragraph for paragraph in found if paragraph]


def test_paragraphs_are_found_outside_code_and_tables() -> None:
    text = "# A\n\none\ntwo\n\n- three\n- four\n  five\n\n| a |\n```\ncode\n```\nsix"
    assert paragraphs(text) == [
        ["one", "two"],
        ["- three"],
        ["- four", "  five"],
        ["six"],
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_paragraph_over_five_lines_and_no_line_over_100_columns(page: Path) -> None:
    told = paragraphs(page.read_text(encoding="utf-8"))
    assert [part[0] for part in told if len(part) > 5] == []
    assert [line for part in told for line in part if len(line) > 100] == []
