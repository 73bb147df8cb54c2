"""What every calibrator must do, found by its file."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree.calibrators.base import Calibrator, ImagelessRule, RangeRule, calibrate
from datafree.calibrators.minmax import MinMax
from datafree.config import Scheme, build
from datafree.errors import ConfigError, ModelError
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.quant.grid import Grid
from datafree.quant.modules import ActivationQuantizer, Quantizer
from datafree.registry import available, load
from networks import SPEC, captured, fingerprint, images

PACKAGE = "datafree.calibrators"


WITHOUT_IMAGES = {"bn_statistics"}


def test_every_file_is_a_rule_of_one_of_two_kinds() -> None:
    imageless = {
        n for n in available(PACKAGE) if issubclass(load(PACKAGE, n, RangeRule), ImagelessRule)
    }
    assert imageless == WITHOUT_IMAGES
    assert all(load(PACKAGE, name, RangeRule)().name == name for name in available(PACKAGE))


@pytest.fixture(params=sorted(set(available(PACKAGE)) - WITHOUT_IMAGES))
def calibrator(request: pytest.FixtureRequest) -> Calibrator:
    return load(PACKAGE, request.param, Calibrator)()


@pytest.fixture
def student() -> nn.Module:
    return insert_quantizers(fold_batch_norms(captured("Tiny")), Scheme(bits="W4A4"))


def quantizers(student: nn.Module) -> dict[str, ActivationQuantizer]:
    return {n: m for n, m in student.named_modules() if isinstance(m, ActivationQuantizer)}


def ranges(student: nn.Module) -> dict[str, tuple[float, float]]:
    return {n: (q.scale.item(), q.zero_point.item()) for n, q in quantizers(student).items()}


def plain(state: Any) -> Any:
    """`state` as nested lists, for comparison."""
    if isinstance(state, Tensor):
        return state.tolist()
    if dataclasses.is_dataclass(state):
        return [plain(getattr(state, field.name)) for field in dataclasses.fields(state)]
    return [plain(part) for part in state] if isinstance(state, tuple | list) else state


def uniform(low: float, high: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(16, 4, 20, 20, generator=generator)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 2.0), (-5.0, -1.0), (2.0, 4.0)])
def test_the_range_holds_most_of_the_values(
    calibrator: Calibrator, low: float, high: float
) -> None:
    state = calibrator.update(None, uniform(low, high))
    state = calibrator.update(state, uniform(low, high, 1))
    found = calibrator.range(state, Grid(8))
    assert [end.ndim for end in found] == [0, 0]
    bottom, top = (end.item() for end in found)
    length = max(high, 0.0) - min(low, 0.0)
    assert min(low, 0.0) - 1e-4 <= bottom <= low + 0.05 * length
    assert high - 0.05 * length <= top <= max(high, 0.0) + 1e-4


def test_values_that_are_all_zero(calibrator: Calibrator) -> None:
    state = calibrator.update(calibrator.update(None, torch.zeros(2, 3)), torch.zeros(2, 3))
    scale, zero_point = Grid(4).parameters(*calibrator.range(state, Grid(4)))
    assert torch.isfinite(scale)
    assert torch.isfinite(zero_point)


def test_state_is_passed_not_kept(calibrator: Calibrator) -> None:
    values = uniform(-1, 1)
    first = calibrator.update(None, values)
    before, kept = copy.deepcopy(plain(first)), values.clone()
    second = calibrator.update(first, uniform(-2, 5, 1))
    calibrator.range(first, Grid(4))
    assert plain(first) == before
    assert torch.equal(values, kept)
    assert plain(second) != before
    assert plain(calibrator.update(None, values)) == before


def test_more_data_than_torch_quantile_takes(calibrator: Calibrator) -> None:
    values = torch.rand(2, 2**23 + 10)
    low, high = calibrator.range(calibrator.update(None, values), Grid(8))
    assert low < 0.05
    assert 0.95 < high < 1.01


def test_same_images_same_ranges(calibrator: Calibrator, student: nn.Module) -> None:
    calibrate(student, images(8).split(4), calibrator)
    first = ranges(student)
    calibrate(student, images(8).split(4), calibrator)
    assert ranges(student) == first
    other = copy.deepcopy(student)
    calibrate(other, (images(8, 1) * 2).split(4), calibrator)
    assert ranges(other) != first


def test_ranges_are_set_and_nothing_else(calibrator: Calibrator, student: nn.Module) -> None:
    def rest() -> dict[str, Any]:
        return {k: v for k, v in fingerprint(student).items() if k.split(".")[0] not in names}

    names, steps = quantizers(student), list[int]()
    assert not any(q.has_range for q in names.values())
    before = rest()
    calibrate(student, images(6).split(2), calibrator, step=steps.append)
    assert rest() == before
    assert steps == [1, 1, 1]
    assert all(q.has_range and q.enabled for q in names.values())
    assert not any(q._forward_pre_hooks or q._forward_hooks for q in names.values())


def test_unknown_options_are_refused(calibrator: Calibrator) -> None:
    with pytest.raises(ConfigError, match="banana is not known"):
        build(type(calibrator), {"banana": 3}, calibrator.name)


@pytest.mark.parametrize("observe", ["quantized", "float"])
def test_an_exception_takes_the_hooks_away(student: nn.Module, observe: Any) -> None:
    def broken() -> Any:
        yield images(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(student, broken(), MinMax(), observe=observe)
    for quantizer in quantizers(student).values():
        assert not quantizer._forward_pre_hooks
    assert all(m.enabled for m in student.modules() if isinstance(m, Quantizer))


def test_no_images_are_refused(student: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"x_quantizer.*at least one batch"):
        calibrate(student, [], MinMax())


def test_quantizers_switched_off_stay_off(student: nn.Module) -> None:
    quantizers(student)["x_quantizer"].enabled = False
    calibrate(student, [images(2)], MinMax())
    assert [q.enabled for q in quantizers(student).values()] == [False, True, True]


SEEN: list[Tensor] = []


class Recorder(Calibrator):
    """Min-max that keeps what it was shown."""

    def update(self, state: Any, values: Tensor) -> Any:
        SEEN.append(values.clone())
        return MinMax().update(state, values)

    def range(self, state: Any, grid: Grid) -> tuple[Tensor, Tensor]:
        return MinMax().range(state, grid)


def affine(values: Tensor, bits: int) -> Tensor:
    """Min-max affine quantization of a whole tensor, from B.1."""
    low, high = min(values.min().item(), 0.0), max(values.max().item(), 0.0)
    scale = (high - low) / (2**bits - 1)
    zero = round(-low / scale)
    return (((values / scale).round() + zero).clamp(0, 2**bits - 1) - zero) * scale


@pytest.mark.parametrize("observe", ["quantized", "float"])
def test_what_the_second_quantizer_sees(student: nn.Module, observe: Any) -> None:
    SEEN.clear()
    x = images(4, 3, SPEC.shape)
    calibrate(student, [x], Recorder(), observe=observe)
    first, second, _ = SEEN
    assert torch.equal(first, x)
    entering = affine(x, 8) if observe == "quantized" else x
    with torch.no_grad():
        conv1 = student.get_submodule("conv1")
        rounded = torch.relu(conv1(entering))
        network = captured("Tiny")
        exact = network.get_submodule("bn1")(network.get_submodule("conv1")(x)).relu()
    expected, other = (rounded, exact) if observe == "quantized" else (exact, rounded)
    torch.testing.assert_close(second, expected, rtol=1e-5, atol=1e-5)
    assert (second - other).abs().max() > 1e-3
    scale = (second.max().item() - 0) / 15
    assert ranges(student)["relu1_quantizer"] == (pytest.approx(scale), 0)
