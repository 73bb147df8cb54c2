"""Parallel linear branches of one tensor become one convolution (RepVGG, MobileOne, FastViT).

Such networks are trained with several convolutions, batch norms and shortcuts that are added before
one activation function. Run as they are, every branch would be quantized by itself and the sum be
left in float; as one convolution they cost what the authors meant them to.

* Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021.
* Vasu et al., "MobileOne: An Improved One millisecond Mobile Backbone", CVPR 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, fx

from datafree.graph._exported import writes
from datafree.graph.kernels import Convolution, Kernel, added, diagonal, sum_shape, to_layer
from datafree.graph.summands import Leaf, Reader, Summand, Told, dimensions_of, united
from datafree.tensors import shared_copy


@dataclass(frozen=True)
class Merged:
    """A convolution that stands for several branches.

    Attributes:
        path: of the convolution: that of its largest branch.
        told: layers and batch norms whose outputs, each times a factor, its own is the sum of, up
            to `shift`; None where the tensor that all read is a summand itself.
        shift: what is added to that sum, a scalar or (O,).
        kernels: the convolutions in it by path, their weights replaced by the factor that they are
            multiplied with: (O, 1, …), expanded.
        whole: a kernel of the form of the convolution, zero everywhere.
    """

    path: str
    told: Told | None
    shift: Tensor
    kernels: tuple[tuple[str, Kernel], ...]
    whole: Kernel


def merge_branches(folded: fx.GraphModule) -> tuple[fx.GraphModule, tuple[Merged, ...]]:
    """A copy of `folded` in which sums of linear branches of one tensor are one convolution.

    With kernels ``K_i`` on one grid of taps, biases ``b_i`` and factors ``f_i`` by channel,

        sum_i f_i (K_i * x + b_i) = (sum_i f_i K_i) * x + sum_i f_i b_i

    Branches are convolutions, batch norms (diagonal 1 x 1 kernels), average pooling that counts
    padded zeros, and the tensor itself; each times constants, and read by the sum alone. Constants
    that are added, by channel or one for all, are part of the bias.

    Branches merge where their outputs have the same size and middle whatever the image, see
    `added`, and where the sum costs no more multiplications than they do: a depthwise and a dense
    convolution do not. Nor does a single convolution with the tensor itself beside it: that is a
    residual connection, whose tensor need not pass through the grid of the weights.

    Args:
        folded: float graph with batch norms folded; not changed.

    Returns:
        A graph module with the same outputs up to rounding, and what was merged.
    """
    merged = shared_copy(folded)
    nodes = list(merged.graph.nodes)
    if any(writes(node) for node in nodes):
        return merged, ()  # a branch may read what is changed before the sum is taken
    found: list[Merged] = []
    gone: set[fx.Node] = set()
    for dimensions in sorted(dimensions_of(merged)):
        reader = Reader.of(merged, dimensions)
        # The outermost sum first, so that as much as possible becomes one.
        for node in reversed(nodes):
            if node not in gone:
                found += _merge_at(reader, node, gone)
    _forget(merged, gone)
    merged.delete_all_unused_submodules()
    merged.graph.lint()
    merged.recompile()
    return merged, tuple(found)


@dataclass(frozen=True)
class _Cluster:
    """Parts of a sum that are one kernel together.

    Attributes:
        parts: with the sign they have in the sum.
        kernel: of all of them.
        cost: multiplications of the parts for each position, in all.
    """

    parts: tuple[Summand, ...]
    kernel: Kernel
    cost: int

    @property
    def leaves(self) -> list[Leaf]:
        """Of all parts."""
        return [leaf for part in self.parts for leaf in part.leaves]

    @property
    def main(self) -> Leaf:
        """The convolution with most taps, of these the one with most weights."""
        return max((leaf for leaf in self.leaves if leaf.path), key=_size)

    @property
    def worthwhile(self) -> bool:
        """Whether it is more than one layer with the tensor itself beside it."""
        if any(leaf.plain for leaf in self.leaves):
            return sum(not leaf.plain for leaf in self.leaves) > 1
        return len(self.leaves) > 1 or len(self.parts) > 1

    def joined(self, part: Summand) -> _Cluster | None:
        """With `part` too; None where that is not exact or costs more than both."""
        cost = self.cost + sum(leaf.cost for leaf in part.leaves)
        kernel = _kernel(part, self.kernel)
        shape = None if kernel is None else sum_shape(self.kernel, kernel)
        if kernel is None or shape is None or math.prod(shape) > cost:
            return None
        both = added(self.kernel, kernel)
        return None if both is None else _Cluster((*self.parts, part), both, cost)


def _merge_at(reader: Reader, root: fx.Node, gone: set[fx.Node]) -> list[Merged]:
    """Replace, in place, what merges of the sum that `root` is."""
    parts = reader.parts(root)
    clusters = _clusters(parts)
    if not clusters:
        return []
    merged = reader.graph_module
    records = [_install(merged, cluster) for cluster in clusters]
    value, *others = [cluster.main.node for cluster in clusters]
    taken = [part for cluster in clusters for part in cluster.parts]
    left = [(part.value, part.negative) for part in parts if part not in taken]
    for other, negative in [*((node, False) for node in others), *left]:
        target = torch.ops.aten.sub.Tensor if negative else torch.ops.aten.add.Tensor
        with merged.graph.inserting_before(root):
            value = merged.graph.call_function(target, (value, other))
        value.meta = dict(root.meta)
    root.replace_all_uses_with(value)
    _erase(root, gone)
    return records


def _clusters(parts: list[Summand]) -> list[_Cluster]:
    """Parts that merge, each cluster grown around the largest convolution left."""
    left = list(parts)
    found: list[_Cluster] = []
    for main in sorted(parts, key=_largest, reverse=True):
        if main not in left:
            continue
        cluster = _started(main)
        for part in left if cluster else ():
            if cluster and part is not main and part.source in (main.source, None):
                cluster = cluster.joined(part) or cluster
        if cluster and cluster.worthwhile:
            found.append(cluster)
            left = [part for part in left if part not in cluster.parts]
    return found


def _started(part: Summand) -> _Cluster | None:
    """`part`, with a convolution in it, as a cluster of its own."""
    like = max((leaf for leaf in part.leaves if leaf.path), key=_size, default=None)
    kernel = None if like is None or like.kernel is None else _kernel(part, like.kernel)
    if kernel is None:
        return None
    cost = sum(leaf.cost for leaf in part.leaves)
    return _Cluster((part,), kernel, cost) if kernel.weight.numel() <= cost else None


def _kernel(part: Summand, like: Kernel) -> Kernel | None:
    """`part` as a kernel on what `like` reads; None if it is none."""
    rows = len(like.bias)
    if not part.channels <= {rows}:
        return None
    total: Kernel | None = None
    for leaf in part.leaves:
        kernel = _leaf_kernel(leaf, like)
        total = kernel if total is None or kernel is None else added(total, kernel)
        if total is None:
            return None
    total = total or like.nothing()
    return replace(total, bias=total.bias + part.offset.to(total.bias.device))


def _leaf_kernel(leaf: Leaf, like: Kernel) -> Kernel | None:
    """`leaf` as a kernel on what `like` reads; None where a channel has no other to go to."""
    factor = leaf.factor.to(like.weight.device)
    if leaf.path and leaf.kernel is not None:
        return leaf.kernel.scaled(factor) if len(leaf.kernel.bias) == len(like.bias) else None
    if len(like.bias) != like.inputs:
        return None
    if leaf.kernel is None:
        return diagonal(factor.expand(like.inputs), len(like.taps))
    return leaf.kernel.repeated(like.inputs, like.weight.device).scaled(factor)


def _install(merged: fx.GraphModule, cluster: _Cluster) -> Merged:
    """Put the layer of `cluster` in the place of its largest convolution, in place."""
    path, kernel = cluster.main.path, cluster.kernel
    like = cast("Convolution", merged.get_submodule(path))
    merged.set_submodule(path, to_layer(kernel, like))
    whole = united(cluster.main.node, list(cluster.parts))
    assert whole is not None  # noqa: S101 - parts of a cluster have one source and fit
    kernels = tuple(
        (leaf.path, leaf.kernel.filled(leaf.factor))
        for leaf in cluster.leaves
        if leaf.path and leaf.kernel is not None
    )
    return Merged(path, whole.told, whole.shift, kernels, kernel.nothing())


def _erase(root: fx.Node, gone: set[fx.Node]) -> None:
    """Take `root` out of its graph, and all that only it needed."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node in gone or node.users or node.op == "placeholder":
            continue
        waiting += node.all_input_nodes
        node.graph.erase_node(node)
        gone.add(node)


def _forget(merged: fx.GraphModule, gone: set[fx.Node]) -> None:
    """Delete the constants that nothing reads any more."""
    kept = {str(node.target) for node in merged.graph.nodes if node.op == "get_attr"}
    for path in {str(node.target) for node in gone if node.op == "get_attr"} - kept:
        owner, _, name = path.rpartition(".")
        delattr(merged.get_submodule(owner), name)


def _size(leaf: Leaf) -> tuple[int, int]:
    """Taps and weights of a convolution."""
    if not leaf.path or leaf.kernel is None:
        return 0, 0
    return math.prod(leaf.kernel.taps), leaf.kernel.weight.numel()


def _largest(part: Summand) -> tuple[int, int]:
    return max(map(_size, part.leaves), default=(0, 0))
