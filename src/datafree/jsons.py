"""JSON that every reader takes: no NaN, and infinities as the strings Infinity and -Infinity.

JSON has neither; what Python writes by default, others refuse. Texts that read like these have a
backslash in front.
"""

from __future__ import annotations

import json
import math
from typing import Any, cast

from datafree.bounds import json_of
from datafree.errors import DatafreeError

_INFINITIES = {"Infinity": math.inf, "-Infinity": -math.inf}


def to_json(value: Any, what: str = "the record", indent: int | None = None) -> str:
    """`value` as JSON; `from_json` returns it again, its infinities too.

    Args:
        value: dictionaries, lists, strings, numbers, booleans, None.
        what: it is, for the message.
        indent: as in `json.dumps`.

    Raises:
        DatafreeError: a number is NaN; the message names its place.
    """
    return json.dumps(_told(value, what), indent=indent, allow_nan=False)


def from_json(text: str) -> Any:
    """What `to_json` wrote.

    Raises:
        ValueError: `text` is no JSON, or nested too deeply; NaN and bare infinities are none.
    """
    return _read(json_of(text, strict=True))


def _told(value: Any, place: str) -> Any:
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return {key: _told(item, f"{place}, {key}") for key, item in items}
    if isinstance(value, list | tuple):
        items = enumerate(cast("list[Any]", value))
        return [_told(item, f"{place}, {index}") for index, item in items]
    if isinstance(value, str):
        return f"\\{value}" if value.lstrip("\\") in _INFINITIES else value
    if not isinstance(value, float) or math.isfinite(value):
        return value
    if math.isnan(value):
        raise DatafreeError(
            f"{place}: what was measured is not a number; the network, its student or a measure"
            " of your own overflows"
        )
    return "Infinity" if value > 0 else "-Infinity"


def _read(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _read(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_read(item) for item in cast("list[Any]", value)]
    if not isinstance(value, str):
        return value
    if value[:1] == "\\" and value.lstrip("\\") in _INFINITIES:
        return value[1:]
    return _INFINITIES.get(value, value)
