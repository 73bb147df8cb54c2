"""Code that a file names, which nobody runs unasked.

A configuration may name Python of somebody's: a function that builds the network, a method of
their own, a measure. Whoever types such a name wants it to run. One that stands in the folder of
a run, or in a ``config.yaml``, came with the file, and the file may have come from a stranger.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from datafree.config import RunConfig
from datafree.config.options import METHODS
from datafree.errors import UntrustedCodeError
from datafree.user_code import is_code

_NETWORKS = ("model", "student")
_MEASURES = ("metric", "decode")


def code_in(config: RunConfig, given: Container[str] = ()) -> dict[str, str]:
    """Fields of `config` that name Python code, and the code they name.

    Args:
        config: of a run.
        given: fields that somebody typed, which are left out.
    """
    found: dict[str, str] = {}
    for field in (*_NETWORKS, *METHODS, *_MEASURES):
        if field in given:
            continue
        value = getattr(config, field)
        names = value.split(",") if isinstance(value, str) else ()
        code = [name for name in names if is_code(name, network=field in _NETWORKS)]
        if code:
            found[field] = ", ".join(code)
    return found


def check_trusted(
    config: RunConfig, where: Path, *, trust_code: bool, given: Container[str] = ()
) -> None:
    """Refuse to run code that a file names.

    Args:
        config: as the file has it.
        where: the file, for the message.
        trust_code: somebody has read that code, and wants it to run.
        given: fields that somebody typed in place of the file's.

    Raises:
        UntrustedCodeError: there is such code; the message names all of it.
    """
    code = code_in(config, given)
    if trust_code or not code:
        return
    named = " and ".join(f"{_shown(code[field])} ({field})" for field in code)
    raise UntrustedCodeError(where, named)


def _shown(name: str) -> str:
    """A name with the file that it stands for here."""
    place, _, function = name.rpartition(":")
    return f"{Path(place).absolute()}:{function}" if place.endswith(".py") else name
