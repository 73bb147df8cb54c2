from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Generator

import click
import pytest

from datafree.cli.endings import endings
from datafree.errors import OutputError, VerdictError


@pytest.fixture(autouse=True)
def handler() -> Generator[None]:
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    yield
    for one, action in before.items():
        signal.signal(one, action)


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (OutputError("cannot write a: no room"), 2, "error: cannot write a: no room"),
        (VerdictError("the verdict is poor", None), 3, "failed: the verdict is poor"),
        (click.Abort(), 130, "interrupted; the same command goes on"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on"),
        (click.UsageError("no such option"), 2, "error: no such option"),
        (MemoryError(), 2, "not enough memory: fewer images at a time"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate"
                      " memory: you tried to allocate 4 bytes."), 2, "not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), 2, "not enough memory"),
        (RecursionError("maximum recursion depth exceeded"), 2, "nested too deeply"),
        (OverflowError("int too large to convert to float"), 2, "too large to be computed with"),
        (OSError(28, "No space left on device", "/x/y"), 2, "cannot read or write /x/y: No space"),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, BaseException) else "",
)  # fmt: skip
def test_what_a_user_can_meet_is_a_line_and_a_code(
    error: BaseException, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, endings():
        raise error
    assert ended.value.code == code
    said = capsys.readouterr().err
    assert told in said
    assert len(said.strip().splitlines()) == 1


def test_a_fault_of_our_own_is_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="shapes"), endings():
        raise RuntimeError("shapes do not fit")


def test_a_termination_ends_as_an_interruption_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, endings():
        handler = signal.getsignal(signal.SIGTERM)
        assert callable(handler)
        handler(signal.SIGTERM, None)  # no signal itself: it would end whatever runs the tests
    assert ended.value.code == 143
    assert capsys.readouterr().err.startswith("terminated; the same command goes on")


DYING = """
import os, signal, time
from datafree.cli.endings import endings

class Dying:
    def __del__(self):
        os.kill(os.getpid(), NUMBER)
        for _ in range(10_000):
            pass  # the handler is called in here, and what it raises is swallowed

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
with endings():
    dying = Dying()
    del dying
    time.sleep(5)
    raise AssertionError("it went on")
"""
IN_A_LIBRARY = """
import os, signal, time
from datafree.cli.endings import endings
from datafree.errors import OutputError

with endings():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    except BaseException as error:
        raise OutputError("Failed deserializing node") from error
"""


def ended_by_itself(code: str) -> subprocess.CompletedProcess[str]:
    """`code` in a process of its own: signals end whatever runs the tests."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_end_that_is_asked_for_in_a_finaliser_is_not_lost(number: int, code: int) -> None:
    done = ended_by_itself(DYING.replace("NUMBER", str(int(number))))
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("the same command goes on") == 1


def test_a_termination_that_a_library_turns_into_an_error_is_one() -> None:
    done = ended_by_itself(IN_A_LIBRARY)
    assert done.returncode == 143, done.stderr
    assert "deserializing" not in done.stderr
