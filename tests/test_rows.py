from __future__ import annotations

import torch
from torch import Tensor

from datafree.rows import Rows, passed, stored

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
            parts = [part for _, part in kept.chunks()]
            assert torch.equal(torch.cat(parts), values)


def test_rows_of_images_are_channels_last() -> None:
    kept = rows(torch.randn(4, 3, 5, 5))
    assert kept[torch.tensor([1, 2])].is_contiguous(memory_format=torch.channels_last)


def test_passing_rows_through_a_function() -> None:
    values = torch.randn(130, 3, 4, 4)
    result = passed(lambda x: x.mean((2, 3)), rows(values), 2**30)
    torch.testing.assert_close(result[slice(None)], values.mean((2, 3)))
