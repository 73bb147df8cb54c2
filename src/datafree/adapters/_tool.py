"""Importing a tool that need not be installed."""

from __future__ import annotations

import importlib
from typing import Any

from datafree.errors import ConfigError


def imported(module: str, package: str) -> Any:
    """The module of a tool.

    Args:
        module: dotted name to import.
        package: what is installed to have it.

    Raises:
        ConfigError: it is not there; the message says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"cannot import {module} ({error}): install it with pip install {package}, or write"
            " the images as .npz and load them there"
        ) from None
