"""What is left after a process was disturbed: whether anything is torn, lost or falsely told."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from datafree.files import sha256

_ENDING = 0.3  # seconds that a process takes to end once all is written
_ENDED = {0, 2, 130, 143, -signal.SIGKILL, -signal.SIGTERM}  # the last before Python has begun
_SAME = (".safetensors", ".onnx", ".pt2", "config.yaml", "allocation.json")


@dataclass(frozen=True)
class Undisturbed:
    """How a command ends when nothing happens.

    Attributes:
        seconds: it took.
        files: digests of those that are there afterwards.
        writes: the folder that it writes into.
    """

    seconds: float
    files: dict[str, str]
    writes: str


@dataclass(frozen=True)
class Ended:
    """How a process ended, what it said on standard error, and seconds since the fault."""

    code: int
    said: str
    since: float


def judged(
    ended: Ended, folder: Path, expected: Undisturbed, removed: str | None = None
) -> list[str]:
    """What a disturbed process left that should not be; the folder `removed` was taken away."""
    wrong: list[str] = []
    if ended.code not in _ENDED:
        wrong.append(f"ended with {ended.code}: {ended.said.strip()[-300:]}")
    if "Traceback" in ended.said:
        wrong.append(f"a traceback: {ended.said.strip()[-300:]}")
    wrong += [f"{path.relative_to(folder)} is torn" for path in folder.rglob("*") if _torn(path)]
    if ended.code == 0:
        wrong += _false_success(ended, folder, expected, removed)
    for run in ("out", "run"):
        record = folder / run / "metrics.json"
        if record.exists():
            hashes = json.loads(record.read_text())["hashes"]
            wrong += [
                f"{run}/{name} is not that of the record"
                for name, digest in hashes.items()
                if not (folder / run / name).exists() or sha256(folder / run / name) != digest
            ]
    return wrong


def _false_success(
    ended: Ended, folder: Path, expected: Undisturbed, removed: str | None
) -> list[str]:
    """What is missing or different after a success; what was removed need not be there.

    A result may have been whole when its folder vanished, if the process ended at once.
    """
    if removed is None or (folder / removed).exists():
        different = differing(folder, expected)
        return [f"a success with other files: {different}"] if different else []
    left = {name for name in expected.files if not name.startswith(f"{removed}/")}
    missing = sorted(name for name in left if not (folder / name).exists())
    if missing:
        return [f"a success without {', '.join(missing)}"]
    if expected.writes == removed and ended.since > _ENDING:
        return [f"a success {ended.since:.1f} s after {removed} had vanished"]
    return []


def _torn(path: Path) -> bool:
    """Whether a file under its own name cannot be read."""
    if not path.is_file() or path.name.startswith("."):
        return False
    try:
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="np") as file:
                file.keys()
        elif path.suffix == ".onnx":
            import onnx

            onnx.checker.check_model(onnx.load(path))
        elif path.suffix in (".pt2", ".npz"):
            import zipfile

            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is not None
        elif path.suffix == ".png":
            from PIL import Image

            with Image.open(path) as picture:
                picture.load()
    except Exception:  # noqa: BLE001 - whatever a reader says of a torn file
        return True
    return False


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that the same command always writes alike, by their place."""
    return {
        str(path.relative_to(folder)): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name.endswith(_SAME) and path.name[0] != "."
    }


def finished_batches(folder: Path) -> dict[Path, int]:
    """Batches of images that are on disk, and when they were written."""
    found = [path for path in folder.rglob("batch_*.safetensors") if path.name[0] != "."]
    return {path: path.stat().st_mtime_ns for path in found}


def made_again(path: Path, when: int) -> bool:
    return path.exists() and path.stat().st_mtime_ns != when


def differing(folder: Path, expected: Undisturbed) -> str:
    found = digests(folder)
    names = set(found) ^ set(expected.files)
    names |= {
        name for name in set(found) & set(expected.files) if found[name] != expected.files[name]
    }
    return ", ".join(sorted(names)[:6])
