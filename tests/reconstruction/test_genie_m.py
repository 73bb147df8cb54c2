"""Genie-M's step sizes on folded norms move as in front of them."""

from __future__ import annotations

import pytest
import torch

from datafree.calibrators.base import calibrate
from datafree.calibrators.mse import MSE
from datafree.config import Scheme
from datafree.errors import ConfigError
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.graph.slopes import channel_slopes
from datafree.quant.modules import QUANTIZED
from datafree.reconstruction.genie_m import GenieM
from networks import build, captured, images

RATE = 1e-4


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("rates", ["folded", "unfolded"])
def test_adam_s_first_step_is_the_rate_times_the_slope_of_the_norm(
    rates: str, granularity: str
) -> None:
    """Whatever the gradient, Adam's first step is as long as its rate: |gamma| / sqrt(var + eps)
    times that where step sizes count in front of the norm."""
    graph = captured("Tiny")
    folded = fold_batch_norms(graph)
    scheme = Scheme(bits="W3A4", weight_range="mse", weight_granularity=granularity)  # pyright: ignore
    student = insert_quantizers(folded, scheme)
    calibrate(student, [images(24, 5)], MSE())
    layers = {n: m for n, m in student.named_modules() if isinstance(m, QUANTIZED)}
    before = {n: layer.weight_quantizer.scale.clone() for n, layer in layers.items()}
    method = GenieM(
        iterations=1, lr_factor=1.0, weight_step_lr=RATE, step_rates=rates, unit="layer"  # pyright: ignore
    )  # fmt: skip
    method.reconstruct(folded, student, images(24, 5), unfolded=graph)
    model = build("Tiny")
    for path, norm in (("conv1", model.bn1), ("conv2", model.bn2), ("linear", None)):
        moved = (layers[path].weight_quantizer.scale - before[path]).abs().flatten()
        expected = torch.full_like(moved, RATE)
        if norm is not None and rates == "unfolded":
            slopes = (norm.weight / (norm.running_var + norm.eps).sqrt()).abs().detach()  # pyright: ignore
            expected *= slopes if granularity == "channel" else slopes.mean()
        torch.testing.assert_close(moved, expected, rtol=2e-2, atol=1e-8)


def test_slopes_are_those_of_the_norms() -> None:
    model = build("InPlaceResidual")
    found = channel_slopes(captured("InPlaceResidual"))
    assert found
    for path, slopes in found.items():
        assert bool((slopes > 0).all())
        assert model.get_submodule(path).weight.shape[0] == len(slopes)  # pyright: ignore


def test_rates_in_front_of_norms_need_the_network_with_its_norms() -> None:
    with pytest.raises(ConfigError, match="step_rates=unfolded needs the network with its batch"):
        GenieM(step_rates="unfolded").step_units(None)
    assert GenieM().step_units(None) == {}
