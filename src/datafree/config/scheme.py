"""Which numbers a student is allowed: bits, grids, and where quantizers stand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field

from datafree.config.base import Frozen
from datafree.config.fields import Shown

Policy = Literal["all", "first_last_8", "brecq"]
Placement = Literal["every_input", "after_activation"]
Bits = Annotated[int, Field(ge=2, le=8)]

_PATTERN = re.compile(r"W(\d+)A(\d+)")
_FLOAT = 32  # bits of activations that are left in float


def named_bits(value: Any) -> str:
    """Bits of weights and activations as ``W4A8``.

    Raises:
        ValueError: the text is not of this form, or a number is out of range.
    """
    found = _PATTERN.fullmatch(str(value).upper())
    if found is None:
        raise ValueError(f"{value!r} is not understood: write weights and activations as W4A8")
    weights, activations = map(int, found.groups())
    if not 2 <= weights <= 8:
        raise ValueError(f"{value}: weights have 2 to 8 bits")
    if activations != _FLOAT and not 2 <= activations <= 8:
        raise ValueError(
            f"{value}: activations have 2 to 8 bits, or 32, which leaves them in float"
        )
    return f"W{weights}A{activations}"


class Scheme(Frozen):
    """Which numbers a student is allowed: bits, grids, and where quantizers stand."""

    panel: ClassVar[str] = "Numbers"

    bits: Annotated[str, BeforeValidator(named_bits)] = "W8A8"
    """Bits of weights and activations, from W8A8 to W2A2; W4A32 leaves activations in float."""
    policy: Policy = "all"
    """Which layers have these bits: `all`; all but the first and last layer's weights, which have 8
    (`first_last_8`); or `brecq`, as BRECQ, Genie and SADAG have it: these weights and the inputs of
    the second and the last layer at 8 bits, the network's own input in float."""
    placement: Placement = "every_input"
    """Where activations are quantized: at `every_input` of a convolution or linear layer, as
    integer kernels need (the network's own input at 8 bits, like the image it is); or only
    `after_activation` functions, as in the ZeroQ and DSG papers."""
    symmetric_weights: bool = False
    """Signed codes around a zero point of 0 for weights (TensorRT, LiteRT), instead of affine
    ones."""
    symmetric_activations: bool = False
    """Zero point 0 for activations, their codes unsigned where the position in the graph is never
    negative."""
    weight_granularity: Literal["channel", "tensor"] = "channel"
    """One weight grid per output `channel`, or one per `tensor`."""
    weight_range: Literal["auto", "minmax", "mse"] = "auto"
    """Range of the weights' grids: their extremes (`minmax`); the least error to the power 2.4 over
    a hundred shrunken ranges (`mse`); or `auto`: `mse` where rounding is learned or bits are mixed,
    else `minmax`."""
    layer_bits: Annotated[Mapping[str, Bits], Shown(value="LAYER=BITS")] = Field(
        default_factory=dict
    )
    """Bits of the weights of single layers, by layer path, after the policy: layers that it keeps
    at 8 bits cannot be given others."""
    ste: Literal["clipped", "full"] = "clipped"
    """Gradient of rounding where values are clipped: none (`clipped`), or passed on (`full`)."""

    @property
    def weights(self) -> int:
        """Bits of weights, 2 to 8."""
        return self._numbers()[0]

    @property
    def activations(self) -> int:
        """Bits of activations, 2 to 8, or 32 for activations left in float."""
        return self._numbers()[1]

    @property
    def label(self) -> str:
        """Short name as in the papers' tables, e.g. ``W4A4``; ``WmixedA8`` with `layer_bits`."""
        return f"WmixedA{self.activations}" if self.layer_bits else self.bits

    def with_weights(self, bits: int) -> Self:
        """The same with so many bits for weights."""
        return self.model_copy(update={"bits": f"W{bits}A{self.activations}"})

    def _numbers(self) -> tuple[int, int]:
        weights, _, activations = self.bits.removeprefix("W").partition("A")
        return int(weights), int(activations)
