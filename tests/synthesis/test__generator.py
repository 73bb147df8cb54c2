from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from datafree.synthesis._generator import ImageGenerator

SHAPES = [(3, 8, 8), (1, 28, 28), (3, 9, 9), (2, 6, 10), (4, 1, 1), (3, 1, 7), (1, 5, 4)]


def generator(shape: tuple[int, int, int], latent: int = 6, seed: int = 0) -> ImageGenerator:
    return ImageGenerator(shape, latent, torch.Generator().manual_seed(seed))


def latents(count: int, latent: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, latent, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [2, 5])
def test_any_size_with_statistics_of_normalised_images(
    shape: tuple[int, int, int], count: int
) -> None:
    images = generator(shape)(latents(count))
    assert images.shape == (count, *shape)
    columns = images.transpose(0, 1).flatten(1)
    torch.testing.assert_close(columns.mean(1), torch.zeros(shape[0]), rtol=0, atol=1e-4)
    if columns.shape[1] > 2:
        assert columns.var(1, correction=0).min() > 0.9
        assert columns.var(1, correction=0).max() <= 1.0001


def normalised(x: Tensor) -> Tensor:
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


@pytest.mark.parametrize(
    ("shape", "cut"), [((3, 8, 8), (0, 0)), ((3, 10, 9), (1, 1)), ((1, 9, 6), (1, 1))]
)
def test_layers_of_the_paper(shape: tuple[int, int, int], cut: tuple[int, int]) -> None:
    net, z = generator(shape), latents(4)
    _, height, width = shape
    rows, columns = (height + 3) // 4, (width + 3) // 4
    weights = {name: value.detach() for name, value in net.named_parameters()}
    x = z @ weights["linear.weight"] + weights["linear.bias"]
    x = normalised(x.view(4, rows, columns, 128).permute(0, 3, 1, 2))
    x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    x = normalised(F.conv2d(x, weights["conv1.weight"], weights["conv1.bias"], padding=1))
    x = torch.where(x > 0, x, 0.2 * x).repeat_interleave(2, 2).repeat_interleave(2, 3)
    x = F.conv2d(x, weights["conv2.weight"], weights["conv2.bias"], padding=1)
    x = x[:, :, cut[0] : cut[0] + height, cut[1] : cut[1] + width]
    expected = normalised(x.tanh())
    torch.testing.assert_close(net(z), expected, rtol=1e-3, atol=1e-4)


def test_numbers_of_weights() -> None:
    net = generator((3, 224, 224), 1)
    shapes = {name: tuple(value.shape) for name, value in net.named_parameters()}
    assert shapes == {
        "linear.weight": (1, 128 * 56 * 56),
        "linear.bias": (128 * 56 * 56,),
        "conv1.weight": (64, 128, 3, 3),
        "conv1.bias": (64,),
        "conv2.weight": (3, 64, 3, 3),
        "conv2.bias": (3,),
        "norm0.weight": (128,),
        "norm0.bias": (128,),
        "norm1.weight": (64,),
        "norm1.bias": (64,),
    }


def test_weights_are_those_torch_would_draw() -> None:
    """The same numbers from the same seed."""
    net = generator((3, 12, 8), 16, seed=3)
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        usual = {
            "linear": torch.nn.Linear(16, 128 * 3 * 2),
            "conv1": torch.nn.Conv2d(128, 64, 3),
            "conv2": torch.nn.Conv2d(64, 3, 3),
        }
    for name, layer in usual.items():
        for part in ("weight", "bias"):
            ours = net.get_submodule(name).get_parameter(part)
            expected = layer.get_parameter(part)
            columns = (name, part) == ("linear", "weight")
            torch.testing.assert_close(ours, expected.T if columns else expected)


def test_the_generator_given_decides_and_no_other() -> None:
    state = torch.random.get_rng_state()
    one = generator((3, 8, 8))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(5)
    two, other = generator((3, 8, 8)), generator((3, 8, 8), seed=1)
    torch.random.set_rng_state(state)
    for name, value in one.named_parameters():
        assert torch.equal(value, two.get_parameter(name))
        if not name.startswith("norm"):
            assert not torch.equal(value, other.get_parameter(name))


def test_statistics_are_always_those_of_the_batch() -> None:
    net, z = generator((3, 8, 8)), latents(4)
    first = net(z)
    net(latents(4, seed=1))
    assert torch.equal(net(z), first)
    assert torch.equal(net.eval()(z), first)


def test_gradients_reach_latents_and_every_weight() -> None:
    net, z = generator((3, 8, 8)), latents(4).requires_grad_()
    probe = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    (net(z) * probe).sum().backward()
    assert z.grad is not None
    assert (z.grad != 0).all()
    for name, value in net.named_parameters():
        assert value.grad is not None, name
        assert value.grad.any(), name
