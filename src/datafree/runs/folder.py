"""The folder of a run: whose it is, what an unfinished run left there, what is written to it."""

from __future__ import annotations

import shutil
from collections.abc import Container, Generator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors.torch import save_file
from torch import nn

from datafree.config import RunConfig, load_config, save_config
from datafree.errors import BusyError, ConfigError, OutputError, OutputExistsError
from datafree.files import TEMPORARY, atomic_path, make_folder, sweep, write_text
from datafree.images import SyntheticSet

CONFIG = "config.yaml"
METRICS = "metrics.json"
IMAGES = "images.safetensors"
STUDENT = "student.safetensors"
ONNX = "student.onnx"
ALLOCATION = "allocation.json"
FRONTIER = "frontier.png"
SEARCH = "search.json"
REPORT = "report.html"
TRAINING = "training"  # within UNFINISHED: the state of a training under way
GENERATOR = "generator.safetensors"
WARM_GENERATOR = "warm_generator.safetensors"
UNFINISHED = "unfinished"  # what a synthesis or reconstruction under way has finished
REPLACEMENT = ".replacement"  # a run that is to take the place of a finished one
_LOCK = ".lock"
_ARRIVING = ".arriving"  # names in REPLACEMENT that move to its folder
_WEIGHTS = "weights-*.data"  # beside an ONNX file of more than two gigabytes
_EXPORTED = (ONNX, "student.pt2", "student.pte", "student.tflite")
_WRITTEN = (
    METRICS,
    "benchmark.json",
    "evaluation.json",
    "float.onnx",
    "teacher.pt2",
    *_EXPORTED,
    STUDENT,
    IMAGES,
    "grid.png",
    ALLOCATION,
    FRONTIER,
    SEARCH,
    REPORT,
    GENERATOR,
    WARM_GENERATOR,
)


def refuse(folder: Path, config: RunConfig, force: bool) -> None:
    """Refuse a `folder` that is not ours to write to; nothing is touched."""
    if not folder.exists() or (folder.is_dir() and not any(_seen(folder))):
        return
    found = _config_in(folder)
    if found == config and not (folder / METRICS).exists():
        return
    if not force:
        raise OutputExistsError(
            f"{folder} exists: choose another output, or pass --force to replace it"
        )
    if found is None:
        raise OutputExistsError(
            f"{folder} is not a run of datafree: it is not replaced, even with --force"
        )


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Let no other run write to `folder` meanwhile; the system lets go of it if this one dies.

    Args:
        folder: of a run; made where it is not there.

    Raises:
        BusyError: another process has it.
        OutputError: it cannot be made or written to.
    """
    make_folder(folder, parents=True)
    path = folder / _LOCK
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
        if not path.exists():  # whoever had it has just ended, and removed it
            raise Timeout(str(path))
    except Timeout:
        raise BusyError(
            f"another run is writing to {folder}: wait until it ends, or choose another output"
        ) from None
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        lock.release()


@contextmanager
def writing(
    folder: Path, config: RunConfig, origin: str, *, force: bool, reserved: bool = False
) -> Generator[Path]:
    """The place to write a run in; where all goes well, `folder` holds that run afterwards.

    An unfinished run of the same `config` goes on. A finished run that is to be replaced stays as
    it is until the new one, which is made aside within `folder`, is whole. Of an earlier run only
    what runs write is removed, never a file that someone put beside.

    Args:
        folder: of the run, which `refuse` did not refuse.
        config: of the run.
        origin: what the run starts from beyond its configuration: digests of the teacher and of
            given images. An interrupted run of another origin begins anew.
        force: replace another run.
        reserved: the caller holds the lock.

    Raises:
        BusyError: another process writes there.
        OutputExistsError: another run was faster.
        OutputError: it cannot be written to.
    """
    with nullcontext() if reserved else locked(folder):
        _settle(folder)
        refuse(folder, config, force)
        place = workplace(folder)
        _claim(place, config, origin)
        try:
            yield place
        finally:
            # Whoever cleared the folder meanwhile took it along; without it nobody could go on.
            if place.is_dir() and not (place / CONFIG).exists():
                with suppress(OutputError):
                    save_config(config, place / CONFIG)
        _settle(folder)


def interrupted(folder: Path) -> Path:
    """The configuration of the interrupted run in `folder`, or of one that is to replace it.

    Raises:
        ConfigError: there is none, or the run is finished.
        BusyError: a run is writing there.
    """
    if not folder.is_dir() or not any((folder / name).exists() for name in (CONFIG, REPLACEMENT)):
        raise ConfigError(f"{folder} holds no run to resume: it has no {CONFIG}")
    with locked(folder):
        _settle(folder)
    place = workplace(folder) / CONFIG
    if not place.exists():
        raise ConfigError(f"the run in {folder} is finished: there is nothing to resume")
    return place


def workplace(folder: Path) -> Path:
    """Where a run for `folder` is made: in it, or aside while it holds a finished one."""
    return folder / REPLACEMENT if (folder / METRICS).exists() else folder


def _claim(place: Path, config: RunConfig, origin: str) -> None:
    """Make `place` that of a run with `config`."""
    told = place / UNFINISHED / "origin.txt"
    for folder in (place, told.parent):
        sweep(folder)
    same = told.exists() and told.read_text(encoding="utf-8") == origin
    if _config_in(place) != config or not same:
        _remove_run(place)
        shutil.rmtree(place / UNFINISHED, ignore_errors=True)
    make_folder(place)
    # First of all: a folder with anything else in it and no configuration is nobody's to go on in.
    save_config(config, place / CONFIG)
    make_folder(told.parent)
    write_text(told, origin)


def _settle(folder: Path) -> None:
    """Put a finished replacement in its place, also one that was interrupted at that."""
    made = folder / REPLACEMENT
    if not (made / METRICS).exists():
        return
    # Without a record a folder holds no finished run: nobody takes a mixture for one.
    (folder / METRICS).unlink(missing_ok=True)
    listed = made / _ARRIVING
    if not listed.exists():
        write_text(listed, "\n".join(path.name for path in made.iterdir()))
    arriving = listed.read_text(encoding="utf-8").splitlines()
    _remove_run(folder, kept=arriving)
    for name in sorted({*arriving} - {METRICS, UNFINISHED}):
        if (made / name).exists():  # else it has arrived before an interruption
            (made / name).replace(folder / name)
    (made / METRICS).replace(folder / METRICS)
    shutil.rmtree(made, ignore_errors=True)


def _remove_run(folder: Path, kept: Container[str] = ()) -> None:
    """Remove what runs write, but for the names in `kept`."""
    weights = (path.name for path in folder.glob(_WEIGHTS))
    for name in (*_WRITTEN, *weights):
        if name not in kept:
            (folder / name).unlink(missing_ok=True)


def _seen(folder: Path) -> Iterator[Path]:
    """What lies in `folder`, but for the lock and what a process that was killed began to write."""
    return (
        path for path in folder.iterdir()
        if path.name != _LOCK and not path.name.startswith(TEMPORARY)
    )  # fmt: skip


def save_images(images: SyntheticSet, folder: Path) -> None:
    """Write the images of a run, as tensors and as a picture."""
    images.save_grid(folder / "grid.png")
    images.save(folder / IMAGES)


def save_student(student: nn.Module, folder: Path) -> None:
    """Write the parameters and ranges of a run's student."""
    state = {name: value.contiguous().cpu() for name, value in student.state_dict().items()}
    with atomic_path(folder / STUDENT) as temporary:
        save_file(state, temporary)


def _config_in(folder: Path) -> RunConfig | None:
    """The configuration of the run in `folder`; None if it is not a run."""
    try:
        return load_config(folder / CONFIG)
    except ConfigError:
        return None
