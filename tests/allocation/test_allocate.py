"""The chosen bits against brute force over all of them, and what is written about them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import fx

from datafree.allocation.allocate import Allocation, allocate
from datafree.config import BudgetOptions, Scheme
from datafree.errors import ConfigError
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers, weight_bits
from datafree.testing.watching import fingerprint
from networks import captured, images

BITS = (2, 3, 4, 8)


def folded(name: str) -> fx.GraphModule:
    return fold_batch_norms(captured(name))


def allocated(name: str = "Grouped", scheme: Scheme | None = None, **wanted: Any) -> Allocation:
    wanted = {"candidate_bits": BITS} | wanted
    return allocate(folded(name), scheme or Scheme(), images(16), BudgetOptions(**wanted))


def brute_force(found: Allocation, policy_ends: bool) -> float:
    """Least sum of sensitivities over all bits whose total cost is within the budget."""
    layers, unit, best = found.layers, found.budget.unit, float("inf")
    for widths in itertools.product(BITS, repeat=len(layers)):
        if policy_ends:
            widths = (8, *widths[1:-1], 8)
        pairs = list(zip(layers, widths, strict=True))
        cost = sum(
            width * (la.elements if unit == "bits" else la.macs * la.activation_bits)
            for la, width in pairs
        )
        inside = pairs[1:-1] if policy_ends else pairs
        loss = sum(found.sensitivities[layer.path][width] for layer, width in inside)
        if cost <= found.budget.limit:
            best = min(best, loss)
    return best


@pytest.mark.parametrize("policy", ["all", "first_last_8"])
@pytest.mark.parametrize(
    "wanted", [{"average_bits": 3.2}, {"budget": "0.42kB"}, {"budget": "450kBOPs"}]
)
def test_no_other_bits_lose_less_within_the_budget(wanted: dict[str, Any], policy: Any) -> None:
    found = allocated(scheme=Scheme(policy=policy), **wanted)
    assert found.total.cost <= found.budget.limit
    assert found.total.sensitivity == pytest.approx(brute_force(found, policy != "all"), rel=1e-12)
    ends = [found.layer_bits["stem"], found.layer_bits["linear"]]
    assert policy == "all" or ends == [8, 8]


@pytest.mark.parametrize("policy", ["all", "brecq"])
@pytest.mark.parametrize("bits", [3, 4])
def test_an_average_is_no_larger_and_no_worse_than_uniform(bits: int, policy: Any) -> None:
    """The comparison of the papers: equal size, the policy's layers counted alike in both."""
    found = allocated(scheme=Scheme(policy=policy), average_bits=bits)
    uniform = weight_bits(folded("Grouped"), Scheme(bits=f"W{bits}A8", policy=policy))
    elements = {layer.path: layer.elements for layer in found.layers}
    assert found.uniform[bits].cost == sum(elements[p] * b for p, b in uniform.items())
    assert found.total.cost <= found.uniform[bits].cost
    assert found.total.sensitivity <= found.uniform[bits].sensitivity


def test_the_bits_fit_a_scheme() -> None:
    scheme = Scheme(policy="first_last_8", bits="W8A4")
    found = allocated(scheme=scheme, average_bits=3)
    student = insert_quantizers(
        folded("Grouped"), scheme.model_copy(update={"layer_bits": found.layer_bits})
    )
    bits = {
        path: layer.weight_quantizer.grid.bits  # pyright: ignore
        for path, layer in student.named_modules()
        if hasattr(layer, "weight_quantizer")
    }
    assert bits == found.layer_bits


def test_same_images_same_bits_and_the_network_is_left_alone() -> None:
    graph, wanted = folded("Tiny"), BudgetOptions(average_bits=4)
    before = fingerprint(graph)
    first, second = (allocate(graph, Scheme(), images(8), wanted) for _ in range(2))
    assert first.summary() == second.summary()
    assert fingerprint(graph) == before


def test_a_large_budget_gives_the_least_loss() -> None:
    found = allocated("Tiny", budget="1MB", candidate_bits=(2, 8))
    assert found.layer_bits == {"conv1": 8, "conv2": 8, "linear": 8}


def test_a_budget_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"10B cannot be kept to: the least is 88\.5 B"):
        allocated("Tiny", budget="10B")


def test_the_summary_by_hand() -> None:
    """Tiny has weights of 108, 216 and 30 numbers."""
    found = allocated("Tiny", budget="150B")
    summary = found.summary()
    bits = list(found.layer_bits.values())
    size = 108 * bits[0] + 216 * bits[1] + 30 * bits[2]
    assert size <= 1200
    assert summary["cost"] == size
    assert summary["average_bits"] == size / 354
    assert summary["weight_bytes"] == -(-size // 8)
    assert summary["elements"] == {"conv1": 108, "conv2": 216, "linear": 30}
    assert summary["uniform"]["4"]["cost"] == 4 * 354
    assert (summary["budget"], summary["unit"]) == ("150B", "bits")
    assert json.loads(json.dumps(summary)) == summary


def test_the_file_holds_the_frontier(tmp_path: Path) -> None:
    found = allocated("Tiny", average_bits=4)
    found.save(tmp_path / "allocation.json")
    written = json.loads((tmp_path / "allocation.json").read_text())
    assert written["chosen"] == found.summary()
    assert written["points"] == len(written["frontier"]) == len(found.frontier) > 5
    assert written["exact"] is True
    sizes = {"conv1": 108, "conv2": 216, "linear": 30}
    for cost, sensitivity, digits in written["frontier"]:
        bits = [int(digit) for digit in digits]
        assert cost == sum(size * b for size, b in zip(sizes.values(), bits, strict=True))
        losses = [found.sensitivities[path][b] for path, b in zip(sizes, bits, strict=True)]
        assert sensitivity == pytest.approx(sum(losses), rel=1e-12)
    assert [layer["path"] for layer in written["layers"]] == list(sizes)


def test_of_a_long_frontier_both_ends_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datafree.allocation.allocate._POINTS_WRITTEN", 4)
    found = allocated("Tiny", average_bits=4)
    found.save(tmp_path / "a.json")
    written = json.loads((tmp_path / "a.json").read_text())
    costs = [point[0] for point in written["frontier"]]
    assert len(costs) <= 5 < written["points"]
    assert (costs[0], costs[-1]) == (found.frontier.costs[0], found.frontier.costs[-1])
    assert costs == sorted(set(costs))


def test_a_single_point_can_be_written_and_drawn(tmp_path: Path) -> None:
    found = allocated("Tiny", average_bits=4, candidate_bits=(4,))
    found.save(tmp_path / "a.json")
    assert len(json.loads((tmp_path / "a.json").read_text())["frontier"]) == 1
    found.save_picture(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (900, 560)
