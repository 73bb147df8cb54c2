"""Ranges from batch norms, without any image (algorithms B.4.6)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import fx

from datafree.calibrators.base import ImagelessRule
from datafree.config import InputSpec
from datafree.errors import ModelError
from datafree.graph.propagate import propagate
from datafree.graph.statistics import Statistics
from datafree.quant.modules import ActivationQuantizer


class BNStatistics(ImagelessRule):
    """Ranges from batch norms without images: ``beta ± n |gamma|``, after a ReLU from 0.

    A tensor's range is that of its widest channel. Sums, concatenations, pooling and all activation
    functions are followed, see `datafree.graph.propagate`; the network's input covers normalised
    pixels 0 … 255. The mean over positions keeps the range of what it is taken of: safe, but wider
    than needed.
    """

    citation: ClassVar[str] = (
        "Nagel et al. (2019), Data-Free Quantization Through Weight Equalization and Bias"
        " Correction, ICCV, section 5"
    )

    deviations: float = Field(default=6.0, gt=0)
    """Reach n of a range around the mean of a channel, in standard deviations of the channel."""

    def set_ranges(
        self, student: fx.GraphModule, folded: fx.GraphModule, statistics: Statistics,
        spec: InputSpec,
    ) -> None:  # fmt: skip
        """Set the range of every `ActivationQuantizer` of `student`; see the base class."""
        moments = propagate(folded, statistics, spec, deviations=self.deviations)
        for node in student.graph.nodes:
            if node.op != "call_module":
                continue
            quantizer = student.get_submodule(str(node.target))
            if not isinstance(quantizer, ActivationQuantizer):
                continue
            found = moments[node.all_input_nodes[0].name]
            if not found.has_range:
                raise ModelError(
                    f"the range before {node.target} is not known from batch norms: no batch norm"
                    " stands between it and the layers before; calibrate on images instead, with"
                    " --calibrator mse"
                )
            quantizer.set_range(found.low.min(), found.high.max())
