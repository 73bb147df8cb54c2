"""What a file that somebody named as a network is, told without running anything from it."""

from __future__ import annotations

import ast
import difflib
import io
import pickletools
import zipfile
from pathlib import Path
from typing import IO, Any, Literal

from datafree.bounds import check_ordinary, check_zip
from datafree.errors import ModelError
from datafree.models.given import EXPORTED

Kind = Literal["program", "torchscript", "pickle", "safetensors", "keras", "other"]

SUFFIXES = (
    ".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl", ".pickle", ".h5", ".hdf5",
    ".keras", ".tflite", ".pb", ".py",
)  # fmt: skip
"""By which a source is taken for the name of a file."""
NETWORKS = (".onnx", ".pt2")
"""Files that hold a network."""
_PLAIN = (
    "torch._", "torch.nn.parameter.", "torch.storage.", "torch.cuda.", "collections.OrderedDict",
    "collections.defaultdict", "_codecs.encode", "builtins.", "__builtin__.", "argparse.Namespace",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype",
)  # fmt: skip
"""Beginnings of what tensors, and plain values beside them, ask for in pickles."""
_LAYERS = "torch.nn.modules."
_LEGACY_PICKLES = 4
"""Of a file of torch before 1.6 the fourth pickle is what was saved; the first tells the format."""


def refused_file(path: Path) -> ModelError:
    """Why the file at `path` is no network by itself, and what to do with it.

    Args:
        path: named as a source.
    """
    if path.is_dir():
        return ModelError(
            f"{path} is a folder: name a file in it, or the function that builds the network,"
            " path/to/file.py:factory"
        )
    if path.suffix == ".py":
        return ModelError(_python(path))
    if not path.exists():
        close = difflib.get_close_matches(path.name, [Path(n).name for n in files_beside(path)])
        near = f": did you mean {path.with_name(close[0])}?" if close else ""
        return ModelError(f"there is no file {path}{near}")
    what: dict[Kind, str] = {
        "torchscript": "is TorchScript, which torch.export does not take: pass the network it was"
        f" made from, or a .pt2 file of that: {EXPORTED}",
        "keras": "is no file of torch: convert the network to torch, or to ONNX",
        "other": "is no file that a network could be read from: pass package.module:factory, or"
        " a .pt2 file from torch.export.save",
    }
    kind = kind_of(path)
    if kind in what:
        return ModelError(f"{path} {what[kind]}")
    if kind == "pickle" and (classes := foreign_classes(path)):
        return ModelError(_pickled(path, classes))
    return ModelError(
        f"{path} holds weights without a network: pass package.module:factory with {path} as"
        " weights_file, or a .pt2 file from torch.export.save"
    )


def files_beside(path: Path) -> list[str]:
    """Networks in the folder of `path`, which is not there, as somebody would have named them."""
    try:
        names = sorted(one.name for one in path.parent.iterdir() if one.suffix in NETWORKS)
    except OSError:
        return []
    return [str(path.with_name(name)) for name in names]


def kind_of(path: Path) -> Kind:
    """What the file at `path` is, by its first bytes and the names in its archive.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        check_ordinary(path)
        with path.open("rb") as file:
            head = file.read(16)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _archive(archive.namelist())
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ModelError(f"cannot read {path}: {error}") from None
    except (zipfile.BadZipFile, NotImplementedError):
        return "other"
    if head[:4] == b"\x89HDF" or head[4:8] == b"TFL3":
        return "keras"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return "safetensors"
    return "pickle" if head[:1] == b"\x80" else "other"


def foreign_classes(path: Path) -> list[str]:
    """Classes and functions that the pickle at `path` asks for, but for those of plain tensors.

    Its instructions are listed; none is carried out.
    """
    found: set[str] = set()
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                inside = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                check_zip(path, [inside])
                found |= _asked_for(io.BytesIO(archive.read(inside)))
        else:
            with path.open("rb") as file:
                for _ in range(_LEGACY_PICKLES):
                    found |= _asked_for(file)
    except Exception:  # noqa: BLE001 - a damaged pickle can fail in any way
        pass  # what was found until then is told
    return sorted(name for name in found if not _is_plain(name))


def pickled_network(classes: list[str]) -> str | None:
    """The class of the network among `classes` of a pickle; None where there is no network."""
    if not any(name.startswith(_LAYERS) for name in classes):
        return None
    return next((name for name in classes if not name.startswith(_LAYERS)), classes[0])


def _is_plain(name: str) -> bool:
    # torch.FloatStorage, torch.Size, torch.float32 and their like have no module of their own.
    return name.startswith(_PLAIN) or (name.startswith("torch.") and name.count(".") == 1)


def _asked_for(pickle: IO[bytes]) -> set[str]:
    """What the instructions of one pickle import, as ``module.name``."""
    found: set[str] = set()
    texts: list[str] = []
    memo: list[str | None] = []
    last: str | None = None
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name == "MEMOIZE":
            memo.append(last)
            continue
        if opcode.name == "GLOBAL":
            found.add(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL" and len(texts) > 1:
            found.add(".".join(texts[-2:]))
        last = argument if isinstance(argument, str) and opcode.name != "GLOBAL" else None
        if opcode.name.endswith("BINGET") and isinstance(argument, int) and argument < len(memo):
            last = memo[argument]
        if last is not None:
            texts.append(last)
    return found


def _archive(names: list[str]) -> Kind:
    inside = [name.partition("/")[2] for name in names]
    if "archive_format" in inside or any(name.startswith("models/") for name in inside):
        return "program"
    if any(name.startswith("code/") for name in inside):
        return "torchscript"
    if "data.pkl" in inside:
        return "pickle"
    return "keras" if "config.json" in names and "metadata.json" in names else "other"


def _pickled(path: Path, classes: list[str]) -> str:
    network = pickled_network(classes)
    if network is not None:
        return (
            f"{path} holds a whole pickled network ({network}), which is never unpickled, since"
            " that runs code of the file: where its class is at hand, save"
            " torch.save(model.state_dict(), 'weights.pth') and pass package.module:factory with"
            " weights.pth as weights_file"
        )
    return (
        f"{path} holds weights without a network, beside objects that are never unpickled"
        f" ({', '.join(classes[:3])}): save torch.save(model.state_dict(), 'weights.pth') and pass"
        " package.module:factory with weights.pth as weights_file"
    )


def _python(path: Path) -> str:
    """What to say of a Python file without a function."""
    if not path.is_file():
        return f"there is no file {path}"
    try:
        body: list[Any] = ast.parse(path.read_text(encoding="utf-8")).body
    except (SyntaxError, ValueError) as error:
        return f"{path} is not Python: {error}"
    defined = (ast.FunctionDef, ast.ClassDef)
    names = [item.name for item in body if isinstance(item, defined) and item.name[0] != "_"]
    known = f"; it has {', '.join(names[:6])}" if names else ""
    return f"{path} is Python code: name the function that returns the network, {path}:NAME{known}"
