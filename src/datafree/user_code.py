"""Python code that a user names: a module that can be imported, or a file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Generator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import ModuleType

LIBRARIES = ("timm", "torchvision", "pytorchcv")
"""Whose networks are called ``LIBRARY:NAME``; any other name with a colon is one of code."""

FROM_FILE = "_datafree_user_"
"""How the names of modules begin that were run from a file."""


def is_code(name: str, *, network: bool) -> bool:
    """Whether finding what is called `name` imports a module, or runs a file, that it names.

    Args:
        name: of a network, a method or a measure.
        network: it is of a network.
    """
    prefix, colon, _ = name.strip().partition(":")
    return bool(colon) and not (network and prefix in LIBRARIES)


def module_at(place: str) -> ModuleType:
    """The module called `place`: ``package.module``, or ``path/to/file.py``, which is run once.

    Modules of the current folder are found too, and those beside a file.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: there is no such module, or the file is no Python file.
    """
    if not place.endswith(".py"):
        with _importable(Path.cwd()):
            return importlib.import_module(place)
    path = Path(place).resolve()
    if not path.is_file():
        raise FileNotFoundError(place)
    return _run_file(path)


def _run_file(path: Path) -> ModuleType:
    # A name of its own for every content, so that two called net.py do not replace each other.
    content = sha256(str(path).encode() + path.read_bytes()).hexdigest()
    name = f"{FROM_FILE}{path.stem}_{content[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        with _importable(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _importable(folder: Path) -> Generator[None]:
    """Imports find the modules of `folder` too, as they do for ``python file.py``."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
