"""What networks of several inputs take: names, means and deviations, dealt out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree.errors import ModelError
from datafree.models.inputs import argument_names, described_inputs, unfilled

COLOUR, GREY, WORDS = (3, 8, 8), (1, 8, 8), (4,)
Means = list[tuple[float, ...]]


def means(shapes: Sequence[tuple[int, ...]], given: Sequence[Any]) -> Means:
    deviations = [(1.0,) * shape[0] for shape in shapes]
    names = ["left", "right", "third"]
    return [one.mean for one in described_inputs(shapes, names, given, deviations, "Net")]


@pytest.mark.parametrize(
    ("shapes", "given", "expected"),
    [
        ([COLOUR, GREY], [0.1, 0.2, 0.3, 0.4], [(0.1, 0.2, 0.3), (0.4,)]),
        ([GREY, WORDS, COLOUR], [0.1, 0.2, 0.3, 0.4], [(0.1,), (0,) * 4, (0.2, 0.3, 0.4)]),
        ([COLOUR, COLOUR], [0.1, 0.2, 0.3], [(0.1, 0.2, 0.3)] * 2),
        ([COLOUR, WORDS], [0.1, 0.2, 0.3], [(0.1, 0.2, 0.3), (0,) * 4]),
        ([COLOUR, WORDS], [(0.5,), (7, 8, 9, 10)], [(0.5,) * 3, (7, 8, 9, 10)]),
        ([COLOUR, WORDS], [[0.1, 0.2, 0.3], ()], [(0.1, 0.2, 0.3), (0,) * 4]),
        ([WORDS], [7, 8, 9, 10], [(7, 8, 9, 10)]),
        ([WORDS], [7], [(7,) * 4]),
    ],
)
def test_means_are_dealt_out_to_the_inputs(
    shapes: list[tuple[int, ...]], given: Sequence[Any], expected: Means
) -> None:
    assert means(shapes, given) == expected


@pytest.mark.parametrize(
    ("shapes", "given", "said"),
    [
        ([COLOUR, GREY], [0.1, 0.2], "mean has 2 values, and the images of Net have 3 and 1 chan"),
        ([COLOUR, GREY], [0.1, 0.2, 0.3], "mean has 3 values, and the images of Net have 3 and 1"),
        ([WORDS, WORDS], [0.1] * 4, "mean has 4 values, and the images of Net have no channels"),
        ([COLOUR, GREY], [(0.5,)] * 3, "Net takes 2 inputs, and mean is given for 3: give it for"),
        ([COLOUR, GREY], [(0.5,), ()], "images are normalised that it takes as right: give mean"),
    ],
)
def test_means_that_fit_no_inputs_are_refused(
    shapes: list[tuple[int, ...]], given: Sequence[Any], said: str
) -> None:
    with pytest.raises(ModelError) as caught:
        means(shapes, given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_image_of_which_nothing_is_said_needs_both() -> None:
    with pytest.raises(ModelError, match=r"takes as x: give mean and std \(0 and 1 if they"):
        described_inputs([COLOUR, WORDS], ["x", "y"], None, None, "Net")


def test_names_become_arguments_no_two_alike() -> None:
    names = ["a.b", "a:b", "1st", "", "a_b"]
    found = described_inputs([WORDS] * 7, names, None, None, "Net")
    expected = ["a_b", "a_b_", "input_1st", "input", "a_b__", "input_5", "input_6"]
    assert [one.name for one in found] == expected


class Listed(nn.Module):
    def forward(self, *images: Tensor) -> Tensor:
        return torch.stack(images)


class Nothing(nn.Module):
    def forward(self) -> Tensor:
        return torch.zeros(1)


class Two(nn.Module):
    def forward(self, image: Tensor, vector: Tensor, scale: float = 1.0) -> Tensor:
        return image + vector * scale


@pytest.mark.parametrize(
    ("call", "count", "said"),
    [
        (Listed(), 5, None),
        (torch.add, 5, None),  # a function of C tells nothing
        (Two(), 2, None),
        (Two(), 3, None),  # one with a default may be given too
        (Two(), 4, "Net takes 3 inputs (image, vector, scale), and 4 shapes were given"),
        (Two(), 1, "Net takes 2 inputs (image, vector), and the shape of 1 was given"),
        (Nothing(), 1, "Net takes no image"),
    ],
)
def test_inputs_that_stay_unfilled(call: Callable[..., Any], count: int, said: str | None) -> None:
    found = unfilled([WORDS] * count, call, "Net")
    assert found is None if said is None else said in str(found)


def test_a_function_of_c_has_no_names() -> None:
    assert argument_names(torch.add) == []
    assert argument_names(Two()) == ["image", "vector", "scale"]
