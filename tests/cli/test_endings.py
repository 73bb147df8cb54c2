from __future__ import annotations

import os
import signal
import time
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


class Dying:
    """Ends or interrupts its process in its finaliser, where exceptions are swallowed."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)
        for _ in range(10_000):
            pass  # the handler is called in here


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_end_that_is_asked_for_in_a_finaliser_is_not_lost(
    number: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    if number == signal.SIGINT:  # ignored where a shell runs the tests in the background
        signal.signal(number, signal.default_int_handler)
    with pytest.raises(SystemExit) as ended, endings():
        dying = Dying(number)
        del dying
        time.sleep(5)
        raise AssertionError("it went on")
    assert ended.value.code == code
    said = capsys.readouterr().err
    assert "Traceback" not in said and said.count("the same command goes on") == 1


def test_a_termination_that_a_library_turns_into_an_error_is_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended, endings():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except BaseException as error:
            raise OutputError("Failed deserializing node") from error
    assert ended.value.code == 143
    assert "deserializing" not in capsys.readouterr().err
