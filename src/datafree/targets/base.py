"""The rules of a runtime, as plain data that a scheme is bound to before anything is calibrated."""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Placement = Literal["every_edge", "every_input", "after_activation"]
Operator = Literal[
    "conv", "linear", "add", "mul", "cat", "avg_pool", "sigmoid", "silu", "leaky_relu",
]  # fmt: skip
"""Operators that a runtime may have an integer kernel for."""

_WIDTHS = frozenset(range(2, 9))


@dataclass(frozen=True)
class Target:
    """Which numbers a runtime takes, and between which operators it wants them.

    Attributes:
        what: one line for people.
        source: where the rules come from.
        placements: where quantizers may stand, the usual place first.
        weight_widths: bits that weights may have.
        activation_widths: bits that activations may have.
        symmetric_weights: zero point 0 for weights: required, forbidden, or None for either.
        symmetric_activations: the same for activations.
        usual: what `symmetric_weights` and `symmetric_activations` are where either may be.
        granularities: grids of weights, the usual one first.
        affine_weights: bits of weights whose grids are affine although zero points are 0: their
            codes still fit the stored type after the zero point is taken off them.
        narrow_weights: codes of 8-bit weights from -127, so that they have a mirror image.
        signed_activations: codes of symmetric activations reach below zero even where no value
            does.
        even_zero_points: zero points of activations are even: rounding before and after they are
            added is the same then.
        power_of_two: scales are powers of two.
        smallest_range: that a grid may cover.
        ratios: smallest and largest ratio of the step of what a kernel computes (of a layer, the
            product of its scales; of an addition, those of its inputs) to the step of its output;
            None for any.
        fixed: scale and zero point, for codes from 0, of the result of an operator that knows no
            others: `sigmoid`, `softmax`, `tanh`, `log_softmax`.
        suffix: of the file that it loads.
        integer_bias: biases are int32 at the product of the scales of input and weight.
        exact: its arithmetic is known to the last bit, see `datafree.graph.integer`.
        operators: those with an integer kernel that is not slower than float.
        behind: operators whose kernel is integer only with a quantizer behind them.
        absorbs_add: an addition is computed inside the convolution before it, whose own output then
            carries no quantizer.
        same_grid: operators whose inputs and output share one grid.
    """

    what: str
    source: str
    placements: tuple[Placement, ...] = ("every_edge",)
    weight_widths: frozenset[int] = _WIDTHS
    activation_widths: frozenset[int] = _WIDTHS
    symmetric_weights: bool | None = True
    symmetric_activations: bool | None = None
    usual: tuple[bool, bool] = (True, False)
    granularities: tuple[Literal["channel", "tensor"], ...] = ("channel", "tensor")
    affine_weights: frozenset[int] = frozenset()
    narrow_weights: bool = False
    signed_activations: bool = False
    even_zero_points: bool = False
    power_of_two: bool = False
    smallest_range: float = 0.0
    ratios: tuple[float, float] | None = None
    fixed: Mapping[str, tuple[float, int]] = field(default_factory=dict[str, tuple[float, int]])
    suffix: str = ".onnx"
    integer_bias: bool = True
    exact: bool = False
    operators: frozenset[Operator] = field(default_factory=frozenset[Operator])
    behind: frozenset[Operator] = field(default_factory=frozenset[Operator])
    absorbs_add: bool = False
    same_grid: frozenset[Operator] = field(default_factory=frozenset[Operator])

    @property
    def numbers(self) -> str:
        """Widths and grids in a few words."""
        widths = (_spoken(self.weight_widths), _spoken(self.activation_widths - {32}))
        grids = ["power-of-two scales"] if self.power_of_two else []
        grids += ["zero points 0"] if self.symmetric_activations else []
        return ", ".join((f"W{widths[0]} A{widths[1]}", *grids, f"per {self.granularities[0]}"))

    @property
    def placement(self) -> Placement:
        """Where quantizers stand unless another place is asked for."""
        return self.placements[0]


def target_names() -> list[str]:
    """Names of all targets, sorted."""
    path = importlib.import_module(__name__.rpartition(".")[0]).__path__
    return sorted(module.name for module in pkgutil.iter_modules(path) if module.name != "base")


@functools.cache
def load_target(name: str) -> Target:
    """The rules called `name`.

    Raises:
        ValueError: there are none; the message offers the nearest names.
    """
    if name not in target_names():
        close = difflib.get_close_matches(name.lower(), target_names(), n=3)
        known = f"did you mean {' or '.join(close)}" if close else f"known: {_listed()}"
        raise ValueError(f"{name!r} is no target ({known})")
    found = importlib.import_module(f"{__name__.rpartition('.')[0]}.{name}").TARGET
    assert isinstance(found, Target)  # noqa: S101 - a mistake of its author
    return found


def _spoken(widths: frozenset[int]) -> str:
    return str(*widths) if len(widths) == 1 else f"{min(widths)}-{max(widths)}"


def _listed() -> str:
    return ", ".join(target_names())


def nearest(value: int, allowed: Iterable[int]) -> int:
    """The number of `allowed` nearest to `value`, the larger of two."""
    return min(sorted(allowed, reverse=True), key=lambda one: abs(one - value))
