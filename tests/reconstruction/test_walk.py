from __future__ import annotations

import itertools
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, softmax
from torch.nn.modules.module import register_module_forward_hook

from datafree.calibrators.base import calibrate
from datafree.calibrators.minmax import MinMax
from datafree.config import Scheme
from datafree.graph import activations
from datafree.graph.activations import Rows, stored
from datafree.graph.blocks import find_blocks, layer_blocks
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.quant.modules import QUANTIZED
from datafree.reconstruction._schedule import Stage
from datafree.reconstruction._walk import importance, walk
from datafree.reconstruction.adaround import AdaRound
from networks import SPEC, images

pytestmark = pytest.mark.integration


def rows(values: Tensor) -> Rows:
    return stored(values, torch.device("cpu"), 2**30)


def test_importance_is_the_squared_gradient_of_the_divergence() -> None:
    """One sample at a time, by the chain rule written out for a linear rest of the network."""
    torch.manual_seed(0)
    rest, part = nn.Linear(6, 4), nn.Linear(5, 6)
    inputs, targets = torch.randn(9, 5), torch.randn(9, 6)
    found = importance(rest, part, rows(inputs), rows(targets), 2**30)[slice(None)]
    with torch.no_grad():
        student, teacher = softmax(rest(part(inputs)), 1), softmax(rest(targets), 1)
        expected = ((student - teacher) @ rest.weight).square()
        expected /= expected.mean()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert kl_div(log_softmax(rest(part(inputs)), 1), teacher, reduction="sum") > 0


class Chain(nn.Module):
    """Residual blocks of one size, as many as wanted."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        channels, classes = SPEC.shape[0], SPEC.classes
        self.first = nn.ModuleList(nn.Conv2d(channels, channels, 3, 1, 1) for _ in range(depth))
        self.second = nn.ModuleList(nn.Conv2d(channels, channels, 3, 1, 1) for _ in range(depth))
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.first, self.second, strict=True):
            x = (x + second(first(x).relu())).relu()
        return self.head(x.mean((2, 3)))


def walked(depth: int, *, by_layer: bool) -> int:
    """Walk through a chain; how many tasks there were."""
    folded = fold_batch_norms(capture(Chain(depth).eval(), SPEC))
    student = insert_quantizers(folded, Scheme(bits="W4A8"))
    calibrate(student, [images(4)], MinMax())
    blocks = [(b, layer_blocks(folded, b) if by_layer else [b]) for b in find_blocks(folded)]
    return sum(1 for _ in walk(folded, student, images(6), blocks, (Stage(1),), 0, 2**30))


@pytest.mark.parametrize("by_layer", [False, True])
def test_memory_is_that_of_one_block_not_of_the_network(
    by_layer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: dict[int, int] = {}
    peaks: list[int] = []
    allocate = activations._allocate

    def watched(values: int, limit: int) -> Tensor:
        made = allocate(values, limit)
        held[id(made)] = values
        weakref.finalize(made, held.pop, id(made))
        peaks[-1] = max(peaks[-1], sum(held.values()))
        return made

    monkeypatch.setattr(activations, "_allocate", watched)
    for depth in (3, 9):
        peaks.append(0)
        assert walked(depth, by_layer=by_layer) == depth * (1 + by_layer) + 1
    assert peaks[0] == peaks[1] >= 3 * images(6).numel()


@pytest.mark.parametrize("by_layer", [False, True])
def test_time_is_linear_in_depth(by_layer: bool) -> None:
    computed = 0

    def count(module: nn.Module, *_: object) -> None:
        nonlocal computed
        computed += isinstance(module, (nn.Conv2d, *QUANTIZED))

    totals: list[int] = []
    for depth in (2, 4, 6, 8):
        hook = register_module_forward_hook(count)
        computed = 0
        walked(depth, by_layer=by_layer)
        hook.remove()
        totals.append(computed)
    assert len({b - a for a, b in itertools.pairwise(totals)}) == 1


class Windows(nn.Module):
    """Two layers in a row that look at windows, four of each image, beside a way around them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 3)
        self.head = nn.Linear(3, SPEC.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        windows = self.second(self.first(x.reshape(-1, 16, 3)).relu())
        return self.head((x + windows.view(x.size(0), 8, 8, 3)).mean((1, 2)))


def test_layers_that_look_at_windows_are_learned_by_themselves() -> None:
    folded = capture(Windows().eval(), SPEC)
    student = insert_quantizers(folded, Scheme(bits="W3A8"))
    calibrate(student, [images(4)], MinMax())
    outcomes = AdaRound(iterations=4, batch_size=3).reconstruct(folded, student, images(70))
    assert [outcome.block for outcome in outcomes] == ["first", "second", "head"]
