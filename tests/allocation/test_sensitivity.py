"""Sensitivities against a forward of the whole network for every layer and width."""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from datafree.allocation.sensitivity import sensitivities
from datafree.config import Scheme
from datafree.errors import ConfigError, ModelError
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers, quantizable_layers
from datafree.progress import Step
from datafree.testing.watching import fingerprint
from networks import NETWORKS, captured, images


def folded(name: str) -> fx.GraphModule:
    return fold_batch_norms(captured(name))


def rounded(weight: Tensor, bits: int) -> Tensor:
    """Affine min-max rounding of every output channel by itself, written out."""
    rows = weight.flatten(1)
    low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    step = ((high - low) / (2**bits - 1)).clamp(min=1e-8)
    zero = torch.round(-low / step)
    codes = (torch.round(rows / step[:, None]) + zero[:, None]).clamp(0, 2**bits - 1)
    return ((codes - zero[:, None]) * step[:, None]).view_as(weight)


def divergence(exact: fx.GraphModule, changed: fx.GraphModule, x: Tensor) -> float:
    """``1/n sum_j sum_c p_c (log p_c - log q_c)``."""
    with torch.no_grad():
        p, q = exact(x).double().softmax(1), changed(x).double().softmax(1)
    return float((p * (p.log() - q.log())).sum(1).mean())


@pytest.mark.parametrize("name", list(NETWORKS))
def test_equals_a_forward_of_the_changed_network(name: str) -> None:
    exact, x = folded(name), images(70, 1)
    before = fingerprint(exact)
    found = sensitivities(exact, Scheme(), x, (2, 5))
    assert fingerprint(exact) == before
    assert list(found) == quantizable_layers(exact)
    for path, losses in found.items():
        assert list(losses) == [2, 5]
        for bits, loss in losses.items():
            changed = copy.deepcopy(exact)
            layer: Any = changed.get_submodule(path)
            layer.weight = torch.nn.Parameter(rounded(layer.weight, bits), requires_grad=False)
            assert loss == pytest.approx(divergence(exact, changed, x), rel=1e-3, abs=1e-7)
        assert losses[2] > losses[5] >= 0


@pytest.mark.parametrize(
    "options",
    [
        {"symmetric_weights": True},
        {"weight_granularity": "tensor"},
        {"weight_range": "mse"},
        {"policy": "first_last_8", "bits": "W2A2"},
    ],
)
def test_weights_are_on_the_grids_of_the_scheme(options: dict[str, Any]) -> None:
    """The same as a student whose other layers' quantizers are off."""
    exact, x = folded("Tiny"), images(9, 2)
    scheme = Scheme(**options)
    found = sensitivities(exact, scheme, x, [3])
    grids = scheme.model_copy(update={"bits": "W3A32", "policy": "all"})
    for path, losses in found.items():
        student = insert_quantizers(exact, grids)
        for other in quantizable_layers(exact):
            layer: Any = student.get_submodule(other)
            layer.weight_quantizer.enabled = other == path
        assert losses[3] == pytest.approx(divergence(exact, student, x), rel=1e-3, abs=1e-9)


def test_values_on_disk_give_the_same() -> None:
    exact, x = folded("InPlaceResidual"), images(5)
    in_memory = sensitivities(exact, Scheme(), x, [3])
    assert sensitivities(exact, Scheme(), x, [3], memory_gb=1e-9) == in_memory


def test_progress_counts_layers_times_widths() -> None:
    seen: list[int] = []
    totals: list[int] = []

    @contextmanager
    def progress(description: str, total: int) -> Generator[Step]:
        assert description == "sensitivity"
        totals.append(total)
        yield seen.append

    sensitivities(folded("Tied"), Scheme(), images(2), (2, 3, 4), progress=progress)
    assert totals == [12]
    assert seen == [1] * 12


def test_what_is_refused() -> None:
    exact, x = folded("Tiny"), images(3)
    with pytest.raises(ConfigError, match="needs images"):
        sensitivities(exact, Scheme(), x[:0], [4])
    with pytest.raises(ConfigError, match="no numbers of bits"):
        sensitivities(exact, Scheme(), x, [])
    with pytest.raises(ModelError, match="outputs of the float network are not finite"):
        sensitivities(exact, Scheme(), x * float("inf"), [4])
    with torch.no_grad():
        exact.get_parameter("conv2.weight")[0, 0] = float("nan")
    with pytest.raises(ModelError, match="weights of conv2 hold NaN"):
        sensitivities(exact, Scheme(), x, [4])


def test_a_layer_that_overflows_at_few_bits_is_named() -> None:
    """Weights of 3e38 and -3e38 are finite; the width of their range is not."""
    exact = folded("NoNorm")
    with torch.no_grad():
        weight = exact.get_parameter("linear.weight")
        weight.zero_()
        weight[0, :2] = torch.tensor([3e38, -3e38])
        exact.get_parameter("conv.weight").zero_()
        exact.get_parameter("conv.bias").fill_(0.5)
    with pytest.raises(ModelError, match="linear at 2 bits are not finite"):
        sensitivities(exact, Scheme(), images(2), [2])
