from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.nn.modules.batchnorm import _BatchNorm

from datafree.config.protocols import PROTOCOLS
from datafree.graph.alignment import Alignment, alignment_loss, margins
from datafree.graph.taps import stored_statistics, tap_batch_norms
from datafree.losses import image_norm, input_distance, total_variation
from datafree.synthesis import _images
from datafree.synthesis.base import Batch
from datafree.synthesis.dsg import DSG, released_weights
from datafree.synthesis.zeroq import ZeroQ
from datafree.testing.watching import fingerprint
from networks import SPEC, build, captured, images
from reference import batch_norm_inputs, input_loss, layer_losses, zeroq_loss
from watching import Watched

NAMES = ["Tiny", "InPlaceResidual", "Grouped", "NormAfterActivation"]


def batch(size: int, start: int = 0) -> Batch:
    return Batch(size, start, torch.Generator().manual_seed(0), lambda _: None)


def aligned_loss(teacher: fx.GraphModule, x: Tensor, aligned: Alignment) -> Tensor:
    with tap_batch_norms(teacher) as taps:
        teacher(x)
        features, stored = [f for _, f in taps], [stored_statistics(layer) for layer, _ in taps]
    return alignment_loss(features, stored, aligned)


def no_slack(layers: int) -> Alignment:
    return Alignment(torch.zeros(layers), torch.zeros(layers), torch.ones(1, 1))


@pytest.mark.parametrize("name", ["Tiny", "InPlaceResidual", "Grouped"])
def test_without_enhancement_and_slack_the_loss_is_that_of_zeroq(name: str) -> None:
    teacher, model, x = captured(name), build(name), images(6, 4)
    method = DSG(epsilon=0, enhancement=False)
    layers = len(batch_norm_inputs(model, x))
    state = method.prepare(teacher, SPEC, torch.Generator().manual_seed(0))
    aligned = method.alignment(layers, batch(6), state)
    with torch.no_grad():
        actual = aligned_loss(teacher, x, aligned) + input_distance(x).mean()
        expected = zeroq_loss(model, x)
    assert actual.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["Tiny", "NormAfterActivation"])
def test_without_enhancement_and_slack_the_images_are_those_of_zeroq(name: str) -> None:
    teacher = captured(name)
    dsg = DSG(epsilon=0, enhancement=False, batch_size=4, iterations=10)
    zeroq = ZeroQ(batch_size=4, iterations=10)
    expected = zeroq.generate(teacher, SPEC, 6, seed=2)
    assert dsg.generate(teacher, SPEC, 6, seed=2).digest() == expected.digest()
    for change in ({"epsilon": 0.5}, {"enhancement": True}):
        other = dsg.model_copy(update=change).generate(teacher, SPEC, 6, seed=2)
        assert other.digest() != expected.digest()


def test_enhanced_slack_loss_by_loops() -> None:
    """Eq. (10): every image, layer and channel one by one."""
    teacher, model, x = captured("Tiny"), build("Tiny"), images(5, 7)
    delta, gamma = torch.tensor([0.1, 0.05]), torch.tensor([0.02, 0.2])
    weights = DSG().alignment(2, batch(5, start=3), Alignment(delta, gamma, delta)).weights  # pyright: ignore
    expected = 0.0
    for layer, (norm, feature) in enumerate(batch_norm_inputs(model, x)):
        for n in range(5):
            for c in range(feature.shape[1]):
                values = feature[n, c].flatten().double()
                mean_gap = abs(values.mean() - norm.running_mean[c]).item()  # pyright: ignore
                std = (values.var() + 1e-6).sqrt()
                target = (norm.running_var[c] + 1e-6).sqrt()  # pyright: ignore
                std_gap = abs(std - target).item()
                loss = max(mean_gap - delta[layer].item(), 0) ** 2
                loss += max(std_gap - gamma[layer].item(), 0) ** 2
                expected += loss * (2 if (n + 3) % 2 == layer else 1) / 5
    actual = aligned_loss(teacher, x, Alignment(delta, gamma, weights))
    assert actual.item() == pytest.approx(expected, rel=1e-5)


def test_enhancement_doubles_one_layer_per_image() -> None:
    teacher, model, x = captured("Grouped"), build("Grouped"), images(4, 5)
    method = DSG(epsilon=0)
    state = method.prepare(teacher, SPEC, torch.Generator().manual_seed(0))
    aligned = method.alignment(4, batch(4), state)
    assert aligned.weights.sum(0).tolist() == [5] * 4, "columns sum to N + 1"
    losses = layer_losses(model, x)
    expected = (losses.sum() + losses.diagonal().sum()) / 4
    torch.testing.assert_close(aligned_loss(teacher, x, aligned), expected, rtol=1e-5, atol=1e-6)


def test_no_enhancement_has_equal_weights() -> None:
    method = DSG(enhancement=False)
    aligned = method.alignment(4, batch(4), no_slack(4))  # pyright: ignore
    assert aligned.weights.unique().tolist() == [1]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_batches_together_enhance_every_layer(size: int) -> None:
    """Four layers, twelve images in batches of any size: three images for each layer."""
    method, extra = DSG(batch_size=size), torch.zeros(4)
    for start in range(0, 12, size):
        one = batch(min(size, 12 - start), start)
        extra += (method.alignment(4, one, no_slack(4)).weights - 1).sum(1)  # pyright: ignore
    assert extra.tolist() == [3, 3, 3, 3]


def test_the_loss_and_its_gradient_are_zero_inside_the_band() -> None:
    teacher, x = captured("Tiny"), images(4, 3).requires_grad_()
    wide = Alignment(torch.full((2,), 1e3), torch.full((2,), 1e3), torch.ones(1, 1))
    loss = aligned_loss(teacher, x, wide)
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss == 0
    assert not gradient.any()
    narrow = aligned_loss(teacher, x, no_slack(2))
    (gradient,) = torch.autograd.grad(narrow, x)
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("granularity", ["sample", "batch"])
@pytest.mark.parametrize("name", NAMES)
def test_margins_are_numbers_that_grow_with_epsilon(name: str, granularity: str) -> None:
    teacher, noise = captured(name), images(80, 6)
    before = fingerprint(teacher)
    layers = len([m for m in teacher.modules() if isinstance(m, _BatchNorm)])
    rows = [margins(teacher, noise, e / 10, granularity) for e in range(11)]  # pyright: ignore
    for index in (0, 1):
        table = torch.stack([row[index] for row in rows])
        assert table.shape == (11, layers)
        assert (table[0] == 0).all()
        assert (table >= 0).all()
        assert (table.diff(dim=0) >= 0).all()
        assert (table[-1] > 0).all()
    assert fingerprint(teacher) == before


def gaps_by_hand(name: str, noise: Tensor, granularity: str) -> list[tuple[Tensor, Tensor]]:
    gaps: list[tuple[Tensor, Tensor]] = []
    for norm, feature in batch_norm_inputs(build(name), noise):
        dims = (2, 3) if granularity == "sample" else (0, 2, 3)
        mean = feature.double().mean(dims)
        std = (feature.double().var(dims) + 1e-6).sqrt()
        target = (norm.running_var + 1e-6).sqrt()  # pyright: ignore
        gaps.append(((mean - norm.running_mean).abs(), (std - target).abs()))  # pyright: ignore
    return gaps


@pytest.mark.parametrize("granularity", ["sample", "batch"])
@pytest.mark.parametrize("epsilon", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("name", ["Tiny", "Grouped"])
def test_margins_by_direct_computation(name: str, epsilon: float, granularity: str) -> None:
    """Over more images than one chunk holds, and maps as small as 2x2."""
    noise = images(150, 8)
    delta, gamma = margins(captured(name), noise, epsilon, granularity)  # pyright: ignore
    with torch.no_grad():
        expected = gaps_by_hand(name, noise, granularity)
    for layer, (means, stds) in enumerate(expected):
        assert delta[layer].item() == pytest.approx(
            means.quantile(epsilon).item(), rel=2e-3, abs=1e-6
        )
        assert gamma[layer].item() == pytest.approx(
            stds.quantile(epsilon).item(), rel=2e-3, abs=1e-6
        )


def test_margins_are_measured_on_normal_images_of_the_seed() -> None:
    teacher = captured("Tiny")
    method = DSG(margin_images=1024)
    state = method.prepare(teacher, SPEC, torch.Generator().manual_seed(3))
    noise = torch.randn(1024, *SPEC.shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = gaps_by_hand("Tiny", noise, "sample")
    for layer, (means, stds) in enumerate(expected):
        assert state.delta[layer].item() == pytest.approx(means.quantile(0.9).item(), rel=1e-3)
        assert state.gamma[layer].item() == pytest.approx(stds.quantile(0.9).item(), rel=1e-3)


def test_batches_have_as_many_images_as_there_are_layers() -> None:
    assert DSG(batch_size=None).batch_images(captured("Grouped"), 100) == 4
    assert DSG(batch_size=None).batch_images(captured("Grouped"), 3) == 3
    assert DSG(batch_size=7).batch_images(captured("Grouped"), 100) == 7


def test_images_go_into_the_band_and_no_further() -> None:
    """With slack every image ends near the band; without, near the centre."""
    teacher, model = captured("Tiny"), build("Tiny")
    slack = DSG(iterations=150, batch_size=8, margin_images=64).generate(teacher, SPEC, 8)
    exact = ZeroQ(iterations=150).generate(teacher, SPEC, 8)
    delta, gamma = margins(teacher, images(64, 1), 0.9)
    band = Alignment(delta, gamma, torch.ones(1, 1))
    with torch.no_grad():
        start, inside = (aligned_loss(teacher, x, band) for x in (images(8, 2), slack.images))
        assert inside < 0.2 * start
        assert zeroq_loss(model, slack.images) > 2 * zeroq_loss(model, exact.images)
        assert input_loss(slack.images) < 0.5


def test_the_released_recipe_is_one_option() -> None:
    """Algorithms A.2.4, the column of the released code."""
    method = DSG(compat="official")
    assert (method.label_weight, method.tv_weight, method.l2_weight) == (2, 0.01, 0.01)
    assert (method.learning_rate, method.patience, method.min_learning_rate) == (0.9, 260, 1e-4)
    assert (method.start, method.batch_size, method.least_fall) == ("uniform", 40, 0)
    assert (method.correlation_weight, method.iterations) == (1, 500)
    assert DSG(compat="official", learning_rate=0.1, epsilon=0.5).learning_rate == 0.1
    assert DSG().label_weight == DSG(compat="paper").correlation_weight == 0
    assert DSG(**method.model_dump()) == method
    # Also under the protocol of the paper, whose batches are as many as there are batch norms.
    assert DSG(**PROTOCOLS["dsg"]["method_options"], compat="official") == method


def test_released_enhancement_by_loops() -> None:
    """Twice the residual, so four times its square; 20 is ResNet-18's number of layers."""
    for layers, size in ((25, 40), (3, 5), (30, 4)):
        expected = torch.ones(layers, size)
        for n in range(size):
            if n < 20 and n < layers:
                expected[n, n] = 2**2
        assert torch.equal(released_weights(layers, size), expected)
    state = Alignment(torch.zeros(2), torch.zeros(2), torch.ones(1, 1))
    for start in (0, 40):
        weights = DSG(compat="official").alignment(2, batch(3, start), state).weights
        assert weights.tolist() == [[4, 1, 1], [1, 4, 1]], "every batch begins anew"


def test_the_released_loss_term_by_term(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two classes' entropies, both priors, correlation over N = 2, four times a layer's loss."""
    watched, drawn = Watched(monkeypatch), list[Tensor]()
    real = _images.correlation_inhibition

    def spy(pixels: Tensor, noise: Tensor, *rest: Any) -> Tensor:
        drawn.append(noise)
        return real(pixels, noise, *rest)

    monkeypatch.setattr(_images, "correlation_inhibition", spy)
    teacher, model = captured("Tiny"), build("Tiny").requires_grad_(False)
    method = DSG(compat="official", iterations=1, epsilon=0.0)
    result = method.generate(teacher, SPEC, 5)
    assert result.targets is not None
    assert watched.rates == [0.9]
    x = watched.images[0].requires_grad_()
    assert 0 <= x.min() < x.max() < 1
    weights = torch.ones(2, 5)
    weights[0, 0] = weights[1, 1] = 4
    loss = (weights * layer_losses(model, x)).sum() / 5 + input_loss(x)
    loss = loss + 2 * torch.nn.functional.cross_entropy(model(x), result.targets)
    loss = loss + 0.01 * total_variation(x) + 0.01 * image_norm(x)
    loss = loss + real(x, drawn[0], "eigvecs_detached") / 2
    (expected,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(watched.gradients[0], expected, rtol=1e-4, atol=1e-6)
