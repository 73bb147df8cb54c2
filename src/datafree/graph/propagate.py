"""Mean, deviation and range of every tensor of a network, from batch norms alone.

No image is needed: batch norms give the values behind the layers before them, and these pass
through activation functions, sums, concatenations and pooling (Nagel et al. 2019; algorithms B.4.4
and B.4.6). What cannot be known stays unknown, never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload  # pyright: ignore[reportPrivateUsage]

from datafree.config import InputSpec
from datafree.graph import moments as rules
from datafree.graph.blocks import ELEMENTWISE
from datafree.graph.inputs import is_input_part
from datafree.graph.moments import Moments
from datafree.graph.statistics import Statistics
from datafree.quant.modules import QUANTIZABLE, ChannelCopies
from datafree.tensors import device_of

_AVERAGES = frozenset(("avg_pool2d", "adaptive_avg_pool2d"))
_SHAPES = frozenset(("flatten", "view", "reshape", "contiguous", "clone"))
_MOVES = frozenset(
    ("permute", "transpose", "slice", "select", "index_select", "split", "split_with_sizes",
     "chunk", "getitem", "unsqueeze", "squeeze", "expand", "upsample_nearest2d")
)  # fmt: skip


def propagate(
    folded: fx.GraphModule, statistics: Statistics, spec: InputSpec, *, deviations: float = 6.0
) -> dict[str, Moments]:
    """The moments of every tensor of `folded`, by node name.

    * The network's input: the range of pixels 0 … 255 after normalisation, its mean not known.
    * A layer with statistics: normal. One without: the mean ``sum W E[x] + b`` where that of
      its input is known (zero padding ignored), nothing else.
    * Activation functions: of a normal. Sums: of branches that are not correlated.
      Concatenations: side by side. Products: the range alone.
    * Averages over positions keep mean, deviation and range, upper bounds for the latter two.
    * The maximum over positions keeps the range. How much it raises the mean depends on the
      correlation of neighbours, which no batch norm tells.
    * Padding with zeros, cropping and flattening keep all; what mixes channels keeps one range
      for all of them.

    Ranges are meant to be widened to hold zero, as all grids are.

    Args:
        folded: float graph with batch norms folded; not changed.
        statistics: of its layers, see `layer_statistics`.
        spec: its input.
        deviations: reach of a range around the mean of a normal, 6 in the paper.
    """
    walk = _Walk(folded, statistics, spec, deviations)
    # One empty picture tells the shapes, whatever the operators.
    with torch.no_grad():
        walk.run(torch.zeros(1, *spec.shape, device=device_of(folded)))
    return {node.name: moments for node, moments in walk.found.items()}


class _Walk(fx.Interpreter):
    """Runs the graph for its shapes and notes the moments of every tensor on the way."""

    def __init__(
        self, folded: fx.GraphModule, statistics: Statistics, spec: InputSpec, deviations: float
    ) -> None:
        super().__init__(folded)
        self.statistics, self.spec, self.deviations = statistics, spec, deviations
        self.found: dict[fx.Node, Moments] = {}
        self.shapes: dict[fx.Node, Sequence[int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Compute the node, and the moments of what it returns."""
        value = super().run_node(n)
        tensor = value[0] if isinstance(value, list | tuple) and value else value
        if n.op != "output" and isinstance(tensor, Tensor):
            self.found[n] = self._moments(n, tensor)
            self.shapes[n] = tensor.shape
        return value

    def _moments(self, node: fx.Node, value: Tensor) -> Moments:
        own = next((one for k, one in enumerate(self.spec.inputs) if _takes(node, k)), None)
        if node.op == "placeholder" and not self.spec.inputs:
            return rules.pixels(self.spec, value.device)
        if own is not None and own.kind == "image":
            return rules.pixels(own, value.device)
        if own is not None or node.op == "placeholder":
            return rules.unknown(value.device)
        # Further nodes in the arguments of a view are sizes.
        sources = [self.found[n] for n in node.all_input_nodes if n in self.found]
        if node.op == "call_module":
            return self._behind_module(str(node.target), sources[0], value)
        if node.op != "call_function" or not sources:
            return rules.unknown(value.device)
        return self._behind_function(node, sources, value)

    def _behind_module(self, path: str, before: Moments, value: Tensor) -> Moments:
        module = self.fetch_attr(path)
        if path in self.statistics:
            known = self.statistics[path]
            return rules.normal(known.mean, known.std, self.deviations)
        if isinstance(module, nn.Identity):
            return before
        if isinstance(module, ChannelCopies):
            return before.at(module.origin) if len(before.mean) > 1 else before
        if isinstance(module, ELEMENTWISE):
            slopes = max((len(parameter) for parameter in module.parameters()), default=1)
            if slopes > 1 and len(before.mean) == 1:
                before = before.at(torch.zeros(slopes, dtype=torch.long, device=value.device))
            return rules.activated(module, before)
        # Channels are the second dimension in all rules, which those of linear layers are of rows.
        if isinstance(module, QUANTIZABLE) and (
            value.ndim == 2 or not isinstance(module, nn.Linear)
        ):
            mean = rules.response(module.weight.detach(), getattr(module, "groups", 1), before.mean)
            return rules.only_mean(mean if module.bias is None else mean + module.bias.detach())
        return rules.unknown(value.device)

    def _behind_function(self, node: fx.Node, sources: list[Moments], value: Tensor) -> Moments:
        name, first = _name(node), sources[0]
        old = self.shapes[next(n for n in node.all_input_nodes if n in self.shapes)]
        if name == "cat" and (*node.args, 0)[1] in (1, 1 - value.ndim):
            parts: Any = node.args[0]  # a tensor may stand there twice
            channels = [self.shapes[part][1] for part in parts]
            return rules.side_by_side([self.found[part] for part in parts], channels)
        if name in ("add", "mul") and len(node.args) == 2 and not node.kwargs:
            return _combined(name, sources, node.args, value)
        if name == "max_pool2d" and len(old) == 4:
            return rules.only_range(first.low, first.high)
        if (name in _AVERAGES and len(old) == 4) or _is_mean_of_positions(name, node, len(old)):
            return first
        if name == "pad" or name.startswith("constant_pad"):
            return _padded(node, first, len(old))
        if name == "slice" and value.shape[:2] == old[:2]:
            return first
        if name in _SHAPES:
            return rules.reshaped(first, old, value.shape)
        return rules.mixed(first) if name in _MOVES else rules.unknown(value.device)


def _takes(node: fx.Node, place: int) -> bool:
    """Whether `node` takes the input at `place` out of the packed tensor."""
    return is_input_part(node) and int(node.args[1]) == place  # pyright: ignore


def _combined(name: str, sources: list[Moments], args: Any, value: Tensor) -> Moments:
    if len(sources) == 1 and args[0] is args[1]:
        sources = sources * 2
    if len(sources) == 2:
        return rules.added(*sources) if name == "add" else rules.multiplied(*sources)
    number = next((a for a in args if isinstance(a, int | float)), None)
    if number is None or name == "mul":
        return rules.unknown(value.device)
    return rules.shifted(sources[0], float(number))


def _is_mean_of_positions(name: str, node: fx.Node, rank: int) -> bool:
    dims: Any = (*node.args, None, None)[1]
    return (
        name == "mean"
        and rank == 4
        and isinstance(dims, list | tuple)
        and bool(dims)
        and all(int(dim) % rank >= 2 for dim in dims)
    )


def _padded(node: fx.Node, before: Moments, rank: int) -> Moments:
    """Behind zero padding of positions, which keeps all, or of channels, which are 0."""
    pads: Any = node.args[1]
    if any(isinstance(fill, int | float) and fill != 0 for fill in node.args[2:]) or node.kwargs:
        return rules.unknown(before.mean.device)
    # From the last dimension to the first, a pair for each.
    channels = (*pads, 0, 0)[2 * (rank - 2) : 2 * (rank - 2) + 2]
    if len(pads) > 2 * (rank - 1) or (any(channels) and len(before.mean) == 1):
        return rules.mixed(before)
    zeros = [rules.constant(0.0, before.mean.device)] * 2
    if not any(channels):
        return before
    return rules.side_by_side(
        (zeros[0], before, zeros[1]), (channels[0], len(before.mean), channels[1])
    )


def _name(node: fx.Node) -> str:
    if isinstance(node.target, OpOverload):
        return node.target.overloadpacket.__name__
    return getattr(node.target, "__name__", "")
