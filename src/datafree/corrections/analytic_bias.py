"""Analytic bias correction: mean shifts known from batch norms alone (algorithms B.4.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from datafree.config import InputSpec
from datafree.graph.insert import first_calls
from datafree.graph.moments import response
from datafree.graph.propagate import propagate
from datafree.graph.statistics import Statistics
from datafree.quant.modules import QUANTIZED, QuantizableLayer, add_to_bias


@dataclass(frozen=True)
class AnalyticCorrection:
    """What was corrected.

    Attributes:
        shifts: what was taken off the bias of each layer, (C,), by path in execution order.
        skipped: paths of the layers left alone, as the mean of their input is not known: the first
            one (no batch norm stands before it), those behind a maximum over positions, and those
            behind layers without batch norm and an activation function.
    """

    shifts: dict[str, Tensor]
    skipped: tuple[str, ...]


def correct_biases_analytically(
    folded: fx.GraphModule, student: fx.GraphModule, statistics: Statistics, spec: InputSpec
) -> AnalyticCorrection:
    """Take off every bias what rounding the weights adds to the mean output; no image is needed.

    With the weight W of a layer, its quantized weight Q, and the mean E[x] of its input by channel
    (Nagel et al. 2019, section 4.2.1),

        b <- b - sum over kernel and channels of (Q - W) E[x]

    E[x] comes from the batch norms before the layer, through activation functions, sums,
    concatenations and averages (`datafree.graph.propagate`). Zero padding is ignored, and so is
    what rounding activations adds. Afterwards every mean is that of the float network again, so
    layers do not depend on each other's correction. A layer called several times is corrected for
    its first call.

    Args:
        folded: the float graph the student was made from; not changed.
        student: with quantized weights; changed in place.
        statistics: of the layers of `folded`, see `layer_statistics`.
        spec: input of both.
    """
    moments = propagate(folded, statistics, spec)
    shifts: dict[str, Tensor] = {}
    skipped: list[str] = []
    for path, call in first_calls(folded).items():
        exact, layer = folded.get_submodule(path), student.get_submodule(path)
        assert isinstance(exact, QuantizableLayer)  # noqa: S101 - only these are listed
        if not isinstance(layer, QUANTIZED):
            continue  # it stays in float, its weights are exact
        mean = moments[call.all_input_nodes[0].name].mean
        if bool(mean.isnan().any()):
            skipped.append(path)
            continue
        with torch.no_grad():
            error = layer.weight_quantizer(layer.weight).double() - exact.weight.double()
        shift = response(error, int(getattr(layer, "groups", 1)), mean)
        add_to_bias(layer, -shift)
        shifts[path] = shift.to(layer.weight.dtype)
    return AnalyticCorrection(shifts, tuple(skipped))
