"""Options of a sweep: parts, and what goes with what."""

from __future__ import annotations

from typing import Any

import pytest

from datafree.config import build
from datafree.errors import ConfigError
from datafree.sweeps.options import SweepOptions


def test_a_part_is_read_from_text() -> None:
    assert build(SweepOptions, {"shard": "3/4"}, "options").shard == (3, 4)
    assert build(SweepOptions, {"shard": (0, 1)}, "options").shard == (0, 1)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"shard": "4/4"}, "0/4 to 3/4"),
        ({"shard": "1"}, "0/4"),
        ({"shard": "-1/4"}, "0/4"),
        ({"shard": "0/0"}, "no part"),
        ({"address": "auto"}, "engine ray"),
        ({"gpus_per_task": 1}, "engine ray"),
        ({"workers": 0}, "workers"),
        ({"engine": "dask"}, "ray"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        build(SweepOptions, given, "options")
