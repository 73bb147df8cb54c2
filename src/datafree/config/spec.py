"""What a network takes and returns."""

from __future__ import annotations

from typing import Any, Self

from pydantic import (
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from datafree.config.base import Frozen
from datafree.config.inputs import Input, check_normalisation, layout
from datafree.config.outputs import Output


class InputSpec(Frozen):
    """What a network takes and returns."""

    shape: tuple[int, int, int]
    """Channels, height, width of one image, or of all inputs of an item in one tensor."""
    mean: tuple[FiniteFloat, ...]
    """Per channel, subtracted from images scaled to 0..1."""
    std: tuple[FiniteFloat, ...]
    """Per channel, divided by after the mean is subtracted."""
    classes: int = Field(ge=1)
    """Number of outputs of the classifier; 1 is the logit of the second of two classes, and what
    networks without classes have here."""
    outputs: tuple[Output, ...] = ()
    """What it returns; empty where that is one tensor of (batch, classes). Graphs return several as
    one tensor: `datafree.graph.outputs`."""
    inputs: tuple[Input, ...] = ()
    """What it takes; empty where that is one image. Graphs take several as one tensor, which
    `shape`, `mean` and `std` then describe: `datafree.graph.inputs`."""

    @model_serializer(mode="wrap")
    def _told(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found = handler(self)
        if not self.inputs:  # as files had it before there were several
            found.pop("inputs", None)
        return found

    @property
    def picture(self) -> tuple[int, int] | None:
        """First and last channel, this left out, of the first image in the tensor graphs take.

        None where there is no image.
        """
        if not self.inputs:
            return 0, self.shape[0]
        for one, place in zip(self.inputs, layout(self.inputs)[0], strict=True):
            if one.kind == "image":
                return place.start, place.start + place.channels
        return None

    @property
    def image_channels(self) -> tuple[bool, ...]:
        """Of every channel of the tensor that graphs take, whether it is one of an image."""
        if not self.inputs:
            return (True,) * self.shape[0]
        found: list[bool] = []
        for one, place in zip(self.inputs, layout(self.inputs)[0], strict=True):
            found += [one.kind == "image" and place.own] * place.channels
        return tuple(found)

    @property
    def heads(self) -> tuple[Output, ...]:
        """What it returns, of every network."""
        if self.outputs:
            return self.outputs
        kind = "classes" if self.classes > 1 else "one_logit"
        return (Output(name="logits", shape=(self.classes,), kind=kind),)

    @property
    def principal(self) -> Output:
        """What the network is about: its first output with classes, or else its first."""
        for head in self.heads:
            if head.kind != "values":
                return head
        first, *_ = self.heads
        return first

    @property
    def labelled(self) -> bool:
        """Whether the network says of an image which class it is of."""
        return self.principal.kind in ("classes", "one_logit")

    @property
    def task(self) -> str:
        """What the network does, in words."""
        kind, heads = self.principal.kind, self.heads
        if kind == "values":
            several = len(heads) > 1 or len(self.principal.shape) == 2
            return "detection heads" if several else "regression or embedding"
        return {"classes": "classes", "one_logit": "one logit"}.get(kind, "dense classes")

    @property
    def answers(self) -> int:
        """Number of classes that the outputs speak of."""
        return max(self.classes, 2)

    @field_validator("shape")
    @classmethod
    def _positive(cls, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        if min(shape) < 1:
            raise ValueError(f"all of channels, height, width must be at least 1, got {shape}")
        return shape

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> Self:
        if not self.inputs:
            check_normalisation(self.shape[0], self.mean, self.std, image=True)
            return self
        check_normalisation(self.shape[0], self.mean, self.std, image=False)
        if layout(self.inputs)[1] != self.shape:
            raise ValueError(f"the inputs stand in {layout(self.inputs)[1]}, not in {self.shape}")
        return self
