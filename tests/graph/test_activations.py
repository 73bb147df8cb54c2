from __future__ import annotations

import pytest
import torch
from torch import Tensor

from datafree.errors import ModelError
from datafree.graph.activations import Rows, passed, stored

CPU = torch.device("cpu")


def rows(values: Tensor, limit: int = 2**30) -> Rows:
    return stored(values, CPU, limit)


def test_rows_give_back_what_was_stored() -> None:
    for shape in [(70, 3, 5, 4), (70, 6), (70, 2, 3)]:
        values = torch.randn(shape)
        for limit in (2**30, 16):
            kept = rows(values, limit)
            index = torch.tensor([69, 0, 33])
            assert torch.equal(kept[index], values[index])
            assert kept.count == 70
            parts = [part for _, part in kept.chunks(64)]
            assert torch.equal(torch.cat(parts), values)


def test_rows_of_images_are_channels_last() -> None:
    kept = rows(torch.randn(4, 3, 5, 5))
    assert kept[torch.tensor([1, 2])].is_contiguous(memory_format=torch.channels_last)


def test_passing_rows_through_a_function() -> None:
    values = torch.randn(130, 3, 4, 4)
    result = passed(lambda x: x.mean((2, 3)), rows(values), 2**30)
    torch.testing.assert_close(result[slice(None)], values.mean((2, 3)))


def test_windows_of_an_image_stay_together() -> None:
    """Four rows an image, (4 B, 6): picking images picks their rows."""
    images = torch.randn(70, 3, 4, 2)
    result = passed(lambda x: x.reshape(-1, 6), rows(images), 2**30)
    assert torch.equal(result[torch.tensor([69, 3])], images[[69, 3]].reshape(-1, 6))
    again = passed(lambda x: 2 * x, result, 2**30)
    assert torch.equal(again[torch.tensor([5])], 2 * images[5].reshape(-1, 6))
    whole = passed(lambda x: x.reshape(-1, 3, 4, 2), again, 2**30)
    assert torch.equal(whole[slice(None)], 2 * images)


def test_images_must_come_first() -> None:
    with pytest.raises(ModelError, match="images are not the first dimension"):
        passed(lambda x: x.movedim(0, 1), rows(torch.randn(70, 3, 4, 2)), 2**30)
