"""What every calibrator must do, found by its file."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree.calibrators.base import Calibrator, ImagelessRule, RangeRule, calibrate
from datafree.calibrators.minmax import MinMax
from datafree.config import Scheme
from datafree.errors import ModelError
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.quant.grid import Grid
from datafree.quant.modules import ActivationQuantizer, Quantizer
from datafree.registry import built_in, load
from datafree.testing import CalibratorContract, ImagelessContract
from networks import SPEC, captured, images

PACKAGE = "datafree.calibrators"


WITHOUT_IMAGES = {"bn_statistics"}


def test_every_file_is_a_rule_of_one_of_two_kinds() -> None:
    imageless = {
        n for n in built_in(PACKAGE) if issubclass(load(PACKAGE, n, RangeRule), ImagelessRule)
    }
    assert imageless == WITHOUT_IMAGES
    assert all(load(PACKAGE, name, RangeRule)().name == name for name in built_in(PACKAGE))


class TestEveryCalibrator(CalibratorContract):
    @pytest.fixture(autouse=True, params=sorted(set(built_in(PACKAGE)) - WITHOUT_IMAGES))
    def _chosen(self, request: pytest.FixtureRequest) -> None:
        self.method = load(PACKAGE, request.param, Calibrator)()


class TestEveryRuleWithoutImages(ImagelessContract):
    @pytest.fixture(autouse=True, params=sorted(WITHOUT_IMAGES))
    def _chosen(self, request: pytest.FixtureRequest) -> None:
        self.method = load(PACKAGE, request.param, ImagelessRule)()


@pytest.fixture
def student() -> nn.Module:
    return insert_quantizers(fold_batch_norms(captured("Tiny")), Scheme(bits="W4A4"))


def quantizers(student: nn.Module) -> dict[str, ActivationQuantizer]:
    return {n: m for n, m in student.named_modules() if isinstance(m, ActivationQuantizer)}


def ranges(student: nn.Module) -> dict[str, tuple[float, float]]:
    return {n: (q.scale.item(), q.zero_point.item()) for n, q in quantizers(student).items()}


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
