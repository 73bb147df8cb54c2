"""The folder of a run: whose it is, what an unfinished run left there, what is written to it."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from datafree.config import RunConfig, load_config, save_config
from datafree.errors import ConfigError, OutputExistsError
from datafree.files import atomic_path, write_text
from datafree.images import SyntheticSet

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
_EXPORTED = (ONNX, "student.pt2", "student.pte", "student.tflite")
_WRITTEN = (
    "metrics.json",
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
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    found = _config_in(folder)
    if found == config and not (folder / "metrics.json").exists():
        return
    if not force:
        raise OutputExistsError(
            f"{folder} exists: choose another output, or pass --force to replace it"
        )
    if found is None:
        raise OutputExistsError(
            f"{folder} is not a run of datafree: it is not replaced, even with --force"
        )


def claim(folder: Path, config: RunConfig, origin: str) -> None:
    """Make `folder`, which was not refused, ours: an unfinished run of the same `config` goes on.

    Of an earlier run only what runs write is removed, never a file that someone put beside.

    Args:
        folder: where the run is written.
        config: of the run.
        origin: what the run starts from beyond its configuration: digests of the teacher and of
            given images. A run of another origin begins anew.
    """
    told = folder / UNFINISHED / "origin.txt"
    same = told.exists() and told.read_text(encoding="utf-8") == origin
    if (folder / "metrics.json").exists() or _config_in(folder) != config or not same:
        for name in _WRITTEN:
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / "config.yaml")
    write_text(told, origin)


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
        return load_config(folder / "config.yaml")
    except ConfigError:
        return None
