"""What every reconstruction must do, found by its file."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx

from datafree.calibrators.base import calibrate
from datafree.calibrators.mse import MSE
from datafree.config import ModelConfig, Scheme, build
from datafree.graph.blocks import find_blocks
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.models import load_teacher
from datafree.quant.learned import LearnedStep, SoftRounding
from datafree.quant.modules import QUANTIZED, ActivationQuantizer, Quantizer
from datafree.reconstruction.base import Reconstructor
from datafree.registry import built_in, load
from datafree.testing import ReconstructionContract
from datafree.testing.watching import fingerprint
from networks import SPEC, captured, images

pytestmark = pytest.mark.integration

PACKAGE = "datafree.reconstruction"
QUICK = {"iterations": 8, "activation_iterations": 4, "batch_size": 8, "lr_factor": 1.0}
SCHEME = Scheme(bits="W3A4", weight_range="mse")
ROUNDED = ("straight", "flexround")
"""Methods whose weights are always rounded: no choice is ever open."""


def make(name: str, **changes: Any) -> Reconstructor:
    cls = load(PACKAGE, name, Reconstructor)
    chosen = {k: v for k, v in {**QUICK, **changes}.items() if k in cls.model_fields}
    return build(cls, chosen, name)


@pytest.fixture(params=built_in(PACKAGE))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


class TestEveryReconstruction(ReconstructionContract):
    @pytest.fixture(autouse=True, params=built_in(PACKAGE))
    def _chosen(self, request: pytest.FixtureRequest) -> None:
        self.method = make(request.param)


def prepared(
    network: str, scheme: Scheme = SCHEME
) -> tuple[fx.GraphModule, fx.GraphModule, Tensor]:
    folded = fold_batch_norms(captured(network))
    student = insert_quantizers(folded, scheme)
    x = images(24, 5)
    calibrate(student, [x], MSE())
    return folded, student, x


def values(student: fx.GraphModule) -> dict[str, bytes]:
    return {n: v.contiguous().numpy().tobytes() for n, v in student.state_dict().items()}


def error(folded: fx.GraphModule, student: fx.GraphModule, x: Tensor) -> float:
    with torch.no_grad():
        return float((folded(x) - student(x)).square().mean())


def test_the_output_comes_closer_to_the_float_network(name: str) -> None:
    folded, student, x = prepared("Tiny", Scheme(bits="W2A32"))
    before = error(folded, student, x)
    penalty = {} if name in ROUNDED else {"rounding_weight": 1e-3}
    learned = make(name, iterations=300, rounding_lr=1e-2, **penalty)
    outcomes = learned.reconstruct(folded, student, x)
    assert error(folded, student, x) < 0.7 * before
    assert outcomes[-1].after <= outcomes[-1].before


def test_the_range_of_the_input_is_not_learned(name: str) -> None:
    folded = fold_batch_norms(captured("Tiny"))
    student = insert_quantizers(folded, SCHEME, SPEC)
    x = images(24, 5)
    calibrate(student, [x], MSE())
    quantizers = [m for m in student.modules() if isinstance(m, ActivationQuantizer)]
    before = [float(quantizer.scale) for quantizer in quantizers]
    make(name, iterations=20).reconstruct(folded, student, x)
    after = [float(quantizer.scale) for quantizer in quantizers]
    assert after[0] == before[0]
    assert (after[1:] == before[1:]) == (name == "adaround")


def test_a_short_schedule_takes_larger_steps(name: str) -> None:
    method = make(name, lr_factor=None)
    factors = {steps: method.factor(steps) for steps in (20_000, 5_000, 1_000, 500, 100, 1)}
    assert factors == {20_000: 1, 5_000: 1, 1_000: 5, 500: 10, 100: 50, 1: 50}
    assert make(name, lr_factor=0.5).factor(100) == 0.5


def test_the_factor_is_on_every_rate_and_up_to_ten_on_those_of_steps(name: str) -> None:
    """Of steps of few bits: those of 8 are small, see `Stage.step_rate`."""
    own = make(name)
    rates = ("rounding_lr", "weight_step_lr", "activation_lr")
    given = {
        rate: (50 if rate == "rounding_lr" else 10) * getattr(own, rate)
        for rate in rates
        if rate in type(own).model_fields
    }
    students: list[dict[str, bytes]] = []
    for changes in ({"lr_factor": 50.0}, given, {}):
        folded, student, x = prepared("Grouped")
        make(name, iterations=20, steps_below=8, **changes).reconstruct(folded, student, x)
        students.append(values(student))
    assert students[0] == students[1]
    assert students[0] != students[2]


def test_eight_bits_survive_a_short_schedule(name: str) -> None:
    """Their steps are small: ten times a published rate moved the grid from under them."""
    if name == "flexround":
        pytest.skip("it moves weights by a share of themselves: for few bits")
    teacher = load_teacher(ModelConfig(source="digits_resnet8"))
    folded = fold_batch_norms(capture(teacher.model, teacher.spec))
    student = insert_quantizers(folded, Scheme(bits="W8A8", weight_range="mse"))
    x = images(32, 0, teacher.spec.shape)
    calibrate(student, [x], MSE(), observe="float")
    before = error(folded, student, x)
    make(name, iterations=100, lr_factor=None).reconstruct(folded, student, x)
    assert error(folded, student, x) < 2 * before


def test_choices_that_learning_left_open_are_counted(name: str) -> None:
    """After one tiny step all are where they began: spread over the interval.

    Weights that are learned straight through their rounding are always rounded.
    """
    open_share: list[float] = []
    for changes in ({"iterations": 1, "rounding_lr": 1e-9}, {"iterations": 200, "lr_factor": 50.0}):
        folded, student, x = prepared("Tiny")
        weights = sum(m.weight.numel() for m in student.modules() if isinstance(m, QUANTIZED))
        outcomes = make(name, **changes).reconstruct(folded, student, x)
        assert sum(outcome.rounded for outcome in outcomes) == weights
        open_share.append(sum(outcome.undecided for outcome in outcomes) / weights)
    if name in ROUNDED:
        assert open_share == [0, 0]
        return
    assert open_share[0] == pytest.approx(0.9, abs=0.05)
    assert open_share[1] < 0.5


@pytest.mark.parametrize("network", ["InPlaceResidual", "Tied", "Grouped"])
@pytest.mark.parametrize("placement", ["every_input", "after_activation"])
def test_afterwards_the_student_is_an_ordinary_one(name: str, network: str, placement: str) -> None:
    scheme = SCHEME.model_copy(update={"placement": placement, "policy": "brecq"})
    folded, student, x = prepared(network, scheme)
    kinds = {n: type(m) for n, m in student.named_modules()}
    grids = {n: m.grid for n, m in student.named_modules() if isinstance(m, Quantizer)}
    float_before = fingerprint(folded)
    make(name).reconstruct(folded, student, x)
    assert {n: type(m) for n, m in student.named_modules()} == kinds
    assert {n: m.grid for n, m in student.named_modules() if isinstance(m, Quantizer)} == grids
    assert fingerprint(folded) == float_before
    for layer in student.modules():
        assert not isinstance(layer, SoftRounding | LearnedStep)
        if isinstance(layer, QUANTIZED):
            quantizer = layer.weight_quantizer
            steps = layer.weight.detach() / quantizer.scale
            assert (steps - steps.round()).abs().max() < 1e-3
            torch.testing.assert_close(quantizer(layer.weight), layer.weight)


def test_every_weight_is_rounded_up_or_down(name: str) -> None:
    folded, student, x = prepared("Grouped")
    start = {n: m for n, m in folded.named_modules() if n in dict(student.named_modules())}
    make(name, weight_step_lr=0.0).reconstruct(folded, student, x)
    for path, layer in student.named_modules():
        if isinstance(layer, QUANTIZED):
            weight = start[path].get_parameter("weight")
            quantizer = layer.weight_quantizer
            codes = quantizer.codes(layer.weight)
            base = torch.floor(weight / quantizer.scale) + quantizer.zero_point
            low = base.clamp(quantizer.grid.qmin, quantizer.grid.qmax)
            high = (base + 1).clamp(quantizer.grid.qmin, quantizer.grid.qmax)
            assert ((codes == low) | (codes == high)).all()


def steps(student: fx.GraphModule) -> dict[str, tuple[int, float]]:
    """Bits and step size of every activation quantizer."""
    quantizers = {n: m for n, m in student.named_modules() if isinstance(m, ActivationQuantizer)}
    return {n: (m.grid.bits, m.scale.item()) for n, m in quantizers.items()}


def test_steps_of_many_bits_stay_calibrated_where_asked(name: str) -> None:
    method = make(name, steps_below=8)
    if "steps_below" not in type(method).model_fields:
        pytest.skip("this method learns no activation steps")
    folded, student, x = prepared("Grouped", SCHEME.model_copy(update={"policy": "brecq"}))
    before = steps(student)
    method.reconstruct(folded, student, x)
    after = steps(student)
    changed = {n for n in before if before[n] != after[n]}
    assert {bits for bits, _ in before.values()} == {4, 8}
    assert changed == {n for n, (bits, _) in before.items() if bits == 4}


def test_same_seed_same_student(name: str) -> None:
    digests: list[dict[str, bytes]] = []
    for seed in (0, 0, 1):
        folded, student, x = prepared("Tiny")
        torch.manual_seed(len(digests))
        make(name, rounding_lr=0.05).reconstruct(folded, student, x, seed=seed)
        digests.append(values(student))
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_large_blocks_are_learned_layer_by_layer(name: str) -> None:
    folded, student, x = prepared("Dense")
    layers = sum(len(block.layers) for block in find_blocks(folded))
    method = make(name, max_layers=1)
    assert len(method.reconstruct(folded, student, x)) == layers * len(method.stages())


def test_fisher_weights_change_what_blocks_learn() -> None:
    learned: list[dict[str, bytes]] = []
    for fisher in (False, True):
        folded, student, x = prepared("InPlaceResidual")
        make("brecq", fisher=fisher, rounding_lr=0.1).reconstruct(folded, student, x)
        learned.append(values(student))
    assert learned[0] != learned[1]


def test_fisher_weights_stop_where_several_tensors_lead_on() -> None:
    """Inside a block the rest of the network is no function of one tensor."""
    teacher = load_teacher(ModelConfig(source="digits_resnet8"))
    folded = fold_batch_norms(capture(teacher.model, teacher.spec))
    student = insert_quantizers(folded, SCHEME)
    x = images(8, 0, teacher.spec.shape)
    calibrate(student, [x], MSE())
    outcomes = make("brecq", fisher=True, max_layers=1).reconstruct(folded, student, x)
    assert all(torch.isfinite(torch.tensor([o.before, o.after])).all() for o in outcomes)
