from __future__ import annotations

import pytest
import torch

from datafree.reconstruction._error import output_error


def test_the_error_is_summed_over_channels_and_averaged_over_the_rest() -> None:
    outputs, targets = torch.randn(4, 3, 5, 6), torch.randn(4, 3, 5, 6)
    weights = torch.rand(4, 3, 5, 6)
    total = weighted = 0.0
    for n in range(4):
        for c in range(3):
            for y in range(5):
                for x in range(6):
                    d = abs(float(outputs[n, c, y, x] - targets[n, c, y, x]))
                    total += d**2.4 / (4 * 5 * 6)
                    weighted += float(weights[n, c, y, x]) * d**2 / (4 * 5 * 6)
    assert output_error(outputs, targets, 2.4).item() == pytest.approx(total, rel=1e-4)
    assert output_error(outputs, targets, 2.0, weights).item() == pytest.approx(weighted, rel=1e-4)


def test_the_error_of_a_linear_layer_is_averaged_over_samples_only() -> None:
    outputs, targets = torch.ones(8, 10), torch.zeros(8, 10)
    assert output_error(outputs, targets).item() == pytest.approx(10)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_the_error_is_twice_the_difference(layout: torch.memory_format) -> None:
    outputs = torch.randn(4, 3, 5, 6).to(memory_format=layout).requires_grad_()
    targets = torch.randn(4, 3, 5, 6)
    (gradient,) = torch.autograd.grad(0.5 * output_error(outputs, targets), [outputs])
    expected = (outputs.detach() - targets) / (4 * 5 * 6)
    assert torch.allclose(gradient, expected, rtol=1e-6)
