from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from datafree.synthesis._pixels import Canvas, pink_noise, rate
from datafree.synthesis.prior import Prior, output_spread
from datafree.testing.networks import SPEC, NoNorm, ready


@pytest.mark.parametrize("falloff", [0.0, 1.0, 2.0])
def test_amplitudes_fall_with_frequency(falloff: float) -> None:
    """The slope of the logarithms, by least squares over all frequencies but 0."""
    random = torch.Generator().manual_seed(0)
    images = pink_noise(200, (1, 32, 32), falloff, random)[:, 0].double()
    power = torch.fft.fft2(images).abs().square().mean(0)
    sides = torch.fft.fftfreq(32, dtype=torch.float64)
    frequency = (sides[:, None] ** 2 + sides[None] ** 2).sqrt()
    known = frequency > 0
    x, y = frequency[known].log(), power[known].log() / 2
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert slope.item() == pytest.approx(-falloff, abs=0.05)


def test_images_begin_with_unit_deviation_and_colours_that_agree() -> None:
    images = pink_noise(64, (3, 16, 24), 1.0, torch.Generator().manual_seed(0))
    assert images.shape == (64, 3, 16, 24)
    torch.testing.assert_close(images.flatten(1).std(1), torch.ones(64))
    torch.testing.assert_close(images.flatten(1).mean(1), torch.zeros(64), atol=1e-5, rtol=0)
    red, green = images[:, 0].flatten(), images[:, 1].flatten()
    assert torch.corrcoef(torch.stack([red, green]))[0, 1] == pytest.approx(0.81, abs=0.05)


def test_the_rate_rises_and_falls() -> None:
    factors = [rate(done, 100, 10) for done in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == factors[10] == 1
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] < 0.01
    assert rate(0, 5, 100) == 1, "a short run is not spent on warming up"
    assert rate(0, 1, 100) == 1


def test_the_canvas_goes_from_black_to_white() -> None:
    canvas = Canvas.of(SPEC, torch.device("cpu"))
    ends = canvas.clamp_(torch.tensor([-9.0, 9.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1).clone())
    pixels = canvas.normalised(ends)[..., 0, 0] * torch.tensor(SPEC.std) + torch.tensor(SPEC.mean)
    torch.testing.assert_close(pixels, torch.tensor([[0.0] * 3, [1.0] * 3]), atol=1e-5, rtol=0)


def test_classes_are_shown_and_outputs_stretched_no_further_than_wanted() -> None:
    torch.manual_seed(0)
    graph = ready(NoNorm())
    plain: dict[str, Any] = {
        "label_weight": 0.0,
        "tv_weight": 0.0,
        "shift": 0.0,
        "learning_rate": 0.1,
    }

    def made(**changes: Any) -> tuple[torch.Tensor, torch.Tensor]:
        found = Prior(iterations=60, **{**plain, **changes}).generate(graph, SPEC, 16)
        assert found.targets is not None
        with torch.no_grad():
            return graph(found.images), found.targets

    start = output_spread(made(stretch_weight=0.0)[0])
    stretched = output_spread(made(stretch_weight=1.0, least_spread=8.0, most_spread=9.0)[0])
    limited = output_spread(made(stretch_weight=1.0, least_spread=1.2, most_spread=1.2)[0])
    assert stretched.mean() > 1.5 * start.mean()
    assert start.mean() < limited.mean() < 1.5 * start.mean()
    logits, targets = made(stretch_weight=0.0, label_weight=1.0)
    before = F.cross_entropy(made(stretch_weight=0.0)[0], targets)
    assert F.cross_entropy(logits, targets) < before - 0.02
