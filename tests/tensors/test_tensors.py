"""Copies that share memory, and memory that is given back."""

from __future__ import annotations

import copy
import gc
import platform
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn

from datafree.tensors import (
    extremes,
    fast_copy,
    fast_layout,
    inner_product,
    release_memory,
    shared_copy,
)
from networks import captured


class Circle:
    """Refers to itself, as graphs do."""

    def __init__(self) -> None:
        self.own = self


def test_a_shared_copy_takes_no_memory_for_tensors() -> None:
    graph = captured("Tiny")
    copied = shared_copy(graph)
    pairs = zip(graph.state_dict().items(), copied.state_dict().items(), strict=True)
    for (name, tensor), (other, alike) in pairs:
        assert name == other
        assert tensor.data_ptr() == alike.data_ptr()
        assert tensor.stride() == alike.stride()
    assert all(a is not b for a, b in zip(graph.modules(), copied.modules(), strict=True))
    parameters = list(zip(graph.parameters(), copied.parameters(), strict=True))
    assert all(a is not b and a.requires_grad == b.requires_grad for a, b in parameters)


def test_what_becomes_of_a_shared_copy_leaves_the_original_alone() -> None:
    graph = captured("Tiny")
    before = {name: (t.clone(), t.stride()) for name, t in graph.state_dict().items()}
    copied = fast_layout(shared_copy(graph)).double().requires_grad_()
    for module in copied.modules():
        if isinstance(module, nn.Conv2d):
            module.weight = nn.Parameter(torch.zeros_like(module.weight))
    for name, tensor in graph.state_dict().items():
        assert torch.equal(tensor, before[name][0])
        assert tensor.stride() == before[name][1]
    assert not any(parameter.requires_grad for parameter in graph.parameters())


def test_tied_tensors_stay_tied() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].weight = network[0].weight
    copied = shared_copy(network)
    assert copied[1].weight is copied[0].weight


@pytest.mark.parametrize("width", [8, 2048])
def test_circles_are_collected_where_networks_are_large(width: int) -> None:
    network = nn.Linear(width, width)
    gc.collect()
    gc.disable()
    try:
        circle = Circle()
        gone = weakref.ref(circle)
        del circle
        release_memory(network)
        assert (gone() is None) == (width > 8)
    finally:
        gc.enable()


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4, 4)])
def test_extremes_are_those_of_all_values(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    if values.ndim == 4:
        values = values.contiguous(memory_format=torch.channels_last)
    low, high = extremes(values)
    assert (low, high) == (values.min(), values.max())


def test_extremes_tell_what_is_not_finite() -> None:
    values = torch.zeros(3, 4)
    values[2, 1] = torch.nan
    assert all(bool(end.isnan()) for end in extremes(values))
    values[2, 1] = -torch.inf
    assert [float(end) for end in extremes(values)] == [-torch.inf, 0]


def test_a_fast_copy_is_a_copy_in_the_fast_layout() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.Conv1d(3, 3, 3),
        nn.Linear(3, 3),
    )  # fmt: skip
    network[4].weight.requires_grad_(False)
    network.append(network[0])  # a layer that is there twice
    made = fast_copy(network)
    laid = fast_layout(copy.deepcopy(network))
    assert made[5] is made[0] and made[0] is not network[0]
    kept = (one.state_dict(keep_vars=True) for one in (made, laid, network))
    for found, expected, before in zip(*(state.values() for state in kept), strict=True):
        assert torch.equal(found, before) and found.stride() == expected.stride()
        assert (type(found), found.requires_grad) == (type(before), before.requires_grad)
        assert found.data_ptr() != before.data_ptr()


FAULTS = """
import resource, torch
from datafree.tensors import kept_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        held = [torch.ones(2**21) for _ in range(20)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
with kept_memory():
    faults()
    print(before, faults())
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_memory_that_is_kept_is_not_handed_out_again() -> None:
    """Pages that the system has to hand out for tensors of 8 MB, in a process without holes."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, check=True)
    before, kept, after = map(int, done.stdout.split())
    assert kept < before / 4
    assert after > before / 10


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("other_layout", [torch.contiguous_format, torch.channels_last])
def test_an_inner_product_pairs_values_by_place_whatever_the_layout(
    layout: torch.memory_format, other_layout: torch.memory_format
) -> None:
    random = torch.Generator().manual_seed(0)
    one, other = (torch.randn(2, 3, 4, 5, generator=random) for _ in range(2))
    found = inner_product(
        one.contiguous(memory_format=layout), other.contiguous(memory_format=other_layout)
    )
    expected = sum(
        a * b for a, b in zip(one.flatten().tolist(), other.flatten().tolist(), strict=True)
    )
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_an_inner_product_of_parts_sees_no_more_than_these() -> None:
    whole = torch.arange(24.0).view(4, 6)
    part = whole[:, ::2]
    assert inner_product(part, part).item() == float((part * part).sum())
    row = whole[1]
    assert inner_product(row, row).item() == sum(n * n for n in range(6, 12))
    spread = torch.ones(1).expand(5)
    assert inner_product(spread, spread).item() == 5
