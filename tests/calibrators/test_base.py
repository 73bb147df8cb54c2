"""How often ranges are asked for, and when."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from datafree.calibrators.base import calibrate
from datafree.calibrators.minmax import MinMax
from datafree.config import Scheme
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.quant.grid import Grid
from datafree.quant.modules import ActivationQuantizer
from datafree.testing.networks import SPEC, Tiny, images, ready


@pytest.mark.parametrize(("observe", "times"), [("quantized", 4), ("float", 1)])
def test_ranges_are_asked_for_where_something_reads_them(
    observe: Literal["quantized", "float"], times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a float network once: a rule that looks at all its batches anew stays linear in them."""
    asked: list[Grid] = []
    rule = MinMax.range

    def counted(self: MinMax, state: Any, grid: Grid) -> tuple[Tensor, Tensor]:
        asked.append(grid)
        return rule(self, state, grid)

    monkeypatch.setattr(MinMax, "range", counted)
    student = insert_quantizers(fold_batch_norms(ready(Tiny())), Scheme(bits="W4A4"), SPEC)
    calibrate(student, images(8).split(2), MinMax(), observe=observe)
    quantizers = [m for m in student.modules() if isinstance(m, ActivationQuantizer)]
    assert len(asked) == times * len(quantizers)
    first = quantizers[0]
    scale, zero_point = first.grid.parameters(images(8).amin(), images(8).amax())
    torch.testing.assert_close(first.scale, scale)
    torch.testing.assert_close(first.zero_point, zero_point)
