"""Which numbers a student is allowed: bits, grids, and where quantizers stand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from datafree.config.base import Frozen
from datafree.config.fields import Shown
from datafree.config.widths import FLOAT, input_of, layer_width, name_patterns, weights_of
from datafree.targets import Placement, Target, load_target
from datafree.targets.base import nearest

Policy = Literal["all", "first_last_8", "brecq", "qdrop"]
Bits = Annotated[int, Field(ge=2, le=8)]
LayerWidth = Annotated[int | str, BeforeValidator(layer_width)]
"""Bits of a layer's weights, or of its weights and its input as `W4A8`."""

_PATTERN = re.compile(r"W(\d+)A(\d+)")
TARGETED = ("placement", "symmetric_weights", "symmetric_activations", "weight_granularity")
"""Fields whose default is the target's."""


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
    if activations != FLOAT and not 2 <= activations <= 8:
        raise ValueError(
            f"{value}: activations have 2 to 8 bits, or 32, which leaves them in float"
        )
    return f"W{weights}A{activations}"


def known_target(name: str) -> str:
    """`name`, if there is such a target.

    Raises:
        ValueError: there is none.
    """
    load_target(name)
    return name


def _target(known: Mapping[str, Any]) -> Target:
    """The rules of the target among the fields validated so far."""
    return load_target(known.get("target", "paper"))


class Scheme(Frozen):
    """Which numbers a student is allowed: bits, grids, and where quantizers stand."""

    panel: ClassVar[str] = "Numbers"

    target: Annotated[str, AfterValidator(known_target), Shown(value="NAME")] = "paper"
    """What is to execute the student, a file of `datafree.targets`."""
    bits: Annotated[str, BeforeValidator(named_bits)] = "W8A8"
    """Bits of weights and activations, from W8A8 to W2A2; W4A32 leaves activations in float."""
    policy: Policy = "all"
    """Which layers have these bits: `all`; all but the first and last layer's weights, which have 8
    (`first_last_8`); `brecq`, as BRECQ, Genie and SADAG have it: these weights and the inputs of
    the second and the last layer at 8 bits, the network's own input in float; or `qdrop`, as QDrop
    has it: the same, but the second layer's input has few bits too."""
    placement: Annotated[Placement, Shown("the target's")] = Field(
        default_factory=lambda known: _target(known).placement
    )
    """Where activations are quantized: at `every_edge` that the target computes in integers; or, as
    in papers, at `every_input` of a convolution or linear layer (the network's own input at 8 bits,
    like the image it is), or only `after_activation` functions."""
    symmetric_weights: Annotated[bool, Shown("the target's")] = Field(
        default_factory=lambda known: _target(known).usual[0]
    )
    """Signed codes around a zero point of 0 for weights, instead of affine ones. It makes no file
    for TensorRT, which wants that of activations too: `target` does."""
    symmetric_activations: Annotated[bool, Shown("the target's")] = Field(
        default_factory=lambda known: _target(known).usual[1]
    )
    """Zero point 0 for activations, their codes unsigned where the position in the graph is never
    negative and the target has unsigned ones."""
    weight_granularity: Annotated[Literal["channel", "tensor"], Shown("the target's")] = Field(
        default_factory=lambda known: _target(known).granularities[0]
    )
    """One weight grid per output `channel`, or one per `tensor`."""
    weight_range: Literal["auto", "minmax", "mse", "lsq"] = "auto"
    """Range of the weights' grids: their extremes (`minmax`); the least error to the power 2.4 over
    a hundred shrunken ranges (`mse`); the step that LSQ starts learning from, twice the mean
    magnitude over the root of the largest code (`lsq`); or `auto`: `mse` where rounding is learned
    or bits are mixed, else `minmax`."""
    layer_bits: Annotated[Mapping[str, LayerWidth], Shown(value="LAYER=BITS")] = Field(
        default_factory=dict
    )
    """Bits of single layers: of the weights as 8, of weights and input as W4A8. Layers are named as
    they are printed, or by patterns such as `layer3.*`; a name outweighs patterns, and of these the
    last one holds. What several layers read has the most bits that one of them asks for. Layers
    that the policy keeps at 8 bits cannot be given others."""
    keep_float: Annotated[
        tuple[str, ...],
        BeforeValidator(name_patterns),
        Shown("no layer", "LAYER", repeated=True),
    ] = ()
    """Layer that stays in float, weights and all, by its name or by a pattern such as `layer3.*`.
    In a file for a runtime it reads 8-bit codes where the operator before it has an integer
    kernel."""
    ste: Literal["clipped", "clip_first", "full"] = "clipped"
    """Gradient of rounding where values are clipped: none (`clipped`); none either from half a step
    before, where values are rounded to the outermost code (`clip_first`: LSQ, and the code of Genie
    and DFQF); or passed on (`full`)."""

    @model_validator(mode="after")
    def _legal(self) -> Self:
        rules, name = self.rules, self.target
        if self.placement not in rules.placements:
            raise ValueError(
                f"target {name} has quantizers at {rules.placement}, not {self.placement}: leave"
                f" placement out, or choose target paper"
            )
        if self.weight_granularity not in rules.granularities:
            raise ValueError(
                f"target {name} has one weight grid per {rules.granularities[0]}, not per"
                f" {self.weight_granularity}: leave weight_granularity out"
            )
        for field, asked, allowed in (
            ("symmetric_weights", self.symmetric_weights, rules.symmetric_weights),
            ("symmetric_activations", self.symmetric_activations, rules.symmetric_activations),
        ):
            if allowed is not None and asked != allowed:
                kind = "zero point 0" if allowed else "affine grids"
                raise ValueError(
                    f"target {name} takes {kind} for {field.partition('_')[2]}: leave {field} out,"
                    " or choose target paper"
                )
        if self.bits != "float":  # of a distillation
            self._legal_widths(rules)
        return self

    def _legal_widths(self, rules: Target) -> None:
        weights, activations = self._numbers()
        legal = (
            nearest(weights, rules.weight_widths), nearest(activations, rules.activation_widths)
        )  # fmt: skip
        # Nothing is quantized at 32 bits, which every target can run.
        if activations == FLOAT:
            legal = (legal[0], activations)
        if legal != (weights, activations):
            raise ValueError(
                f"target {self.target} has no {self.bits}: the nearest is"
                f" W{legal[0]}A{legal[1]}, or choose target onnxruntime or paper"
            )
        for name, width in self.layer_bits.items():
            self._legal_layer(rules, name, width)

    def _legal_layer(self, rules: Target, name: str, width: int | str) -> None:
        asked = [("weights", weights_of(width), rules.weight_widths)]
        if (own := input_of(width)) is not None:
            if self.activations == FLOAT:
                raise ValueError(
                    f"layer_bits asks for {width} in {name} and {self.bits} leaves all activations"
                    f" in float: write {name}={weights_of(width)}"
                )
            asked.append(("activations", own, rules.activation_widths - {FLOAT}))
        for what, bits, allowed in asked:
            if bits not in allowed:
                raise ValueError(
                    f"target {self.target} has no {what} of {bits} bits, which layer_bits asks for"
                    f" {name}: the nearest is {nearest(bits, allowed)}"
                )

    @property
    def rules(self) -> Target:
        """What `target` takes."""
        return load_target(self.target)

    @property
    def float_input(self) -> bool:
        """Whether the policy leaves the network's own input in float."""
        return self.policy in ("brecq", "qdrop")

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
        """Short name as in the papers' tables, e.g. ``W4A4``.

        ``WmixedA8`` with `layer_bits`, ``W4A4+float`` where layers stay in float.
        """
        weights, activations = str(self.weights), str(self.activations)
        if self.layer_bits:
            inputs = {input_of(width) for width in self.layer_bits.values()} - {None}
            weights, activations = "mixed", "mixed" if inputs else activations
        return f"W{weights}A{activations}" + "+float" * bool(self.keep_float)

    def with_weights(self, bits: int) -> Self:
        """The same with so many bits for weights."""
        return self.model_copy(update={"bits": f"W{bits}A{self.activations}"})

    def _numbers(self) -> tuple[int, int]:
        weights, _, activations = self.bits.removeprefix("W").partition("A")
        return int(weights), int(activations)
