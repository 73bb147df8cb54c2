"""Parts of a page made of records, between ``<!-- MARK: NAME -->`` and ``<!-- end -->``."""

from __future__ import annotations

import re
from collections.abc import Callable


def rendered(text: str, mark: str, body: Callable[[str], str]) -> str:
    """A page with its blocks of one mark made anew.

    Args:
        text: of the page.
        mark: first word of their comments.
        body: of a block, by its name.
    """

    def made(match: re.Match[str]) -> str:
        head, name, end = match.groups()
        return f"{head}\n{body(name)}\n\n{end}"

    return _pattern(mark).sub(made, text)


def named(text: str, mark: str) -> list[str]:
    """Names of the blocks of one mark that a page shows."""
    return [match[2] for match in _pattern(mark).finditer(text)]


def _pattern(mark: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {mark}: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
