"""Methods by name: files of a package, entry points of installed packages, files of the user's.

There is no registration and no global state. The stem of a file in a method package is the method's
name everywhere; an installed package adds methods by entry points whose group is the package's
name (``datafree.synthesis``); and a class is named by where it is, ``path/to/stripes.py:Stripes``
or ``package.module:Stripes``.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from datafree.errors import ConfigError, UnknownNameError
from datafree.user_code import module_at

KINDS = {
    "datafree.synthesis": "image method",
    "datafree.calibrators": "calibrator",
    "datafree.reconstruction": "reconstruction",
    "datafree.training": "training",
    "datafree.export": "export format",
    "datafree.runtimes": "runtime",
}
"""Packages of methods, groups of entry points too, and what a method of each is called."""


def available(package: str) -> list[str]:
    """Sorted names of the methods of `package` (``"datafree.synthesis"``), without importing them.

    Files named `base` or starting with an underscore hold shared code and are not methods.
    """
    return sorted({*built_in(package), *(point.name for point in entry_points(group=package))})


def built_in(package: str) -> list[str]:
    """Sorted names of the methods that come with this package."""
    path = importlib.import_module(package).__path__
    names = (module.name for module in pkgutil.iter_modules(path))
    return sorted(name for name in names if name != "base" and not name.startswith("_"))


def load(package: str, name: str, base: type[Any]) -> type[Any]:
    """The class of method `name` of `package`.

    Args:
        package: dotted name of the method package.
        name: as `available` lists it, ``path/to/file.py:Class`` or ``package.module:Class``.
        base: the class every method of this package derives from.

    Raises:
        UnknownNameError: no such method; the nearest names are offered.
        ConfigError: a class from outside that cannot be imported, is no such method, or leaves out
            what every method has to implement.
        TypeError: a file of this package does not define exactly one public subclass of `base` (a
            mistake of its author).
    """
    if name in built_in(package):
        return _own(f"{package}.{name}", base)
    kind = KINDS.get(package, package)
    if ":" in name:
        return _checked(_named(name, base, kind), name, base, kind)
    points = [point for point in entry_points(group=package) if point.name == name]
    if not points:
        raise UnknownNameError(kind, name, available(package))
    if len(points) > 1:
        owners = " and ".join(_distribution(point) for point in points)
        raise ConfigError(f"{owners} both bring a {kind} {name}: uninstall one of them")
    return _checked(_from_entry_point(points[0], kind), name, base, kind)


def method_name(cls: type[Any]) -> str:
    """What a method calls itself: the stem of its file here, the class's name from outside."""
    inside = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
    return cls.__module__.rpartition(".")[2] if inside else cls.__name__


def _own(module_name: str, base: type[Any]) -> type[Any]:
    module = importlib.import_module(module_name)
    found = _defined(module, base)
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define one {base.__name__}, found {len(found)}")
    return found[0]


def _defined(module: Any, base: type[Any]) -> list[type[Any]]:
    """The public subclasses of `base` that `module` itself defines."""
    return [
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, base)
        and cls.__module__ == module.__name__
        and not cls.__name__.startswith("_")
    ]


def _named(name: str, base: type[Any], kind: str) -> Any:
    place, _, path = name.rpartition(":")
    try:
        module = module_at(place)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {place} to take the {kind} {path} from") from None
    except Exception as error:
        raise ConfigError(
            f"cannot import {place} for the {kind} {path}: {type(error).__name__}: {error}"
        ) from error
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part, None)
    if found is None:
        known = [cls.__name__ for cls in _defined(module, base)]
        raise UnknownNameError(f"{kind} of {place}", path, known)
    return found


def _from_entry_point(point: EntryPoint, kind: str) -> Any:
    try:
        return point.load()
    except Exception as error:
        raise ConfigError(
            f"{_distribution(point)} brings a {kind} {point.name} that cannot be imported from"
            f" {point.value}: {type(error).__name__}: {error}"
        ) from error


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _checked(found: Any, name: str, base: type[Any], kind: str) -> type[Any]:
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise ConfigError(
            f"{name} is no {kind}: it must be a class derived from"
            f" {base.__module__}.{base.__name__}"
        )
    if inspect.isabstract(found):
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise ConfigError(f"{name} does not implement {missing}, as every {kind} has to")
    return found
