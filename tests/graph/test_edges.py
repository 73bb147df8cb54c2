"""Which tensors carry quantizers, for a runtime."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.config import InputSpec
from datafree.graph.capture import capture
from datafree.graph.edges import integer_edges
from datafree.graph.fold import fold_batch_norms
from datafree.targets import load_target

SPEC = InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, classes=5)


def edges(network: nn.Module, target: str = "onnxruntime") -> dict[str, tuple[list[str], bool]]:
    """By node: who reads it quantized, and whether it has 8 bits in any case."""
    graph = fold_batch_norms(capture(network.eval(), SPEC))
    found = integer_edges(graph, load_target(target))
    return {e.node.name: (sorted(r.name for r in e.readers), e.wide) for e in found}


class Residual(nn.Module):
    """A block with a shortcut, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.second, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.stem(x))
        x = self.relu3(x + self.second(self.relu2(self.first(x))))
        return self.head(x.mean((2, 3)))


def test_a_residual_block() -> None:
    found = edges(Residual())
    assert found == {
        "x": (["stem"], False),
        "relu1": (["add", "first"], False),
        "relu2": (["second"], False),
        # Only the addition reads it, so that it has 8 bits whatever layers have.
        "second": (["add"], True),
        "relu3": (["mean"], True),
        "mean": (["head"], False),
    }


def test_an_addition_that_is_absorbed_needs_none_before_it() -> None:
    found = edges(Residual(), "openvino")
    assert "second" not in found and found["relu1"] == (["add", "first"], False)


class Gated(nn.Module):
    """Squeeze and excitation, SiLU, concatenation, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.gate, self.hard, self.head = nn.Sigmoid(), nn.Hardswish(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * self.gate(self.squeeze(x.mean((2, 3), keepdim=True)))
        x = torch.cat([self.hard(self.left(x)), self.right(x)], 1)
        return self.head(F.max_pool2d(x, 2).mean((2, 3)))


def test_gates_and_concatenations() -> None:
    found = edges(Gated())
    assert found == {
        "x": (["stem"], False),
        "stem": (["mean", "mul"], True),
        "mean": (["squeeze"], False),
        "squeeze": (["gate"], True),
        "gate": (["mul"], True),
        "mul": (["left", "right"], False),
        "left": (["hard"], True),  # a float function reads it, but the convolution needs it
        "hard": (["cat"], True),
        "right": (["cat"], True),
        "cat": (["max_pool2d"], True),  # maxima are taken of codes
        "mean_1": (["head"], False),
    }


class Transformer(nn.Module):
    """Linear layers around a float residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, 4, 4, stride=4), nn.LayerNorm(4)
        self.up, self.gelu, self.down = nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)
        self.head, self.place = nn.Linear(4, 5), nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.place
        x = x + self.down(self.gelu(self.up(self.norm(x))))
        return self.head(self.norm(x)[:, 0])


def test_float_streams_stay_float() -> None:
    found = edges(Transformer())
    quantized = {name: readers for name, (readers, _) in found.items()}
    assert quantized["layer_norm"] == ["up"] and quantized["gelu"] == ["down"]
    # Linear layers have kernels with float output: nothing behind them is rounded.
    assert not {"up", "down", "head"} & quantized.keys()
