from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from datafree.graph.kernels import (
    Kernel,
    added,
    diagonal,
    of_convolution,
    pooling,
    sum_shape,
    to_layer,
)
from draws import normal

CONVOLVE: dict[int, Any] = {1: F.conv1d, 2: F.conv2d}
SIZES = range(9, 16)


def applied(kernel: Kernel, x: Tensor) -> Tensor:
    convolve = CONVOLVE[len(kernel.taps)]
    geometry = (kernel.stride, kernel.padding, kernel.dilation, kernel.groups)
    return convolve(x, kernel.weight, kernel.bias, *geometry)


@dataclass(frozen=True)
class Drawn:
    """Two kernels on six channels, and their geometry."""

    one: Kernel
    two: Kernel


@st.composite
def kernels(draw: st.DrawFn) -> Drawn:
    dimensions, stride = draw(st.sampled_from([1, 1, 2])), draw(st.integers(1, 2))
    made: list[Kernel] = []
    for seed in range(2):
        groups = draw(st.sampled_from([1, 2, 3, 6]))
        taps, padding, dilation = (
            tuple(draw(st.integers(low, high)) for _ in range(dimensions))
            for low, high in ((1, 4), (0, 2), (1, 2))
        )
        weight = normal(6, 6 // groups, *taps, seed=seed).double()
        bias = normal(6, seed=seed + 2).double()
        made.append(Kernel(weight, bias, groups, (stride,) * dimensions, padding, dilation))
    return Drawn(*made)


def offsets(kernel: Kernel, axis: int) -> set[int]:
    """Where its taps read, from the place of an output on."""
    return {kernel.dilation[axis] * k - kernel.padding[axis] for k in range(kernel.taps[axis])}


def same_sizes(drawn: Drawn, axis: int) -> bool:
    def size(kernel: Kernel, n: int) -> int:
        reach = n + 2 * kernel.padding[axis] - kernel.dilation[axis] * (kernel.taps[axis] - 1) - 1
        return reach // kernel.stride[axis]

    return all(size(drawn.one, n) == size(drawn.two, n) for n in SIZES)


def nested(drawn: Drawn, axis: int) -> bool:
    small, large = sorted((offsets(drawn.one, axis), offsets(drawn.two, axis)), key=len)
    return small <= large


def same_step(drawn: Drawn, axis: int) -> bool:
    one, two = drawn.one, drawn.two
    return min(one.taps[axis], two.taps[axis]) == 1 or one.dilation[axis] == two.dilation[axis]


@settings(max_examples=300, deadline=None)
@given(kernels())
def test_the_sum_is_one_kernel_wherever_one_reads_where_the_other_does(drawn: Drawn) -> None:
    axes = range(len(drawn.one.taps))
    possible = all(
        same_sizes(drawn, axis) and nested(drawn, axis) and same_step(drawn, axis) for axis in axes
    )
    found = added(drawn.one, drawn.two)
    assert (found is not None) == possible
    shape = sum_shape(drawn.one, drawn.two)
    assert shape == (None if found is None else tuple(found.weight.shape))
    if found is None:
        return
    for size in (9, 12):
        x = normal(2, 6, *[size] * len(axes), seed=7).double()
        expected = applied(drawn.one, x) + applied(drawn.two, x)
        torch.testing.assert_close(applied(found, x), expected, rtol=1e-12, atol=1e-12)
    assert found.groups == math.gcd(drawn.one.groups, drawn.two.groups)


def test_most_draws_are_not_refused() -> None:
    """The property above would hold of a function that refuses all."""
    three, one = (
        Kernel(normal(6, 6, k, k).double(), torch.zeros(6).double(), 1, (1, 1), (k // 2,) * 2,
               (1, 1)) for k in (3, 1)
    )  # fmt: skip
    assert added(three, one) is not None
    assert added(one, three) is not None


def test_a_diagonal_scales_channels() -> None:
    x, factor = normal(2, 5, 4, 4).double(), normal(5).double()
    expected = x * factor.view(1, 5, 1, 1)
    torch.testing.assert_close(applied(diagonal(factor, 2), x), expected)


@pytest.mark.parametrize(("taps", "stride", "padding"), [(3, 1, 1), (2, 2, 0), (3, 2, 1)])
def test_pooling_is_that_of_torch(taps: int, stride: int, padding: int) -> None:
    x = normal(2, 5, 8, 8).double()
    kernel = pooling((taps,) * 2, (stride,) * 2, (padding,) * 2, taps * taps)
    five = kernel.repeated(5, torch.device("cpu"))
    torch.testing.assert_close(applied(five, x), F.avg_pool2d(x, taps, stride, padding))


def test_scaling_scales_weight_and_bias_by_channel() -> None:
    kernel = of_convolution(nn.Conv2d(4, 6, 3, groups=2, padding=1))
    assert kernel is not None
    x, factor = normal(1, 4, 5, 5).double(), normal(6).double()
    expected = applied(kernel, x) * factor.view(1, 6, 1, 1)
    torch.testing.assert_close(applied(kernel.scaled(factor), x), expected)
    half = torch.tensor(0.5, dtype=torch.float64)
    torch.testing.assert_close(applied(kernel.scaled(half), x), applied(kernel, x) / 2)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Conv2d(4, 6, (3, 5), padding="same", dilation=2, bias=False),
        nn.Conv2d(4, 6, 2, padding="valid"),
        nn.Conv3d(4, 4, 3, padding=(0, 1, 1), groups=4),
    ],
    ids=str,
)
def test_a_layer_there_and_back_computes_the_same(layer: Any) -> None:
    kernel = of_convolution(layer.eval())
    assert kernel is not None
    made = to_layer(kernel, layer)
    assert type(made) is type(layer)
    assert not made.training
    assert not any(parameter.requires_grad for parameter in made.parameters())
    x = normal(2, 4, *[7] * len(kernel.taps))
    torch.testing.assert_close(made(x), layer(x), rtol=1e-5, atol=1e-6)


def test_padding_that_is_not_the_same_on_both_sides_is_no_kernel() -> None:
    assert of_convolution(nn.Conv2d(4, 6, 2, padding="same")) is None
    assert of_convolution(nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")) is None


def test_what_else_stood_at_a_path_stays() -> None:
    layer = nn.Conv2d(4, 4, 1)
    layer.add_module("inner", nn.Linear(2, 2))
    kernel = of_convolution(layer)
    assert kernel is not None
    assert to_layer(kernel, layer).get_submodule("inner") is layer.inner


def test_forms_without_numbers_take_no_memory() -> None:
    kernel = of_convolution(nn.Conv2d(64, 64, 3))
    assert kernel is not None
    ones = kernel.filled(torch.ones(64, dtype=torch.float64))
    assert ones.weight.shape == kernel.weight.shape
    assert ones.weight.untyped_storage().nbytes() <= 64 * 8
    assert bool((ones.weight == 1).all())
    assert not bool(kernel.nothing().weight.any())
