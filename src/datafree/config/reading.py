"""YAML of strangers, looked through event by event before anything is made of it.

Ten lines of anchors are ten billion values (`billion laughs`), and lists within lists exhaust what
reads them, in C without an error. A configuration needs neither.
"""

from __future__ import annotations

from typing import Any

import yaml

from datafree.bounds import DEEPEST, first_line

LARGEST = 2**19
"""Bytes of a configuration; one that names a thousand layers has some tens of thousands."""
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where there is one


def yaml_of(text: str) -> Any:
    """The value of a YAML text of plain values.

    Raises:
        ValueError: it is none, has anchors that are used, or is nested deeper than `DEEPEST`.
    """
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_LOADER):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"*{event.anchor} stands for values elsewhere: write them out")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError(f"it is nested deeper than {DEEPEST} levels")
        return yaml.load(text, Loader=_LOADER)
    except Exception as error:  # noqa: BLE001 - dates and numbers that are none raise what they like
        raise ValueError(first_line(error)) from None
