from __future__ import annotations

from pathlib import Path

import pytest

from datafree.errors import ParityError
from datafree.export.base import Parity
from datafree.export.onnx import Onnx


def parity(mismatches: int, noise: float) -> Parity:
    return Parity(images=32, mismatches=mismatches, difference=0.1, spread=10.0, noise=noise)


def test_a_file_may_differ_by_twice_what_the_student_differs_from_itself_and_no_more() -> None:
    path, exact = Path("student.onnx"), parity(0, 0.0)
    Onnx().judge(parity(2, 0.1), exact, path)
    Onnx().judge(parity(4, 0.25), parity(1, 0.1), path)
    for found, own in (
        (parity(3, 0.0), exact),
        (parity(0, 0.11), exact),
        (parity(5, 0.0), parity(1, 0.1)),
        (parity(0, 0.31), parity(1, 0.1)),
        (parity(0, float("nan")), exact),
    ):
        with pytest.raises(ParityError, match="not kept"):
            Onnx().judge(found, own, path)
