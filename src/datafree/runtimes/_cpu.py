"""The processor at hand, and whether it multiplies 8-bit integers faster than floats."""

from __future__ import annotations

import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_INTEGER = {
    "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX VNNI", "amx_int8": "AMX", "asimddp": "DotProd",
    "i8mm": "I8MM",
}  # fmt: skip
"""Instructions for 8-bit products, as Linux calls them, and as people do."""


def processor() -> str:
    """What the machine says its processor is."""
    return next(iter(_told("model name")), platform.processor())


def integer_instructions() -> tuple[str, ...] | None:
    """Instructions of this processor that multiply and add 8-bit integers; None if not known."""
    lines = (*_told("flags"), *_told("Features"))
    if not lines:
        return None
    flags = set(lines[0].split())
    return tuple(shown for flag, shown in _INTEGER.items() if flag in flags)


def _told(key: str) -> tuple[str, ...]:
    """Values of `key`, one per core."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ()
    parts = (line.partition(":") for line in lines)
    return tuple(value.strip() for name, _, value in parts if name.strip() == key)
