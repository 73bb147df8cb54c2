"""How a command ends: a line for whatever a user can meet, and an exit code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import NoReturn

import click
from rich.markup import escape

from datafree.cli import console
from datafree.errors import DatafreeError, SweepError, VerdictError

_NO_MEMORY = (
    "there is not enough memory: fewer images at a time take less (--images-per-batch 8, or -o"
    " batch_size=8 of the method); what was finished is kept, and the same command goes on"
)
_TOO_DEEP = "this is nested too deeply to be worked on: give a network or a file of fewer levels"
_HAS_TIMER = hasattr(signal, "setitimer")  # Windows has none
_SOON = 0.01  # seconds, by when a callback has ended
_MISTAKE, _VERDICT, _CELLS, _INTERRUPTED = 2, 3, 4, 130


@contextmanager
def endings() -> Generator[None]:
    """Turn what the enclosed command raises into a line on standard error and an exit code.

    A mistake is 2, a verdict below what was asked for 3, a sweep with failed cells 4, an
    interruption 130 and a termination 143;
    what is being written then is left out, never torn. Anything else is a fault of this program.
    """
    asked: list[int] = []

    def terminated(number: int, frame: object) -> NoReturn:
        del frame
        asked.append(number)
        console.err.print("terminated; the same command goes on where it stopped")
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, terminated)
    with _as_lines(), _nothing_swallowed():
        try:
            yield
        except Exception:
            if asked:  # libraries turn whatever ends them into errors of their own
                sys.exit(128 + asked[0])
            raise


@contextmanager
def _as_lines() -> Generator[None]:
    """What `endings` does with errors."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError as asked:
        click.echo(asked.format_message())
        sys.exit(0)
    except click.UsageError as error:
        where = f"; see {error.ctx.command_path} --help" if error.ctx else ""
        _refuse(f"{error.format_message().rstrip('.')}{where}")
    except (click.Abort, KeyboardInterrupt):
        console.err.print("interrupted; the same command goes on where it stopped")
        sys.exit(_INTERRUPTED)
    except VerdictError as error:
        _say("failed", str(error))
        sys.exit(_VERDICT)
    except SweepError as error:
        _say("failed", str(error))
        sys.exit(_VERDICT if error.verdicts else _CELLS)
    except DatafreeError as error:
        _refuse(str(error))
    except (MemoryError, RecursionError, OverflowError, RuntimeError, OSError) as error:
        text = _of_the_machine(error)
        if text is None:
            raise
        _refuse(text)


def _of_the_machine(error: Exception) -> str | None:
    """What to say of an error that the machine's limits cause; None of any other."""
    if isinstance(error, RecursionError):  # a RuntimeError
        return _TOO_DEEP
    if isinstance(error, OverflowError):
        return f"a number is too large to be computed with: {error}"
    if isinstance(error, OSError):
        place = f" {error.filename}" if error.filename else ""
        return (
            f"cannot read or write{place}: {error.strerror or error}; choose another place or make"
            " room"
        )
    from datafree.tensors.memory import out_of_memory  # torch is not needed before

    return _NO_MEMORY if out_of_memory(error) else None


@contextmanager
def _nothing_swallowed() -> Generator[None]:
    """Raise an end that was asked for again where Python swallows it.

    A signal may arrive in a finaliser or in the callback of a weak reference. What is raised there
    is printed with its traceback, and the program goes on as if nobody had asked.
    """
    before, over, telling = sys.unraisablehook, False, False

    def hook(found: sys.UnraisableHookArgs) -> None:
        nonlocal telling
        swallowed = found.exc_value
        if not isinstance(swallowed, SystemExit | KeyboardInterrupt) or not _HAS_TIMER:
            before(found)
            return

        def again(number: int, frame: object) -> None:
            del number, frame
            if over or telling:  # what is raised in here would be swallowed too
                return
            signal.setitimer(signal.ITIMER_REAL, 0)  # what ends then is to end undisturbed
            raise swallowed

        telling = True
        signal.signal(signal.SIGALRM, again)
        signal.setitimer(signal.ITIMER_REAL, _SOON, _SOON)
        telling = False

    sys.unraisablehook = hook
    try:
        yield
    finally:
        over = True  # what has ended is not to be ended once more
        sys.unraisablehook = before
        if _HAS_TIMER:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _refuse(text: str) -> NoReturn:
    _say("error", text)
    sys.exit(_MISTAKE)


def _say(what: str, text: str) -> None:
    console.err.print(
        f"[bold red]{what}:[/bold red] {escape(text)}", highlight=False, soft_wrap=True
    )
