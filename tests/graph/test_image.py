"""What is still the image, and how dark and bright it can be there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import datafree
from datafree.config import InputSpec, Scheme
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.image import image_bounds
from datafree.graph.insert import insert_quantizers
from datafree.quant.modules import ActivationQuantizer

SPEC = InputSpec(shape=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3, classes=5)
MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.5])


class Before(nn.Module):
    """Something in front of a convolution."""

    def __init__(self, change: Callable[[Tensor], Tensor], channels: int = 3) -> None:
        super().__init__()
        self.change = change
        self.conv, self.head = nn.Conv2d(channels, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(self.change(x))).mean((2, 3)))


def extremes(change: Callable[[Tensor], Tensor], channels: int = 3) -> tuple[float, float] | None:
    """Black and white in front of the convolution; None where that is no image."""
    graph = capture(Before(change, channels).eval(), SPEC)
    (source,) = (n.all_input_nodes[0] for n in graph.graph.nodes if n.target == "conv")
    bounds = image_bounds(graph, SPEC).get(source)
    return None if bounds is None else (float(bounds[0].min()), float(bounds[1].max()))


def by_channel(values: Tensor) -> Tensor:
    return values.view(1, 3, 1, 1)


CHAINS: list[tuple[Callable[[Tensor], Tensor], float, float]] = [
    (lambda x: x, 0, 1),
    (lambda x: (x - by_channel(MEAN)) / by_channel(STD), -2.5, 2.5),
    (lambda x: 2 * x - 1, -1, 1),
    (lambda x: 1 - x, 0, 1),
    (lambda x: torch.add(x, 1, alpha=2), 2, 3),
    (lambda x: F.pad(x - 0.25, (1, 1, 1, 1)), -0.25, 0.75),
    (lambda x: F.pad(x, (1, 1, 1, 1), value=-3.0), -3, 1),
    (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), 0, 1),
    (lambda x: F.avg_pool2d(x + 1, 2), 1, 2),
    (lambda x: F.avg_pool2d(x + 1, 3, 1, 1), 0, 2),
    (lambda x: F.max_pool2d(3 * x, 2), 0, 3),
    (lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), 0, 1),
    (lambda x: x[:, :, 1:, ::2] - 1, -1, 0),
    (lambda x: torch.cat([x[:, :1] * 2, x[:, 1:2] + 5, x[:, 2:]], 1), 0, 6),
    (lambda x: torch.cat([1 - x, x], 1)[:, :3], 0, 1),
]


@pytest.mark.parametrize(("change", "low", "high"), CHAINS)
def test_chains_of_the_input(change: Callable[[Tensor], Tensor], low: float, high: float) -> None:
    found = extremes(change)
    assert found is not None
    assert found == pytest.approx((low, high), abs=1e-6)


def test_moved_channels() -> None:
    assert extremes(lambda x: F.pixel_unshuffle(x, 2), 12) == pytest.approx((0, 1))


OTHERS: list[Callable[[Tensor], Tensor]] = [
    torch.sin, lambda x: x * x, lambda x: 1 / (x + 1), lambda x: x - x.mean(),
]  # fmt: skip


@pytest.mark.parametrize("change", OTHERS)
def test_what_is_computed_of_it_is_no_image(change: Callable[[Tensor], Tensor]) -> None:
    assert extremes(change) is None


def test_a_batch_norm_normalises_too() -> None:
    norm = nn.BatchNorm2d(3, affine=False, eps=0.0)
    norm.running_mean, norm.running_var = MEAN.clone(), STD.square()
    network = nn.Sequential(norm, nn.ReflectionPad2d(1), nn.Conv2d(3, 5, 10), nn.Flatten()).eval()
    graph = capture(network, SPEC)
    (source,) = (n.all_input_nodes[0] for n in graph.graph.nodes if n.target == "2")
    low, high = image_bounds(graph, SPEC)[source]
    torch.testing.assert_close(low, (-MEAN / STD).double())
    torch.testing.assert_close(high, ((1 - MEAN) / STD).double())


@pytest.mark.parametrize("target", ["paper", "onnxruntime", "openvino"])
def test_eight_bits_and_all_pixels(target: str) -> None:
    inside = Before(lambda x: (x - by_channel(MEAN)) / by_channel(STD)).eval()
    folded = fold_batch_norms(capture(inside, SPEC))
    student = insert_quantizers(folded, Scheme(bits="W4A4", target=target), SPEC)
    first = next(m for m in student.modules() if isinstance(m, ActivationQuantizer))
    assert first.grid.bits == 8
    assert first.covers == pytest.approx((-2.5, 2.5), abs=1e-6)


@pytest.mark.integration
def test_the_student_is_that_of_a_network_without_normalisation() -> None:
    outside = Before(lambda x: x).eval()
    inside = Before(lambda x: (x - by_channel(MEAN)) / by_channel(STD)).eval()
    inside.load_state_dict(outside.state_dict())
    images = torch.rand(32, 3, 8, 8)
    normalised = (images - by_channel(MEAN)) / by_channel(STD)
    told: dict[str, Any] = {
        "input_shape": (3, 8, 8),
        "bits": "W4A4",
        "bias_correction": "none",
        "holdout": 0,
    }
    a = datafree.quantize(inside, images=images, mean=(0,) * 3, std=(1,) * 3, **told)
    b = datafree.quantize(
        outside, images=normalised, mean=tuple(MEAN.tolist()), std=tuple(STD.tolist()), **told
    )
    with torch.no_grad():
        torch.testing.assert_close(a.student(images), b.student(normalised), rtol=1e-3, atol=1e-3)
