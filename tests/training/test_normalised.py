"""A network that normalises inside `forward` learns what it learns when that is done outside."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from datafree.calibrators.minmax import MinMax
from datafree.config import InputSpec, Scheme, build
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.registry import load
from datafree.training import Task, train
from datafree.training.base import Trainer
from networks import randomized

MEAN, STD = (0.48, 0.45, 0.4), (0.23, 0.22, 0.25)
OUTSIDE = InputSpec(shape=(3, 16, 16), mean=MEAN, std=STD, classes=5)
INSIDE = InputSpec(shape=(3, 16, 16), mean=(0.0,) * 3, std=(1.0,) * 3, classes=5)


class Inside(nn.Module):
    """`body` behind a normalisation of its own."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - self.get_buffer("mean")) / self.get_buffer("std"))


def body() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    layers += [nn.Conv2d(8, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    whole = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    generator = torch.Generator().manual_seed(1)
    return randomized(whole, torch.randn(8, 3, 16, 16, generator=generator))


def trained(method: str, network: nn.Module, spec: InputSpec) -> fx.GraphModule:
    """The student after a few steps."""
    options = {"iterations": 3, "warmup": 2, "batch_size": 8, "latent": 10, "holdout": 16}
    cls = load("datafree.training", method, Trainer)
    trainer = build(cls, {k: v for k, v in options.items() if k in cls.model_fields}, method)
    graph = capture(network, spec)
    scheme = Scheme(bits="W4A4", target="paper", placement="every_input")
    task = Task(graph, fold_batch_norms(graph), spec, scheme, MinMax())
    return train(trainer, task).last


@pytest.mark.parametrize("method", ["gdfq", "dsg_qat", "dfqf"])
def test_inside_and_outside_learn_the_same(method: str) -> None:
    one = trained(method, body(), OUTSIDE)
    two = trained(method, Inside(body()), INSIDE)
    generator = torch.Generator().manual_seed(2)
    pixels = torch.rand(16, 3, 16, 16, generator=generator)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        outside, inside = one((pixels - mean) / std), two(pixels)
    assert float((outside - inside).abs().max()) < 0.05 * float(outside.std())
    first, second = dict(one.named_parameters()), dict(two.named_parameters())
    assert len(first) == len(second) > 4
    for name, value in first.items():
        torch.testing.assert_close(second[f"body.{name}"], value, rtol=1e-2, atol=1e-4)
