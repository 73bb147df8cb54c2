"""What a reader does while it reads: code that it runs, files that it touches, time and memory."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any

from datafree.errors import DatafreeError

SECONDS, BYTES = 5.0, 2**30
LONGEST = 2000
"""Signs of a message."""
_NEVER = (
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.spawn", "subprocess.",
    "socket.", "pickle.find_class", "marshal.", "ctypes.dlopen", "os.mkdir", "os.chmod",
    "os.chown", "os.link", "os.symlink", "os.putenv", "shutil.", "webbrowser.", "urllib.",
    "code.__new__",
)  # fmt: skip
"""Events of Python's audit that reading a file never causes."""
_WRITES = ("w", "a", "x", "+")


class Watch:
    """Events while it is awake, by one audit hook, which Python never takes away again."""

    def __init__(self, folder: Path) -> None:
        """Watch what is done; `folder` is where the files that are read lie."""
        self.folder = str(folder)
        self.places = tuple({self.folder, tempfile.gettempdir(), "/dev/null", "/dev/shm"})
        self.awake = False
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.awake:
            return
        if event.startswith(_NEVER):
            if event == "marshal.loads" and _importing():
                return  # of a module that is installed
            if event in ("os.mkdir", "os.chmod") and str(args[0]).startswith(self.folder):
                return
            self.seen.append(f"{event} {str(args)[:200]}")
        elif event == "open":
            path, mode = args[0], args[1]
            written = isinstance(mode, str) and any(sign in mode for sign in _WRITES)
            if written and isinstance(path, str) and not path.startswith(self.places):
                self.seen.append(f"open {path} {mode}")
        elif event == "import" and len(args) > 1 and str(args[1] or "").startswith(self.folder):
            self.seen.append(f"import {args[0]} from {args[1]}")
        elif event in ("exec", "compile"):
            self._code(event, args)

    def _code(self, event: str, args: tuple[Any, ...]) -> None:
        """Code of a file that is read; what torch makes of graphs is called `<eval_with_key>`."""
        code: object = args[0]
        name = code.co_filename if isinstance(code, CodeType) else str(args[-1])
        if name.startswith(self.folder):
            self.seen.append(f"{event} of {name}")
        if name == "<string>" and isinstance(code, CodeType) and "__import__" in code.co_names:
            self.seen.append(f"{event} of code that imports: {code.co_names}")


def _importing() -> bool:
    """Whether Python's own import asks, two calls up."""
    frame = sys._getframe(2)
    return frame.f_code.co_filename.startswith("<frozen importlib")


@dataclass
class Told:
    """What came of inputs.

    Attributes:
        executions: number of inputs.
        accepted: those that were read.
        refused: those that a `DatafreeError` refused.
        slowest: seconds that one took at most.
        findings: what should not have been, by its first words, with an input that causes it.
    """

    executions: int = 0
    accepted: int = 0
    refused: int = 0
    slowest: float = 0.0
    findings: dict[str, bytes] = field(default_factory=dict[str, bytes])


class Runner:
    """Gives inputs to one reader and notes what came of them."""

    def __init__(self, read: Callable[[bytes], object], watch: Watch) -> None:
        """`read` reads an input and raises a `DatafreeError` where it does not like it."""
        self.read, self.watch = read, watch
        self.told = Told()
        self.highest = peak()

    def warm(self, content: bytes) -> None:
        """Read `content`, unwatched: libraries loaded at their first use are no finding."""
        self.read(content)
        self.highest = peak()

    def __call__(self, content: bytes) -> None:
        """Give it `content`."""
        told, began = self.told, time.monotonic()
        self.watch.seen.clear()
        self.watch.awake = True
        try:
            self.read(content)
            told.accepted += 1
        except DatafreeError as error:
            told.refused += 1
            self._message(error, content)
        except Exception as error:  # noqa: BLE001 - any other is what is looked for
            place = _place(error)
            self._found(f"{type(error).__name__} at {place}: {str(error)[:200]}", content)
        finally:
            self.watch.awake = False
        took = time.monotonic() - began
        told.executions += 1
        told.slowest = max(told.slowest, took)
        if took > SECONDS:
            self._found(f"took {took:.0f} s", content)
        for event in self.watch.seen[:1]:
            self._found(f"did {event}", content)
        if peak() > self.highest + BYTES:
            self._found(f"took {(peak() - self.highest) >> 20} MiB", content)
        self.highest = peak()

    def _message(self, error: DatafreeError, content: bytes) -> None:
        message = str(error)
        if not message.isprintable() or len(message) > LONGEST or not message:
            said = f"said too much, or no line, at {_place(error)}: {message[:100]!r}"
            self._found(said, content)

    def _found(self, what: str, content: bytes) -> None:
        kind = what.partition(": ")[0] if "at " in what else what[:40]
        known = [one for one in self.told.findings if one.startswith(kind)]
        if not known:
            self.told.findings[what] = content


def peak() -> int:
    """Bytes of memory this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _place(error: BaseException) -> str:
    """The last line of datafree that an error went through."""
    trace, place = error.__traceback__, "?"
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if "/datafree/" in name:
            place = f"{Path(name).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
