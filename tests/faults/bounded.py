"""Attacks measured: seconds, and memory that was asked for."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import pytest

from datafree.errors import DatafreeError

SECONDS = 5.0
"""Of one refusal on a busy machine; by themselves they take a fraction of a second."""
BYTES = 2**30


def peak() -> int:
    """Bytes of memory this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def within() -> Generator[None]:
    """Fail where what is done inside takes long or much memory."""
    began, before = time.monotonic(), peak()
    yield
    assert time.monotonic() - began < SECONDS
    assert peak() - before < BYTES


def refused(call: Callable[[], object], kind: type[DatafreeError] = DatafreeError) -> str:
    """The one line in which `call` is refused, in time and in bounded memory."""
    with within(), pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    return str(caught.value)
