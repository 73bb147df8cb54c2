"""Methods are files: the stem of a file in a method package is the method's name everywhere.

There is no registration and no global state. `available` lists the files of a package without
importing them; `load` imports one and returns the one class it defines below the package's base.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

from datafree.errors import UnknownNameError


def available(package: str) -> list[str]:
    """Sorted names of the methods in `package` (``"datafree.synthesis"``), without importing them.

    Files named `base` or starting with an underscore hold shared code and are not methods.
    """
    path = importlib.import_module(package).__path__
    names = (module.name for module in pkgutil.iter_modules(path))
    return sorted(name for name in names if name != "base" and not name.startswith("_"))


def load(package: str, name: str, base: type[Any]) -> type[Any]:
    """The class of method `name` in `package`.

    Args:
        package: dotted name of the method package.
        name: a file stem, as listed by `available`.
        base: the class every method of this package derives from.

    Raises:
        UnknownNameError: no such method; the nearest names are offered.
        TypeError: the file does not define exactly one public subclass of `base` (a mistake of its
            author).
    """
    names = available(package)
    if name not in names:
        raise UnknownNameError(f"{package.rpartition('.')[2]} method", name, names)
    module = importlib.import_module(f"{package}.{name}")
    found = [
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, base)
        and cls.__module__ == module.__name__
        and not cls.__name__.startswith("_")
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define one {base.__name__}, found {len(found)}")
    return found[0]
