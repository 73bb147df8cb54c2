"""What a network takes and returns."""

from __future__ import annotations

from typing import Self

from pydantic import Field, FiniteFloat, field_validator, model_validator

from datafree.config.base import Frozen
from datafree.config.outputs import Output

_WHITE = 255
_LARGEST = 2.0
"""Mean or deviation that images between 0 and 1 can have, with room for what is only unusual."""


class InputSpec(Frozen):
    """What a network takes and returns."""

    shape: tuple[int, int, int]
    """Channels, height, width of one image."""
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
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.shape[0]:
                raise ValueError(f"{name} has {len(values)} values for {self.shape[0]} channels")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        if max(*map(abs, self.mean), *self.std) > _LARGEST:
            mean, std = (_scaled(values) for values in (self.mean, self.std))
            raise ValueError(
                "mean and std are of images scaled to 0..1, and these are of pixels from 0 to 255:"
                f" divide both by 255, mean={mean} std={std}"
            )
        return self


def _scaled(values: tuple[float, ...]) -> str:
    """Numbers in units of pixels as those of images from 0 to 1."""
    return ",".join(f"{value / _WHITE:.4g}" for value in values)
