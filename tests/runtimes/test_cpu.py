"""What is read off the processor."""

from __future__ import annotations

from pathlib import Path

import pytest

from datafree.runtimes import _cpu

XEON = "model name\t: Xeon 8\nflags\t\t: fpu avx512f avx512_vnni amx_int8\n"
OLD = "model name\t: Old One\nflags\t\t: fpu avx2\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n"


@pytest.mark.parametrize(
    ("text", "instructions"),
    [(XEON, ("AVX-512 VNNI", "AMX")), (OLD, ()), (ARM, ("DotProd", "I8MM")), ("", None)],
)
def test_instructions_for_integers(
    text: str,
    instructions: tuple[str, ...] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(2 * text, encoding="utf-8")
    monkeypatch.setattr(_cpu, "_CPUINFO", path)
    assert _cpu.integer_instructions() == instructions
    if "model name" in text:
        assert _cpu.processor() == text.splitlines()[0].partition(": ")[2]


def test_where_nothing_is_told_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cpu, "_CPUINFO", tmp_path / "none")
    assert _cpu.integer_instructions() is None
    assert isinstance(_cpu.processor(), str)
