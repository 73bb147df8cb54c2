"""Runtimes that the project does not bring along."""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from typing import Any

from datafree.errors import ExportError


def is_installed(package: str) -> bool:
    """Whether `package` can be imported; an empty name always can."""
    return not package or find_spec(package) is not None


def needed(module: str, what: str, extra: str) -> Any:
    """`module`, imported.

    Args:
        module: dotted name.
        what: needs it, for the message.
        extra: of this project, that brings it.

    Raises:
        ExportError: its package is not installed, or it cannot be imported.
    """
    package = module.partition(".")[0]
    if not is_installed(package):
        raise ExportError(
            f"{what} need {package}, which is not installed: pip install 'datafree[{extra}]'"
        )
    try:
        with quiet():
            return importlib.import_module(module)
    except ImportError as error:
        raise ExportError(
            f"{what} need {package}, which cannot be imported ({error}): install the version of"
            f" 'datafree[{extra}]' again"
        ) from error


@contextmanager
def quiet() -> Generator[None]:
    """Hold back what such packages say about themselves and each other."""
    level = logging.root.manager.disable
    told = io.StringIO()
    try:
        logging.disable(logging.WARNING)
        with warnings.catch_warnings(), redirect_stdout(told), redirect_stderr(told):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
