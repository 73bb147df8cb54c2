"""SADAG against what its paper says, step by step."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from datafree.calibrators.mse import MSE
from datafree.config import Scheme
from datafree.config import build as configure
from datafree.errors import DataError, ModelError
from datafree.graph.capture import capture
from datafree.graph.swing import swing_convolutions
from datafree.images import SyntheticSet
from datafree.progress import silent
from datafree.progress.deadline import NEVER
from datafree.quant.modules import QUANTIZED
from datafree.synthesis import genie, sadag
from datafree.synthesis._matching import Matcher, matching
from datafree.synthesis.genie import Genie
from datafree.synthesis.noise import Noise
from datafree.synthesis.sadag import SADAG
from datafree.testing.watching import Counter
from networks import SPEC, captured, images, quantizer_of, randomized, saved_pool

pytestmark = pytest.mark.integration

QUICK: dict[str, Any] = {
    "iterations": 3,
    "batch_size": 3,
    "matching_iterations": 2,
    "student_iterations": 2,
}


def gradient_of_classifier(matcher: Matcher, image: Tensor) -> Tensor:
    """Of half the squared logit residual of one image, by autograd through the classifier."""
    layer = matcher.student.get_submodule("linear")
    assert isinstance(layer, nn.Linear)
    found: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _m, inputs, _o: found.append(inputs[0].detach()))
    with torch.no_grad():
        got, wanted = matcher.student(image[None]), matcher.network(image[None])
    handle.remove()
    weight = layer.weight.detach().clone().requires_grad_()
    loss = 0.5 * (wanted - (found[0] @ (weight - layer.weight).T + got)).square().sum()
    return torch.autograd.grad(loss, [weight])[0].flatten()


@pytest.fixture
def student() -> fx.GraphModule:
    network = captured("Tiny")
    method = SADAG(**QUICK, scheme=Scheme(bits="W3A3", policy="brecq"))
    with pytest.MonkeyPatch.context() as patch:
        kept: list[fx.GraphModule] = []

        def spy(network: fx.GraphModule, student: fx.GraphModule) -> Any:
            kept.append(student)
            return matching(network, student)

        patch.setattr(sadag, "matching", spy)
        method.generate(network, SPEC, 3)
    return kept[0]


def test_features_give_the_cosines_of_gradients(student: fx.GraphModule) -> None:
    batch = images(4)
    with matching(captured("Tiny"), student) as matcher:
        inputs, residuals = (part.detach() for part in matcher.features(batch))
        gradients = torch.stack([gradient_of_classifier(matcher, image) for image in batch])
    expected = torch.corrcoef(torch.cat([gradients, -gradients], 1))  # zero means: cosines
    actual = (inputs @ inputs.T) * (residuals @ residuals.T)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


def test_memory_follows_the_own_samples(student: fx.GraphModule) -> None:
    one, two = images(2, seed=1), images(3, seed=2)
    with matching(captured("Tiny"), student) as matcher:
        first, second = matcher.features(one), matcher.features(two)
        assert [len(part) for part in matcher.with_memory(first)] == [2, 2]
        matcher.remember(one)
        matcher.remember(two)
        own = matcher.features(images(1, seed=3))
        everything = matcher.with_memory(own)
    for part, parts in zip(everything, zip(own, first, second, strict=True), strict=True):
        torch.testing.assert_close(part, torch.cat(parts).detach())
        assert not part.requires_grad


def test_the_student_is_frozen_on_its_grids(student: fx.GraphModule) -> None:
    assert not any(parameter.requires_grad for parameter in student.parameters())
    batch = images(4)
    before = student(batch)
    layers = [layer for layer in student.modules() if isinstance(layer, QUANTIZED)]
    assert [layer.weight_quantizer.grid.bits for layer in layers] == [8, 3, 8]
    assert not any(layer.weight_quantizer.enabled for layer in layers)
    for layer in layers:
        layer.weight_quantizer.enabled = True
    torch.testing.assert_close(student(batch), before, rtol=1e-5, atol=1e-5)


def test_ranges_of_the_student_are_those_of_the_float_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def still(*_: Any, **__: Any) -> list[Any]:
        return []

    monkeypatch.setattr(sadag.GenieM, "reconstruct", still)
    network, x = captured("Tiny"), images(8, 3, SPEC.shape)
    method = SADAG(**QUICK, scheme=Scheme(bits="W2A4"))
    made = method._student(network, x, SPEC, 0, silent, tmp_path, {}, NEVER)
    values = network.get_submodule("bn1")(network.get_submodule("conv1")(x)).relu()
    quantizer = quantizer_of(made, "relu1_quantizer")
    _, high = MSE(power=2.4).range(MSE(power=2.4).update(None, values), quantizer.grid)
    assert quantizer.scale.item() == pytest.approx(high.item() / 15)


def test_the_scheme_of_the_run_is_the_students() -> None:
    run, own = Scheme(bits="W2A4"), Scheme(bits="W5A5")
    assert SADAG().for_scheme(run).scheme == run
    assert SADAG(scheme=own).for_scheme(run).scheme == own
    assert SADAG().scheme is None


def shifts(perturb: str, student: fx.GraphModule, seed: int = 0) -> tuple[Tensor, float]:
    """Steps to neighbours, and how unlike the gradients there are."""
    network = captured("Tiny")
    method = SADAG(**QUICK, perturb=perturb, rho=0.5)  # pyright: ignore[reportArgumentType]
    (batch,) = method.batches(network, 3, seed, lambda _: None)
    made = Genie(iterations=1, batch_size=3).train_generator(SPEC, batch, network)
    latents = made.latents.requires_grad_()
    with matching(network, student) as matcher:
        own = matcher.features(made.generator(latents))
        shift = method._shift(made.generator, latents, own, matcher, torch.Generator())
        near = matcher.features(made.generator(latents + shift))
    like = (own[0] * near[0]).sum(1) * (own[1] * near[1]).sum(1)
    return shift, 1 - like.mean().item()


@pytest.mark.parametrize("perturb", ["power", "official", "random"])
def test_neighbours_are_rho_away(perturb: str, student: fx.GraphModule) -> None:
    shift, _ = shifts(perturb, student)
    torch.testing.assert_close(shift.norm(dim=1), torch.full((3,), 0.5))
    assert not shift.requires_grad


def test_a_power_iteration_finds_neighbours_that_differ_more(student: fx.GraphModule) -> None:
    """Than a random step of the same length does, on the mean of some generators."""
    power = sum(shifts("power", student, seed)[1] for seed in range(6))
    random = sum(shifts("random", student, seed)[1] for seed in range(6))
    assert power > random


def test_swinging_is_for_the_warm_up_only(monkeypatch: pytest.MonkeyPatch) -> None:
    swung: list[fx.GraphModule] = []
    matched: list[fx.GraphModule] = []

    def swing(network: fx.GraphModule, generator: torch.Generator) -> fx.GraphModule:
        swung.append(swing_convolutions(network, generator))
        return swung[-1]

    def spy(network: fx.GraphModule, student: fx.GraphModule) -> Any:
        matched.append(network)
        return matching(network, student)

    monkeypatch.setattr(genie, "swing_convolutions", swing)
    monkeypatch.setattr(sadag, "matching", spy)
    SADAG(**QUICK).generate(captured("Tiny"), SPEC, 5)
    assert len(swung) == 2, "5 images make two batches"
    assert len(matched) == 1
    assert matched[0] not in swung
    batch = images(2)
    torch.testing.assert_close(matched[0](batch), captured("Tiny")(batch))


@pytest.mark.parametrize(
    "change", [{"matching_weight": 0.0}, {"diversity_weight": 0.0}, {"tau": 0.5}, {"rho": 1.0}]
)
def test_every_term_counts(change: dict[str, Any]) -> None:
    quick: dict[str, Any] = QUICK | {"matching_generator_lr": 0.05}
    plain = SADAG(**quick).generate(captured("Tiny"), SPEC, 3)
    changed = SADAG(**quick, **change).generate(captured("Tiny"), SPEC, 3)
    assert not torch.equal(plain.images, changed.images)


def test_matching_makes_gradients_match() -> None:
    """The published objective falls: neighbours are more alike than after the warm-up alone."""

    def unlikeness(steps: int) -> float:
        rates = {"matching_generator_lr": 0.01, "matching_gamma": 1.0}
        weights = {"matching_weight": 20.0, "diversity_weight": 0.0}
        changes = {"matching_iterations": steps, "batch_size": 8, "rho": 10.0}
        method = configure(SADAG, QUICK | changes | rates | weights, "sadag")
        seen: list[float] = []
        with pytest.MonkeyPatch.context() as patch:

            def spy(one: Any, other: Any) -> Tensor:
                value = 1 - ((one[0] * other[0]).sum(1) * (one[1] * other[1]).sum(1)).mean()
                seen.append(value.item())
                return value

            patch.setattr(sadag, "gradient_matching", spy)
            method.generate(captured("Tiny"), SPEC, 8)
        return sum(seen[-5:]) / 5

    assert unlikeness(60) < 0.7 * unlikeness(5)


def test_finished_stages_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = SADAG(**QUICK)
    expected = method.generate(captured("Tiny"), SPEC, 5)

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SADAG, "_match", stop)
        with pytest.raises(KeyboardInterrupt):
            method.generate(captured("Tiny"), SPEC, 5, checkpoint=tmp_path)
    monkeypatch.setattr(SADAG, "train_generator", stop)
    monkeypatch.setattr(sadag.GenieM, "reconstruct", stop)
    stopped = sorted(tmp_path.iterdir())
    # Neither drafts nor student depend on how gradients are matched, and the images do.
    assert len(stopped) == 3
    copied = Path(shutil.copytree(tmp_path, tmp_path / "other"))
    other = SADAG(**QUICK, rho=20.0, matching_generator_lr=0.1)
    assert (
        other.generate(captured("Tiny"), SPEC, 5, checkpoint=copied).digest() != expected.digest()
    )
    again = method.generate(captured("Tiny"), SPEC, 5, checkpoint=tmp_path)
    assert again.digest() == expected.digest()


def test_a_network_without_classifier_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1))
    graph = capture(randomized(nn.Sequential(model, nn.Flatten()), images(8)), SPEC)
    with pytest.raises(ModelError, match=r"sadag matches gradients.*none; use the method genie"):
        SADAG(**QUICK).generate(graph, SPEC, 2)


def test_gradients_of_the_set_are_matched(student: fx.GraphModule) -> None:
    """Eq. (15) in the place of Eq. (18): what is added to the loss is 1 - cos of sums."""
    network = captured("Tiny")
    method = SADAG(**QUICK, match="set", scheme=Scheme(bits="W3A3", policy="brecq"))
    seen: list[tuple[Tensor, float]] = []
    with pytest.MonkeyPatch.context() as patch:
        real = sadag.set_matching

        def spy(one: Any, other: Any) -> Tensor:
            value = real(one, other)
            sums = [torch.einsum("nd,nc->dc", *pair).flatten() for pair in (one, other)]
            cosine = (sums[0] @ sums[1]) / sums[0].norm() / sums[1].norm()
            seen.append((1 - cosine.detach(), value.item()))
            return value

        patch.setattr(sadag, "set_matching", spy)
        patch.setattr(sadag, "gradient_matching", None)
        made = method.generate(network, SPEC, 3)
    assert len(seen) == 4, "two steps, each with a neighbour to find and one to match"
    for expected, found in seen:
        assert found == pytest.approx(expected.item(), abs=1e-5)
    assert made.digest() != SADAG(**QUICK, scheme=method.scheme).generate(network, SPEC, 3).digest()


def test_swinging_goes_on_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the statistics alone: gradients are those of the network as it is."""
    swung: list[fx.GraphModule] = []

    def swing(network: fx.GraphModule, generator: torch.Generator) -> fx.GraphModule:
        swung.append(swing_convolutions(network, generator))
        return swung[-1]

    monkeypatch.setattr(sadag, "swing_convolutions", swing)
    plain = SADAG(**QUICK).generate(captured("Tiny"), SPEC, 5)
    assert not swung
    found = SADAG(**QUICK, matching_swing=True).generate(captured("Tiny"), SPEC, 5)
    assert len(swung) == 2, "one for every batch"
    assert found.digest() != plain.digest()


def test_the_cosine_with_given_images_is_told(student: fx.GraphModule) -> None:
    """Whatever they are, the images stay; against gradients of one image at a time."""
    method = SADAG(**QUICK, scheme=Scheme(bits="W3A3", policy="brecq"))
    plain = method.generate(captured("Tiny"), SPEC, 3)
    pool = saved_pool(SPEC)
    made = method.model_copy(update={"compare_with": pool}).generate(captured("Tiny"), SPEC, 3)
    assert made.digest() == plain.digest()
    with matching(captured("Tiny"), student) as matcher:
        sums = [
            sum(gradient_of_classifier(matcher, image) for image in images)
            for images in (made.images, SyntheticSet.load(pool).images)
        ]
    assert isinstance(sums[0], Tensor) and isinstance(sums[1], Tensor)
    expected = (sums[0] @ sums[1]) / sums[0].norm() / sums[1].norm()
    assert made.metadata["cosine"] == pytest.approx(expected.item(), abs=1e-4)
    assert -1 <= made.metadata["warm_cosine"] <= 1
    assert "cosine" not in plain.metadata


def test_images_to_compare_with_that_do_not_fit_are_refused_at_once(tmp_path: Path) -> None:
    path, begun = tmp_path / "wide.safetensors", Counter()
    wide = SPEC.model_copy(update={"shape": (3, 12, 20)})
    Noise().generate(captured("Tiny"), wide, 2).save(path)
    method = SADAG(**QUICK, compare_with=path)
    with pytest.raises(DataError, match=r"shape \(3, 12, 20\)"):
        method.generate(captured("Tiny"), SPEC, 3, progress=begun)
    assert begun.done == 0
