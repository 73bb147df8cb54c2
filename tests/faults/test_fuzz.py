"""Every reader is given some hundred changed files; see `scripts/fuzz.py` for as many as one likes.

The changes are drawn from a seed, so that this finds the same each time. Nothing but a
`DatafreeError` may come of a file, nothing of it may run, and it may take neither long nor much.
"""

from __future__ import annotations

import importlib
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mutations
import pytest
import readers
import watch

from datafree.errors import ConfigError, DatafreeError

TRIES = {"program": 60, "onnx": 60, "weights": 100}
"""Fewer of those that take some milliseconds each."""


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> watch.Watch:
    return watch.Watch(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", readers.READERS)
def test_a_reader(name: str, guard: watch.Watch) -> None:
    chance = random.Random(name)
    begin = readers.corpus(name)
    runner = watch.Runner(readers.prepare(name, Path(guard.folder) / name), guard)
    for content in begin:
        runner.warm(content)
        runner(content)
    assert (runner.told.accepted, runner.told.findings) == (len(begin), {})
    for _ in range(TRIES.get(name, 250)):
        runner(mutations.mutate(chance.choice(begin), readers.READERS[name].kind, chance))
    assert not runner.told.findings
    assert runner.told.refused > runner.told.executions / 10


def _system(folder: Path) -> None:
    getattr(os, "system")("true")  # noqa: B009


def _starts(folder: Path) -> None:
    subprocess.run(["true"], check=True)


def _unpickles(folder: Path) -> None:
    pickle.loads(pickle.dumps(Path))


def _imports(folder: Path) -> None:
    (folder / "foreign_module.py").write_text("x = 1\n")
    sys.path.insert(0, str(folder))
    try:
        importlib.import_module("foreign_module")
    finally:
        sys.path.remove(str(folder))


def _executes(folder: Path) -> None:
    exec(compile("x = 1", str(folder / "x.py"), "exec"))


def _writes(folder: Path) -> None:
    try:
        Path("/nowhere/x").open("w")  # noqa: SIM115
    except OSError:
        raise ConfigError("refused, and too late") from None


def _says_too_much(folder: Path) -> None:
    raise ConfigError("x" * 3000)


def _breaks(folder: Path) -> None:
    raise KeyError("x")


@pytest.mark.parametrize(
    ("evil", "said"),
    [
        (_system, "did os.system"), (_starts, "did subprocess.Popen"), (_imports, "did "),
        (_unpickles, "did pickle.find_class"), (_executes, "did compile of"), (_writes, "did open"),
        (_says_too_much, "said too much"), (_breaks, "KeyError at"),
    ],
)  # fmt: skip
def test_what_a_reader_must_not_do_is_found(
    guard: watch.Watch, evil: Callable[[Path], None], said: str
) -> None:
    """The watch sees each kind of it: a run without findings means something."""
    runner = watch.Runner(lambda content: evil(Path(guard.folder)), guard)
    runner(b"x")
    (finding,) = runner.told.findings
    assert finding.startswith(said)


def test_messages_never_speak_to_the_terminal() -> None:
    """Names come from files: one with a line break, or with the signs that clear a screen."""
    for kind in (DatafreeError, ConfigError):
        assert str(kind("a\nb\x1b[2Jé…")) == "a\\nb\\x1b[2Jé…"


def test_atheris_drives_the_same_readers(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    script = Path(__file__).parents[2] / "scripts" / "fuzz.py"
    record = tmp_path / "told.jsonl"
    command = [sys.executable, str(script), "record", "--seconds", "2", "--record", str(record)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"findings": []' in record.read_text()
