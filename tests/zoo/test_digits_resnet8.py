from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datafree.zoo import ZOO, digits_resnet8, load_digits_test

ENTRY = ZOO["digits_resnet8"]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return digits_resnet8()


@pytest.fixture(scope="module")
def split() -> tuple[Tensor, Tensor]:
    images, labels = load_digits_test()
    mean, std = torch.tensor(ENTRY.mean), torch.tensor(ENTRY.std)
    scaled = torch.from_numpy(images).float() / 255
    return ((scaled - mean) / std).permute(0, 3, 1, 2), torch.from_numpy(labels)


def norms_of(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@torch.no_grad()
def test_accuracy_on_the_held_out_split(model: nn.Module, split: tuple[Tensor, Tensor]) -> None:
    images, labels = split
    logits = model(images)
    assert torch.isfinite(logits).all()
    assert (logits.argmax(1) == labels).float().mean() >= 0.985


def test_split_is_what_the_entry_says() -> None:
    images, labels = load_digits_test()
    channels, height, width = ENTRY.input_shape
    assert images.shape == (360, height, width, channels)
    assert images.dtype == np.uint8
    assert images.max() == 255
    assert labels.dtype == np.int64
    assert set(labels.tolist()) == set(range(ENTRY.classes))
    assert np.bincount(labels).min() >= 34, "the split is stratified"


def test_weights_are_small() -> None:
    assert len(ENTRY.weights.read_bytes()) < 500_000


def test_layers_with_weights(model: nn.Module) -> None:
    assert len(norms_of(model)) == 9
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 9  # stem, two per block, two shortcuts
    assert sum(isinstance(module, nn.Linear) for module in model.modules()) == 1


@torch.no_grad()
def test_batch_norm_statistics_are_those_of_real_images(
    model: nn.Module, split: tuple[Tensor, Tensor]
) -> None:
    """The stored statistics predict those of unseen real images: synthesis relies on it."""
    inputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs[module] = args[0]

    handles = [norm.register_forward_pre_hook(keep) for norm in norms_of(model)]
    try:
        model(split[0])
    finally:
        for handle in handles:
            handle.remove()
    for norm in norms_of(model):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        std = norm.running_var.sqrt()
        assert (std > 1e-3).all(), "no dead channel"
        shift = (inputs[norm].mean((0, 2, 3)) - norm.running_mean) / std
        ratio = inputs[norm].std((0, 2, 3)) / std
        assert shift.abs().max() < 0.25
        assert ((ratio > 0.75) & (ratio < 1.33)).all()


def test_loads_in_eval_mode_and_afresh(model: nn.Module) -> None:
    assert not model.training
    other = digits_resnet8()
    assert other is not model
    for (name, one), (_, two) in zip(
        model.state_dict().items(), other.state_dict().items(), strict=True
    ):
        assert torch.equal(one, two), name
        if one.numel() > 0:
            assert one.data_ptr() != two.data_ptr(), name


@pytest.mark.parametrize("count", [1, 3])
def test_outputs_are_finite_at_any_batch_size(model: nn.Module, count: int) -> None:
    channels, height, width = ENTRY.input_shape
    generator = torch.Generator().manual_seed(0)
    logits = model(torch.randn(count, channels, height, width, generator=generator) * 10)
    assert logits.shape == (count, ENTRY.classes)
    assert torch.isfinite(logits).all()


def test_statistics_given_match_the_images() -> None:
    images, _ = load_digits_test()
    scaled = images / 255
    assert scaled.mean() == pytest.approx(ENTRY.mean[0], abs=0.02)
    assert scaled.std() == pytest.approx(ENTRY.std[0], abs=0.02)
