"""Whether a file computes what the student does, and how far the student agrees with itself."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from datafree.losses import Heads, class_rows, parts
from datafree.quant.modules import ActivationQuantizer
from datafree.tensors import extremes, shared_copy

Predictor = Callable[[Tensor], Tensor]
"""Maps normalised images (B, C, H, W) to logits (B, K), or to all outputs side by side."""

_CHECK_BATCH = 32
_CHECK_VALUES = 4 * 3 * 224 * 224  # numbers of images that pass together: four of ImageNet's size
_MOVED = 1e-6  # of the largest number of a tensor
_TIE = 4.0  # leads of fewer root mean squares of the noise are ties
_CONSTANT = 1e-4  # deviation of outputs below which their size is the measure


@dataclass(frozen=True)
class Parity:
    """How a written file differs from the student on the same images.

    Attributes:
        images: number of images.
        mismatches: images, or positions, with another prediction.
        difference: largest absolute difference of two numbers that are returned.
        spread: largest minus smallest number that the student returns.
        noise: root mean square of the differences over the standard deviation of what the student
            returns; the worst of all outputs.
        rows: images, or positions; 0 of networks without classes.
    """

    images: int
    mismatches: int
    difference: float
    spread: float
    noise: float
    rows: int = -1

    def __post_init__(self) -> None:
        """A row for every image, unless something else is told."""
        if self.rows < 0:
            object.__setattr__(self, "rows", self.images)

    @property
    def agreement(self) -> float:
        """Share of identical predictions, in percent."""
        return 100 * (1 - self.mismatches / max(self.rows, 1))

    @property
    def relative(self) -> float:
        """Largest difference over the spread of the student's outputs."""
        return self.difference / max(self.spread, 1e-30)

    def __str__(self) -> str:
        """One line for messages and tables."""
        same = f"{self.agreement:.1f} % identical predictions on {self.images} images, logits off"
        what = same if self.rows else f"outputs on {self.images} images off"
        return (
            f"{what} by at most {self.difference:.3g} ({100 * self.relative:.2g} % of their spread,"
            f" noise {100 * self.noise:.2g} %)"
        )


def predict(predictor: Predictor, images: Tensor) -> Tensor:
    """What is returned for all `images`, (B, numbers), in batches, without gradients."""
    size = min(_CHECK_BATCH, max(1, _CHECK_VALUES // images[0].numel()))
    with torch.no_grad():
        return torch.cat([predictor(batch) for batch in images.cpu().split(size)])


def compare_outputs(expected: Tensor, actual: Tensor, heads: Heads = ()) -> Parity:
    """How `actual` differs from the student's `expected`, both (B, numbers) on the same images.

    Predictions that the noise explains count as the same: those whose lead in `expected` is less
    than four times its root mean square.

    Args:
        expected: by the student.
        actual: by the file.
        heads: what both return, if it is more than logits.
    """
    error = (actual - expected).double()
    pairs = list(zip(parts(expected, heads), parts(error, heads), strict=True))
    mismatches = rows = 0
    both = zip(class_rows(expected, heads), class_rows(actual, heads), strict=True)
    for own, other in both:
        lead = own.topk(2, 1).values
        tie = _TIE * float((other - own).double().square().mean().sqrt())
        apart = (own.argmax(1) != other.argmax(1)) & ((lead[:, 0] - lead[:, 1]) > tie)
        mismatches += int(apart.sum())
        rows += len(own)
    return Parity(
        images=len(expected),
        mismatches=mismatches,
        difference=float(error.abs().max()),
        spread=float(expected.max() - expected.min()),
        noise=max(_noise(part, off) for part, off in pairs),
        rows=rows,
    )


def sensitivity(student: fx.GraphModule, images: Tensor, heads: Heads = ()) -> Parity:
    """How far the student differs from itself: the worst of three ways to compute the same.

    Sums in another order (channels-last kernels), and twice the images, and all that quantizers
    read, moved by a millionth of the largest number there. The latter breaks ties, which torch
    breaks always alike: a bilinear resize of few codes is full of them.

    Args:
        student: on the CPU; not changed.
        images: (B, C, H, W), normalised.
        heads: what it returns, if it is more than logits.
    """
    expected = predict(student, images)
    others = [predict(_other_order(student), images)]
    random = torch.Generator().manual_seed(0)
    with _moving(student, random):
        others += [predict(student, _moved(images, random)) for _ in range(2)]
    found = [compare_outputs(expected, other, heads) for other in others]
    return max(found, key=lambda one: one.noise)


def alike(expected: Tensor) -> tuple[str, ...]:
    """A note where a student returns the same for all images (B, numbers)."""
    if len(expected) < 2 or bool((expected != expected[0]).any()):
        return ()
    return (
        "The student returns the same for all images it was checked on: images of this network, or"
        " more bits, would tell more.",
    )


def _other_order(student: fx.GraphModule) -> Predictor:
    """The same student with channels-last kernels, which sum in another order."""
    other = shared_copy(student)
    for parameter in other.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return lambda images: other(images.contiguous(memory_format=torch.channels_last))


def _moved(values: Tensor, random: torch.Generator) -> Tensor:
    low, high = extremes(values)
    step = _MOVED * torch.maximum(-low, high)
    return values + torch.randn(values.shape, generator=random).mul_(step)


@contextmanager
def _moving(student: nn.Module, random: torch.Generator) -> Generator[None]:
    """Let every quantizer read values that are moved a little."""

    def move(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_moved(given[0], random), *given[1:])

    quantizers = [m for m in student.modules() if isinstance(m, ActivationQuantizer)]
    handles = [quantizer.register_forward_pre_hook(move) for quantizer in quantizers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _noise(expected: Tensor, error: Tensor) -> float:
    """Root mean square of `error` over the deviation of `expected`, of one output."""
    wanted = expected.double()
    deviation = float((wanted - wanted.mean()).square().mean().sqrt())
    floor = max(_CONSTANT * float(wanted.abs().max()), 1e-30)
    return float(error.square().mean().sqrt()) / max(deviation, floor)
