"""What a network takes, where that is more, or something else, than one image.

Inside, all inputs of an item stand in one tensor (C, H, W), the only form that stages know; this
module says where each of them stands there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import FiniteFloat, model_validator

from datafree.config.base import Frozen

InputKind = Literal["image", "values"]
"""An image has 256 values between black and white; values are numbers of any size."""
Shape = tuple[int, ...]
_IMAGE_RANK = 3
_WHITE = 255
_LARGEST = 2.0
"""Mean or deviation that images between 0 and 1 can have, with room for what is only unusual."""


class Input(Frozen):
    """One tensor that a network takes."""

    name: str
    """Of the argument."""
    shape: tuple[int, ...]
    """Of one item."""
    kind: InputKind
    """Three dimensions are an image, (channels, height, width), all others values."""
    mean: tuple[FiniteFloat, ...]
    """Per channel, the first dimension: taken off values, or off images scaled to 0..1."""
    std: tuple[FiniteFloat, ...]
    """Per channel, divided by after the mean is subtracted."""

    @property
    def size(self) -> int:
        """Numbers of one item."""
        return math.prod(self.shape)

    @property
    def channels(self) -> int:
        """Length of the first dimension."""
        return self.shape[0] if self.shape else 1

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.shape and min(self.shape) < 1:
            raise ValueError(f"all dimensions of {self.name} must be at least 1, got {self.shape}")
        try:
            check_normalisation(self.channels, self.mean, self.std, image=self.kind == "image")
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
        return self


@dataclass(frozen=True)
class Place:
    """Where an input stands among the channels of the packed tensor.

    Attributes:
        start: first channel.
        channels: number of channels.
        own: it lies there as (channels, height, width); otherwise flat, followed by zeros.
    """

    start: int
    channels: int
    own: bool


def kind_of_input(shape: Sequence[int]) -> InputKind:
    """What an input of this shape most likely is."""
    return "image" if len(shape) == _IMAGE_RANK else "values"


def canonical(shape: Sequence[int]) -> tuple[int, int, int]:
    """(C, H, W) with the numbers of `shape` in their order.

    (D,) is (D, 1, 1), (C, L) is (C, 1, L), (C, T, H, W) is (C, T H, W).
    """
    first, *rest = (*shape, 1) if len(shape) < 2 else shape
    if len(shape) == 0:
        return 1, 1, 1
    return first, math.prod(rest[:-1]), rest[-1]


def layout(inputs: Sequence[Input]) -> tuple[tuple[Place, ...], tuple[int, int, int]]:
    """Where each of `inputs` stands, and the shape (C, H, W) of the packed tensor.

    Height and width are those of the first image, else of the largest input. An input of another
    plane is flattened, and takes as many channels as hold it.
    """
    main = next((one for one in inputs if one.kind == "image"), None)
    main = main or max(inputs, key=lambda one: one.size)
    _, height, width = canonical(main.shape)
    places: list[Place] = []
    start = 0
    for one in inputs:
        channels, *plane = canonical(one.shape)
        own = plane == [height, width]
        taken = channels if own else -(-one.size // (height * width))
        places.append(Place(start, taken, own))
        start += taken
    return tuple(places), (start, height, width)


def packed_fields(inputs: Sequence[Input]) -> dict[str, Any]:
    """Shape, mean and std of the packed tensor, as fields of an `InputSpec` with these `inputs`.

    Inputs that lie flat have mean 0 and deviation 1 there.
    """
    places, shape = layout(inputs)
    mean: list[float] = []
    std: list[float] = []
    for one, place in zip(inputs, places, strict=True):
        mean += one.mean if place.own else [0.0] * place.channels
        std += one.std if place.own else [1.0] * place.channels
    return {"shape": shape, "mean": tuple(mean), "std": tuple(std), "inputs": tuple(inputs)}


def check_normalisation(
    channels: int, mean: Sequence[float], std: Sequence[float], *, image: bool
) -> None:
    """Refuse a mean and std that do not fit.

    Args:
        channels: to be normalised.
        mean: per channel.
        std: per channel.
        image: it is an image, scaled to 0..1.

    Raises:
        ValueError: their number is wrong, a std is not positive, or they are in units of pixels.
    """
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise ValueError(f"{name} has {len(values)} values for {channels} channels")
    if min(std) <= 0:
        raise ValueError(f"std must be positive, got {tuple(std)}")
    if image and max(*map(abs, mean), *std) > _LARGEST:
        told = [",".join(f"{value / _WHITE:.4g}" for value in values) for values in (mean, std)]
        raise ValueError(
            "mean and std are of images scaled to 0..1, and these are of pixels from 0 to 255:"
            f" divide both by 255, mean={told[0]} std={told[1]}"
        )


def told_of(inputs: Sequence[Input]) -> dict[str, Any]:
    """What a user would say of `inputs`: `input_shape`, `mean` and `std`, one of each for each."""
    return {
        "input_shape": tuple(one.shape for one in inputs),
        "mean": tuple(one.mean for one in inputs),
        "std": tuple(one.std for one in inputs),
    }


def shapes_of(given: Sequence[Any] | None) -> tuple[Shape, ...] | None:
    """The shape of every input, from one shape or several; None from None."""
    if given is None:
        return None
    several = bool(given) and all(isinstance(one, tuple | list) for one in given)
    return tuple(tuple(one) for one in given) if several else (tuple(given),)


def is_plain(shapes: Sequence[Shape]) -> bool:
    """Whether a network of these inputs takes one image and nothing else."""
    return len(shapes) == 1 and len(shapes[0]) == _IMAGE_RANK


def words(shape: Sequence[int]) -> str:
    """A shape as people write it, with the names of its dimensions where it is an image."""
    sizes = ", ".join(map(str, shape))
    return f"{sizes} (channels, height, width)" if len(shape) == _IMAGE_RANK else f"({sizes})"
