"""What every rule of activation ranges has to keep, with images and without."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from datafree.calibrators.base import Calibrator, ImagelessRule, RangeRule, calibrate
from datafree.config import Frozen, Scheme
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.graph.statistics import layer_statistics
from datafree.quant.grid import Grid
from datafree.quant.modules import ActivationQuantizer
from datafree.testing.contract import Contract
from datafree.testing.networks import SPEC, Tiny, images, ready
from datafree.testing.watching import fingerprint


def _ready() -> fx.GraphModule:
    torch.manual_seed(0)
    return ready(Tiny())


def _student(graph: fx.GraphModule) -> fx.GraphModule:
    return insert_quantizers(fold_batch_norms(graph), Scheme(bits="W4A4"))


def _quantizers(student: fx.GraphModule) -> dict[str, ActivationQuantizer]:
    return {n: m for n, m in student.named_modules() if isinstance(m, ActivationQuantizer)}


def _ranges(student: fx.GraphModule) -> dict[str, tuple[float, float]]:
    found = _quantizers(student).items()
    return {name: (q.scale.item(), q.zero_point.item()) for name, q in found}


class CalibratorContract(Contract):
    """A calibrator watches values and names a range; it keeps no state of its own."""

    package = "datafree.calibrators"
    base: type[Frozen] = RangeRule
    method: Calibrator
    """The calibrator under test."""

    def chosen(self) -> Calibrator:
        """The calibrator under test."""
        return self.method

    @pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 2.0), (-5.0, -1.0), (2.0, 4.0)])
    def test_the_range_holds_most_of_the_values(self, low: float, high: float) -> None:
        """Of uniform values at 8 bits: all but a twentieth of their extent at either end."""
        if not self.method.tight:
            pytest.skip("steps only begin at its ranges")
        state = self.method.update(None, _uniform(low, high))
        state = self.method.update(state, _uniform(low, high, 1))
        found = self.method.range(state, Grid(8))
        assert [end.ndim for end in found] == [0, 0], "two scalars"
        bottom, top = (end.item() for end in found)
        length = max(high, 0.0) - min(low, 0.0)
        assert min(low, 0.0) - 1e-4 <= bottom <= low + 0.05 * length
        assert high - 0.05 * length <= top <= max(high, 0.0) + 1e-4

    def test_values_that_are_all_zero(self) -> None:
        """A dead channel gives a finite scale."""
        zeros = torch.zeros(2, 3)
        state = self.method.update(self.method.update(None, zeros), zeros)
        scale, zero_point = Grid(4).parameters(*self.method.range(state, Grid(4)))
        assert bool(torch.isfinite(scale))
        assert bool(torch.isfinite(zero_point))

    def test_more_data_than_torch_quantile_takes(self) -> None:
        """Sixteen million values and more in one batch."""
        values = torch.rand(2, 2**23 + 10)
        low, high = self.method.range(self.method.update(None, values), Grid(8))
        if not self.method.tight:
            pytest.skip("steps only begin at its ranges")
        assert low < 0.05
        assert 0.95 < high < 1.01

    def test_state_is_passed_not_kept(self) -> None:
        """`update` returns the next state and changes neither the last one nor the values."""
        values = _uniform(-1, 1)
        first = self.method.update(None, values)
        before, kept = copy.deepcopy(_plain(first)), values.clone()
        second = self.method.update(first, _uniform(-2, 5, 1))
        self.method.range(first, Grid(4))
        assert _plain(first) == before
        assert torch.equal(values, kept)
        assert _plain(second) != before
        assert _plain(self.method.update(None, values)) == before

    def test_same_images_same_ranges(self) -> None:
        """And other images other ranges."""
        student = _student(_ready())
        calibrate(student, images(8).split(4), self.method)
        first = _ranges(student)
        calibrate(student, images(8).split(4), self.method)
        assert _ranges(student) == first
        calibrate(student, (images(8, 1) * 2).split(4), self.method)
        assert _ranges(student) != first

    def test_ranges_are_set_and_nothing_else(self) -> None:
        """Every quantizer has one; weights and hooks are as they were."""
        student, steps = _student(_ready()), list[int]()
        names = _quantizers(student)

        def rest() -> dict[str, Any]:
            return {k: v for k, v in fingerprint(student).items() if k.split(".")[0] not in names}

        before = rest()
        calibrate(student, images(6).split(2), self.method, step=steps.append)
        assert rest() == before
        assert steps == [1, 1, 1]
        assert all(q.has_range and q.enabled for q in names.values())


class ImagelessContract(Contract):
    """A rule that needs no images sets the ranges of a student by the network alone."""

    package = "datafree.calibrators"
    base: type[Frozen] = RangeRule
    method: ImagelessRule
    """The rule under test."""

    def chosen(self) -> ImagelessRule:
        """The rule under test."""
        return self.method

    def test_every_range_is_set_and_the_network_left_alone(self) -> None:
        """Finite ranges; the same ones for the same network."""
        graph, found = _ready(), list[dict[str, tuple[float, float]]]()
        folded, statistics = fold_batch_norms(graph), layer_statistics(graph)
        before = fingerprint(folded)
        for _ in range(2):
            student = insert_quantizers(folded, Scheme(bits="W4A4"))
            self.method.set_ranges(student, folded, statistics, SPEC)
            assert all(q.has_range for q in _quantizers(student).values())
            assert bool(torch.isfinite(student(images(4))).all())
            found.append(_ranges(student))
        assert found[0] == found[1]
        assert fingerprint(folded) == before


def _uniform(low: float, high: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(16, 4, 20, 20, generator=generator)


def _plain(state: Any) -> Any:
    """`state` as nested lists, for comparison."""
    if isinstance(state, Tensor):
        return state.tolist()
    if dataclasses.is_dataclass(state):
        return [_plain(getattr(state, field.name)) for field in dataclasses.fields(state)]
    return [_plain(part) for part in state] if isinstance(state, tuple | list) else state
