"""Several inputs side by side in one tensor, and back."""

from __future__ import annotations

import torch

from datafree.config.inputs import Input
from datafree.losses import input_part, pack, unpack


def taken(name: str, *shape: int) -> Input:
    kind = "image" if len(shape) == 3 else "values"
    channels = shape[0]
    return Input(name=name, shape=shape, kind=kind, mean=(0.0,) * channels, std=(1.0,) * channels)


def test_an_image_alone_is_its_own_tensor() -> None:
    image = torch.rand(2, 3, 4, 4)
    assert pack([image], ()) is image
    assert unpack(image, ()) == (image,)


def test_what_was_packed_comes_back_and_nothing_but_zeros_is_added() -> None:
    random = torch.Generator().manual_seed(0)
    inputs = (taken("image", 3, 4, 4), taken("vector", 5), taken("sound", 2, 20))
    tensors = [torch.rand(2, *one.shape, generator=random) + 1 for one in inputs]
    packed = pack(tensors, inputs)
    assert packed.shape == (2, 3 + 1 + 3, 4, 4)  # 5 numbers fit one plane of 16, 40 need three
    assert torch.equal(packed[:, :3], tensors[0])
    assert int((packed != 0).sum()) == sum(tensor.numel() for tensor in tensors)
    for found, tensor in zip(unpack(packed, inputs), tensors, strict=True):
        assert torch.equal(found, tensor) and found.is_contiguous()


def test_a_part_of_another_plane_takes_the_first_numbers_of_its_channels() -> None:
    packed = torch.arange(2 * 2 * 4.0).reshape(2, 2, 2, 2)
    assert input_part(packed, 0, 1, 1, (3,)).tolist() == [[4, 5, 6], [12, 13, 14]]
