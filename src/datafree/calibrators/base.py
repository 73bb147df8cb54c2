"""Choosing activation ranges from images: the pass over the student that all calibrators share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, fx, nn

from datafree.config import Hyperparameters, InputSpec
from datafree.errors import ModelError
from datafree.graph.overflow import described
from datafree.graph.statistics import Statistics
from datafree.progress import Step
from datafree.quant.grid import Grid
from datafree.quant.modules import ActivationQuantizer, Quantizer
from datafree.registry import method_name
from datafree.tensors import extremes

Observe = Literal["quantized", "float"]


class RangeRule(Hyperparameters):
    """Base of all that choose activation ranges: from images (`Calibrator`), or without any."""

    citation: ClassVar[str] = ""
    """Where the method comes from: authors, title, venue, year."""

    @property
    def name(self) -> str:
        """The rule's name: the stem of its file."""
        return method_name(type(self))


class ImagelessRule(RangeRule):
    """Base of rules that need no images: the network alone tells the ranges."""

    @abstractmethod
    def set_ranges(
        self,
        student: fx.GraphModule,
        folded: fx.GraphModule,
        statistics: Statistics,
        spec: InputSpec,
    ) -> None:
        """Set the range of every `ActivationQuantizer` of `student`.

        Args:
            student: made from `folded`, with node names kept; changed in place.
            folded: the float graph; not changed.
            statistics: of its layers, see `datafree.graph.statistics`.
            spec: input of both.

        Raises:
            ModelError: a range cannot be known without images; the message names the tensor.
        """  # fmt: skip


class Calibrator(RangeRule):
    """Base of all calibrators: watches the values of one tensor and names a range.

    A calibrator keeps no state of its own: `update` takes the state so far and returns the next.
    """

    tight: ClassVar[bool] = True
    """Whether its ranges hold the values closely; otherwise learned steps only begin there."""

    @abstractmethod
    def update(self, state: Any, values: Tensor) -> Any:
        """Take in one batch.

        Args:
            state: what the previous call returned, or None at first.
            values: (B, …) values of the tensor for B images.

        Returns:
            The next state.
        """

    @abstractmethod
    def range(self, state: Any, grid: Grid) -> tuple[Tensor, Tensor]:
        """The range to quantize: two scalars.

        Args:
            state: what `update` returned.
            grid: the codes the range will be cut into.
        """


def calibrate(
    student: nn.Module,
    batches: Iterable[Tensor],
    calibrator: Calibrator,
    *,
    observe: Observe = "quantized",
    step: Step | None = None,
) -> None:
    """Set the range of every `ActivationQuantizer` of `student`, in one pass over the images.

    Args:
        student: changed in place; hooks are removed however the call ends.
        batches: images (B, C, H, W) on the student's device.
        calibrator: rule that turns values into a range.
        observe: `quantized` quantizes while observing, so that later layers see what they will get
            (ZeroQ, DSG); `float` quantizes neither weights nor activations, so that every range is
            that of the float network: for students whose weights are yet to be learned, as QDrop
            and DFQF's Algorithm 2 have it. Weights rounded to the nearest would pull the ranges to
            where learned ones do not go.
        step: called with 1 after every batch.

    Raises:
        ModelError: a quantizer saw no value, or one that is not finite; the message names it.
    """
    quantizers = {n: m for n, m in student.named_modules() if isinstance(m, ActivationQuantizer)}
    states: dict[str, Any] = {}

    handles = [
        module.register_forward_pre_hook(_observer(student, name, calibrator, states, observe))
        for name, module in quantizers.items()
    ]
    switches = [m for m in student.modules() if isinstance(m, Quantizer)]
    enabled = [module.enabled for module in switches]
    try:
        for module in quantizers.values() if observe == "quantized" else switches:
            module.enabled = observe == "quantized"
        with torch.no_grad():
            for images in batches:
                student(images)
                if step is not None:
                    step(1)
            if observe == "float":
                for name, state in states.items():
                    quantizers[name].set_range(*calibrator.range(state, quantizers[name].grid))
    finally:
        for handle in handles:
            handle.remove()
        for module, before in zip(switches, enabled, strict=True):
            module.enabled = before
    missing = [name for name, module in quantizers.items() if not module.has_range]
    if missing:
        raise ModelError(
            f"no image reached the quantizer {missing[0]}: calibration needs at least one batch"
        )


def _observer(
    student: nn.Module, name: str, calibrator: Calibrator, states: dict[str, Any], observe: Observe
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook of the quantizer called `name`, whose state it keeps in `states`."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, ActivationQuantizer)  # noqa: S101 - hooks are placed on these only
        values = inputs[0].detach()
        # Of the extremes alone: of all values it would take their memory once more.
        if not bool(torch.isfinite(torch.stack(extremes(values))).all()):
            raise ModelError(
                f"{_source(student, name)} returns numbers that are not finite: the images or"
                " the network overflow there"
            )
        states[name] = calibrator.update(states.get(name), values)
        if observe == "quantized":  # what follows sees what this range makes of the values
            module.set_range(*calibrator.range(states[name], module.grid))

    return hook


def _source(student: nn.Module, quantizer: str) -> str:
    """What the values before `quantizer` come from, in words: the user's own name of a layer."""
    if not isinstance(student, fx.GraphModule):
        return f"what {quantizer} reads"
    node = next(iter(student.graph.find_nodes(op="call_module", target=quantizer)))
    return described(student, node.all_input_nodes[0])
