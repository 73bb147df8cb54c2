from __future__ import annotations

import pytest
import torch
from torch import nn

from datafree.calibrators.base import calibrate
from datafree.calibrators.minmax import MinMax
from datafree.errors import ModelError
from datafree.quant.grid import Grid
from datafree.quant.modules import ActivationQuantizer


@pytest.mark.parametrize(
    "values", [[float("inf")] * 2, [0.0, float("inf")], [float("-inf"), 1.0], [float("nan"), 1.0]]
)
def test_values_that_are_not_finite_are_refused_by_the_quantizers_name(
    values: list[float],
) -> None:
    student = nn.Sequential()
    student.add_module("relu_quantizer", ActivationQuantizer(Grid(8)))
    with pytest.raises(ModelError, match="what relu_quantizer reads returns"):
        calibrate(student, [torch.tensor([values])], MinMax())
    assert not student[0]._forward_pre_hooks
