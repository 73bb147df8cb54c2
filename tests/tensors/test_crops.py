"""Random crops of images."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from datafree.tensors.crops import crop_boxes, cropped
from networks import images


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(smallest=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_boxes_lie_inside_and_have_their_area_and_shape(smallest: float, seed: int) -> None:
    top, left, height, width = crop_boxes(50, smallest, generator(seed)).T
    assert min(top.min(), left.min()) >= 0
    assert max((top + height).max(), (left + width).max()) <= 1 + 1e-5
    assert (height * width).min() >= smallest - 1e-5
    assert 3 / 4 - 1e-4 <= (width / height).min() <= (width / height).max() <= 4 / 3 + 1e-4


def test_areas_are_uniform_and_boxes_go_everywhere() -> None:
    top, left, height, width = crop_boxes(4000, 0.5, generator()).T
    area = height * width
    assert area.mean().item() == pytest.approx(0.75, abs=0.01)
    assert area.std().item() == pytest.approx(0.5 / math.sqrt(12), abs=0.005)
    for start, length in ((top, height), (left, width)):
        room = (start / (1 - length))[length < 0.95]
        assert room.mean().item() == pytest.approx(0.5, abs=0.02)
    assert len(torch.unique(area)) > 3900, "every image has its own"


def test_a_crop_by_hand() -> None:
    """The right half of a line of four pixels, read at 1.75, 2.25, 2.75 and beyond the last."""
    line = torch.tensor([0.0, 1.0, 2.0, 7.0]).view(1, 1, 1, 4).repeat(2, 1, 1, 1)
    boxes = torch.tensor([[0.0, 0.5, 1.0, 0.5]]).repeat(2, 1)
    seen = cropped(line, boxes, torch.tensor([False, True]))
    expected = torch.tensor([1.75, 2 + 0.25 * 5, 2 + 0.75 * 5, 7.0])
    torch.testing.assert_close(seen[0].flatten(), expected)
    torch.testing.assert_close(seen[1].flatten(), expected.flip(0))


def test_crops_are_those_of_bilinear_sampling() -> None:
    x, boxes = images(6, 0, (3, 9, 13)), crop_boxes(6, 0.2, generator(3))
    mirrored = torch.arange(6) % 2 == 0
    top, left, height, width = boxes.T
    theta = torch.zeros(6, 2, 3)
    theta[:, 0, 0] = torch.where(mirrored, -width, width)
    theta[:, 1, 1] = height
    theta[:, 0, 2], theta[:, 1, 2] = 2 * left + width - 1, 2 * top + height - 1
    grid = F.affine_grid(theta, [6, 3, 9, 13], align_corners=False)
    expected = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(cropped(x, boxes, mirrored), expected, atol=1e-5, rtol=1e-4)


def test_the_whole_image_is_itself_and_gradients_flow() -> None:
    x = images(3, 1).requires_grad_()
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(3, 1)
    none = torch.zeros(3, dtype=torch.bool)
    torch.testing.assert_close(cropped(x, whole, none), x)
    lower_right = torch.tensor([[0.5, 0.5, 0.5, 0.5]]).repeat(3, 1)
    seen = cropped(x, lower_right, ~none)
    assert seen.shape == x.shape
    (gradient,) = torch.autograd.grad(seen.sum(), x)
    assert gradient.sum().item() == pytest.approx(seen.numel(), rel=1e-5)
    assert torch.equal(gradient[:, :, :3], torch.zeros(3, 3, 3, 8)), "out of sight"
    assert gradient[:, :, 4:, 4:].min() > 0
