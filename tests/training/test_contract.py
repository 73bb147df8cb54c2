"""What every fine-tuning method must do, found by its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from datafree.calibrators.base import calibrate
from datafree.calibrators.mse import MSE
from datafree.config import Scheme, build
from datafree.errors import ConfigError, DataError
from datafree.generators import save_generator
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.graph.statistics import layer_statistics
from datafree.graph.taps import BatchNorm, batch_norms
from datafree.quant.modules import QUANTIZED, ActivationQuantizer, Quantizer
from datafree.quant.trained import TRAINED
from datafree.reconstruction.adaround import AdaRound
from datafree.registry import built_in, load
from datafree.tensors import state_digest
from datafree.testing import TrainingContract
from datafree.testing.watching import Counter, fingerprint
from datafree.training import Dream, Task, Trained, train
from datafree.training._game import Game
from datafree.training.base import Trainer
from networks import SPEC, captured, images, quantizer_of

pytestmark = pytest.mark.integration

PACKAGE = "datafree.training"
QUICK: dict[str, Any] = {
    "warmup": 4, "iterations": 6, "batch_size": 8, "calibration_images": 16, "holdout": 16,
    "checks": 3, "margin_images": 8, "checkpoint_minutes": 0, "latent": 10,
}  # fmt: skip
SCHEME = Scheme(bits="W3A4")
FIXED = [name for name in built_in(PACKAGE) if load(PACKAGE, name, Trainer).from_images]


def make(name: str, **changes: Any) -> Trainer:
    cls = load(PACKAGE, name, Trainer)
    chosen = {k: v for k, v in {**QUICK, **changes}.items() if k in cls.model_fields}
    return build(cls, chosen, name)


def task(name: str, network: str = "Tiny", **changes: Any) -> Task:
    graph = captured(network)
    companion = captured("Functional") if name == "distill" else None
    made = Task(graph, fold_batch_norms(graph), SPEC, SCHEME, MSE(), companion=companion)
    if name in FIXED:
        made = replace(made, images=images(24), targets=torch.arange(24) % 5)
    return replace(made, **changes)


@pytest.fixture(params=built_in(PACKAGE))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[name for name in built_in(PACKAGE) if name not in FIXED])
def dreaming(request: pytest.FixtureRequest) -> str:
    """A method that has a generator."""
    return request.param


class TestEveryTraining(TrainingContract):
    @pytest.fixture(autouse=True, params=built_in(PACKAGE))
    def _chosen(self, request: pytest.FixtureRequest) -> None:
        self.method = make(request.param)
        self.distills = request.param == "distill"


def digests(trained: Trained) -> tuple[str, ...]:
    parts = (trained.student, trained.last, trained.generator)
    return tuple(state_digest(part.state_dict()) for part in parts if part is not None)


def test_the_student_is_an_ordinary_one_and_the_teacher_as_it_was(name: str) -> None:
    given = task(name)
    before = fingerprint(given.teacher), fingerprint(given.folded)
    trained = train(make(name), given)
    assert (fingerprint(given.teacher), fingerprint(given.folded)) == before
    for student in (trained.student, trained.last):
        assert not student.training
        assert not any(isinstance(module, TRAINED) for module in student.modules())
        assert all(m.has_range for m in student.modules() if isinstance(m, Quantizer))
        assert any(isinstance(m, ActivationQuantizer) for m in student.modules())
        assert torch.isfinite(student(images(4))).all()
        bits = {m.weight_quantizer.grid.bits for m in student.modules() if isinstance(m, QUANTIZED)}
        assert bits == {3}


def test_black_and_white_reach_the_first_layer(name: str) -> None:
    """Whatever a generator dreams: SPEC has black at -2 and white at 3."""
    trained = train(make(name, activations="clip", student_lr=0.1), task(name))
    for student in (trained.student, trained.last):
        first = next(m for m in student.modules() if isinstance(m, ActivationQuantizer))
        low, high = first(torch.tensor([-2.0, 3.0])).tolist()
        assert low < -1.98
        assert high > 2.98


@pytest.mark.parametrize("stop_at", [2, 5, 9])
def test_an_interrupted_call_goes_on_to_the_same_student(
    name: str, stop_at: int, tmp_path: Path
) -> None:
    method, counter = make(name, activations="pact", student_steps=2), Counter()
    whole = train(method, task(name), progress=counter)
    begun = [] if name in FIXED else ["distillation" if name == "distill" else "warm-up"]
    assert counter.done == counter.total == 6 + 4 * len(begun)
    assert counter.descriptions == [f"{name} {phase}" for phase in (*begun, "fine-tuning")]
    stop_at = min(stop_at, counter.total - 1)
    with pytest.raises(KeyboardInterrupt):
        train(method, task(name), progress=Counter(stop_at), checkpoint=tmp_path)
    assert list(tmp_path.glob("*.safetensors"))
    progress = Counter()
    again = train(method, task(name), progress=progress, checkpoint=tmp_path)
    assert digests(again) == digests(whole)
    assert progress.done == progress.total
    for phase, told in whole.summary.items():
        assert again.summary[phase]["history"] == told["history"]
        assert again.summary[phase].get("best") == told.get("best")


def test_every_further_step_of_the_student_sees_new_images(
    dreaming: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = dreaming
    dreamt: list[str] = []
    dream = Game.dream

    def counted(game: Game, *arguments: Any) -> Dream:
        made = dream(game, *arguments)
        dreamt.append(state_digest({"images": made.images.detach()}))
        return made

    monkeypatch.setattr(Game, "dream", counted)
    method = make(name, student_steps=3)
    once = train(make(name), task(name))
    before = len(dreamt)
    trained = train(method, task(name))
    dreamt = dreamt[before:]
    taught = method.iterations + (method.warmup if name in ("dfqf", "distill") else 0)
    own = 3 if method.fresh else 2
    assert len(dreamt) == method.warmup + method.iterations + own * taught
    assert len(set(dreamt)) == len(dreamt)
    assert fingerprint(trained.last) != fingerprint(once.last)
    assert method.passes() > make(name).passes()
    assert method.dreams() > make(name).dreams()


def test_under_a_time_budget_the_student_is_judged_all_along(name: str) -> None:
    method = make(name, warmup=1, iterations=10**6, checks=5)
    trained = train(method, task(name), max_seconds=3.0)
    judged = [c for c in trained.summary["fine-tuning"]["history"] if "agreement" in c]
    assert len(judged) >= 4


def test_generators_keep_no_hooks_and_remember_nothing(dreaming: str) -> None:
    trained = train(make(dreaming), task(dreaming))
    for generator in (trained.generator, trained.warm):
        assert generator is not None
        assert not any(module._forward_hooks for module in generator.modules())


def test_a_fixed_generator_keeps_its_weights(dreaming: str, tmp_path: Path) -> None:
    name = dreaming
    method = make(name, update_generator=False)
    trained = train(method, task(name))
    assert trained.warm is not None
    assert trained.generator is not None
    for (key, value), warm in zip(
        trained.generator.named_parameters(), trained.warm.parameters(), strict=True
    ):
        assert torch.equal(value, warm), key
    with pytest.raises(KeyboardInterrupt):
        train(method, task(name), progress=Counter(8), checkpoint=tmp_path)
    again = train(method, task(name), checkpoint=tmp_path)
    assert digests(again) == digests(trained)


def test_the_last_student_that_is_not_measurably_worse_than_the_best_is_kept(name: str) -> None:
    method = make(name, iterations=12, checks=12, student_lr=0.5)
    told = train(method, task(name)).summary["fine-tuning"]
    judged = told["history"]
    assert len(judged) == 13
    best = max(check["agreement"] for check in judged)
    error = (best * (100 - best) / 16) ** 0.5
    assert told["best"] == [c for c in judged if c["agreement"] >= best - error][-1]
    assert told["last"]["step"] == 12


@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_batch_norms_can_stay(name: str, batch_norm: str) -> None:
    given = task(name)
    trained = train(make(name, batch_norm=batch_norm), given)
    layers = batch_norms(trained.last)
    assert len(layers) == len(batch_norms(given.companion or given.teacher)) > 0
    if name == "distill":  # the float student's statistics have followed before
        return
    for path, layer in batch_norms(given.teacher).items():
        assert layer.running_mean is not None
        own = layers[path].running_mean
        assert own is not None
        assert torch.equal(own, layer.running_mean) == (batch_norm == "frozen")


def test_scaled_rates_leave_a_folded_student_that_learned_otherwise(name: str) -> None:
    plain, scaled = (
        train(make(name, batch_norm=how, student_lr=0.1), task(name)).last
        for how in ("folded", "scaled")
    )
    assert not batch_norms(scaled)
    assert set(scaled.state_dict()) == set(plain.state_dict())
    assert fingerprint(scaled) != fingerprint(plain)


def test_a_generator_that_was_warmed_up_is_taken(dreaming: str, tmp_path: Path) -> None:
    name = dreaming
    method, path = make(name), tmp_path / "warm.safetensors"
    first = train(method, task(name))
    assert first.warm is not None
    save_generator(first.warm, path)
    given = task(name, generator=path)
    second = train(method, given)
    assert second.warm is None
    if name == "distill":
        assert set(second.summary) == {"distillation", "fine-tuning"}
        return
    assert set(second.summary) == {"fine-tuning"}
    # One warm-up serves all: it goes on as if it had been warmed up here.
    assert digests(second) == digests(first)


ROUNDING = AdaRound(iterations=20, batch_size=8, lr_factor=50.0)


def test_training_starts_from_learned_rounding(name: str) -> None:
    """At a rate of nearly nothing the student is what post-training makes of the same images."""
    x = images(16, 3)
    given = task(name, images=x, reconstructor=ROUNDING, seed=2)
    method = make(name, weights="clip", student_lr=1e-12, weight_decay=0.0)
    trained = train(method, given)
    assert sum(unit["rounded"] for unit in trained.rounding) == sum(
        m.weight.numel() for m in trained.student.modules() if isinstance(m, QUANTIZED)
    )
    plain = train(method, replace(given, reconstructor=None))
    assert not plain.rounding
    assert fingerprint(plain.student) != fingerprint(trained.student)
    if name == "distill":  # made from the float student, whatever that has learned
        return
    expected = insert_quantizers(given.folded, SCHEME, SPEC)
    method.first_ranges(expected)
    calibrate(expected, [x], method.calibrator(MSE()), observe="float")
    ROUNDING.reconstruct(given.folded, expected, x, seed=2)
    torch.testing.assert_close(trained.student(x), expected(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rounding", [None, ROUNDING])
def test_whose_activations_set_the_ranges(name: str, rounding: AdaRound | None) -> None:
    """DFQF's Algorithm 2 observes the float network, and so does all that learns rounding."""
    if name == "distill":  # its float student has learned meanwhile
        assert make(name).observe == "float"
        return
    x = images(16, 3)
    given = task(name, images=x, reconstructor=rounding)
    method = make(name, activations="fixed", weights="clip")
    values = given.folded.get_submodule("conv1")(x).relu()
    quantizer = quantizer_of(train(method, given).last, "relu1_quantizer")
    rule = method.calibrator(MSE())
    low, high = rule.range(rule.update(None, values), quantizer.grid)
    exact = ((high - low) / 15).item()
    observes = rounding is not None or name == "dfqf"
    assert (quantizer.scale.item() == pytest.approx(exact)) == observes


@pytest.mark.parametrize("left", [60, 25, 2])
def test_rounding_that_was_learned_is_not_lost(name: str, left: int, tmp_path: Path) -> None:
    """Interrupted while rounding is learned, and after it, in the last 6 steps."""
    method, counter = make(name, weights="clip"), Counter()
    given = task(name, reconstructor=ROUNDING)
    whole = train(method, given, progress=counter)
    assert "adaround reconstruction" in counter.descriptions
    with pytest.raises(KeyboardInterrupt):
        train(method, given, progress=Counter(counter.total - left), checkpoint=tmp_path)
    again = Counter()
    found = train(method, given, progress=again, checkpoint=tmp_path)
    assert digests(found) == digests(whole)
    assert found.rounding == whole.rounding
    if left == 2:
        assert "adaround reconstruction" not in again.descriptions


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"weights": "minmax"}, "weights=clip"), ({"batch_norm": "frozen"}, "batch_norm=scaled")],
)
def test_learned_rounding_that_would_be_lost_is_refused(
    name: str, changes: dict[str, Any], message: str
) -> None:
    method = make(name, **{"weights": "clip", **changes})
    with pytest.raises(ConfigError, match=message):
        train(method, task(name, reconstructor=ROUNDING))


def test_given_images_set_the_ranges(name: str) -> None:
    one = train(make(name, activations="fixed"), task(name, images=images(16, 1)))
    two = train(make(name, activations="fixed"), task(name, images=10 * images(16, 1)))
    first = [m.scale for m in one.student.modules() if isinstance(m, ActivationQuantizer)]
    second = [m.scale for m in two.student.modules() if isinstance(m, ActivationQuantizer)]
    assert second[0] > 3 * first[0]


def test_training_may_start_from_corrected_biases(name: str) -> None:
    """What rounding adds to the mean of a layer that reads a known one is off its bias."""
    given = task(name)
    still = {"student_lr": 1e-20, "steps_lr": 1e-20, "warmup": 1, "iterations": 1}
    corrected = replace(given, statistics=layer_statistics(given.teacher))
    plain, start = (train(make(name, **still), t).last for t in (given, corrected))
    if name == "distill":  # a float student was learned, of which batch norms tell nothing
        assert state_digest(plain.state_dict()) == state_digest(start.state_dict())
        return
    before, after = (student.get_submodule("conv2") for student in (plain, start))
    exact, norm = given.folded.get_submodule("conv2"), given.teacher.get_submodule("bn1")
    assert isinstance(before, QUANTIZED) and isinstance(after, QUANTIZED)
    assert isinstance(exact, nn.Conv2d) and isinstance(norm, BatchNorm)
    center, spread, unit = norm.bias.double(), norm.weight.double().abs(), Normal(0.0, 1.0)
    ratio = center / spread
    mean = spread * unit.log_prob(ratio).exp() + center * unit.cdf(ratio)
    error = (after.weight_quantizer(after.weight) - exact.weight).double().sum((2, 3)) @ mean
    assert error.abs().max() > 1e-3
    assert before.bias is not None and after.bias is not None
    torch.testing.assert_close(
        after.bias.double(), before.bias.double() - error, rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("weights", ["minmax", "lsq", "clip", "fixed"])
def test_every_way_to_learn_ranges(name: str, weights: str) -> None:
    for activations in ("fixed", "lsq", "clip", "pact"):
        method = make(name, weights=weights, activations=activations, iterations=2)
        assert torch.isfinite(train(method, task(name)).last(images(2))).all()


def test_only_pact_s_clips_decay(name: str) -> None:
    lost: dict[str, float] = {}
    for decay in (0.0, 0.9):
        method = make(name, activations="pact", weight_decay=decay, student_lr=0.1, iterations=3)
        trained = train(method, task(name, scheme=SCHEME.model_copy(update={"weights": 8})))
        lost[str(decay)] = sum(
            float(m.scale) for m in trained.last.modules() if isinstance(m, ActivationQuantizer)
        )
    assert lost["0.9"] < lost["0.0"]


def test_unknown_hyper_parameters_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="speed is not known"):
        build(load(PACKAGE, name, Trainer), {"speed": 1}, name)


def test_losses_that_are_no_numbers_are_told(name: str) -> None:
    given = task(name)
    with pytest.raises(DataError, match=r"is not a number after step .* lower the learning rates"):
        train(make(name, student_lr=1e30, learner_lr=1e30, generator_lr=1e30, iterations=40), given)
