"""Attention in the canonical graph: where it is computed, and a graph that shows it.

Networks write it in two ways, and both come through the capture as function calls: as one fused
``scaled_dot_product_attention(Q, K, V)``, or as ``softmax(Q K^T) V`` step by step.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from datafree.graph.edges import module_of, operation
from datafree.graph.sizes import rank_of

_FUSED = "scaled_dot_product_attention"
_LEAST_RANK = 3
_PRODUCTS = frozenset(("matmul", "bmm", "einsum"))
_SOFTMAXES = frozenset(("softmax", "_softmax", "special_softmax"))
_KEEPS_ROWS = frozenset(
    ("dropout", "dropout_", "native_dropout", "clone", "contiguous", "to", "_to_copy", "type_as",
     "view", "reshape", "expand", "unsqueeze", "squeeze", "flatten", "unflatten", "detach", "alias")
)  # fmt: skip
_ON_SCORES = _KEEPS_ROWS | frozenset(
    ("add", "add_", "sub", "mul", "mul_", "div", "div_", "masked_fill", "masked_fill_", "where",
     "clamp", "clamp_min", "clamp_max", "float", "scatter", "index_put")
)  # fmt: skip
"""Functions that may stand between the product of queries and keys and its softmax."""


def find_attention(graph_module: fx.GraphModule) -> list[fx.Node]:
    """The nodes that compute attention's output ``A V``, in execution order.

    A fused call, or a product whose first factor is a softmax of a product. Their values are
    (…, heads, tokens, features), or (batch x heads, tokens, features) where heads were folded into
    the batch. A product that returns a vector for each image, as a pooling by softmax does, has no
    tokens and does not count.

    Args:
        graph_module: canonical graph; not changed.
    """
    found: list[fx.Node] = []
    for node in graph_module.graph.nodes:
        if rank_of(node, _LEAST_RANK) < _LEAST_RANK:
            continue
        fused = operation(node) == _FUSED
        if fused or (operation(node) in _PRODUCTS and _weights_of(graph_module, node) is not None):
            found.append(node)
    return found


def attending(graph_module: fx.GraphModule, what: Literal["outputs", "weights"]) -> fx.GraphModule:
    """A graph that returns ``(what the network returns, attention)``, sharing all parameters.

    Args:
        graph_module: canonical graph; not changed.
        what: `outputs`, the values ``A V`` as `find_attention` has them; `weights`, the matrices
            ``A = softmax(Q K^T / sqrt(d) + mask)``, (…, heads, queries, keys), whose rows add up
            to 1. The second of the pair is a tuple with one tensor for each attention.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    returned: Any = graph.graph_copy(graph_module.graph, copies)
    shown: list[fx.Node] = []
    for node in find_attention(graph_module):
        if what == "outputs":
            shown.append(copies[node])
        elif operation(node) == _FUSED:
            with graph.inserting_after(copies[node]):
                args, kwargs = copies[node].args, copies[node].kwargs
                shown.append(graph.call_function(attention_weights, args, dict(kwargs)))
        else:
            weights = _weights_of(graph_module, node)
            assert weights is not None  # noqa: S101 - that is how the node was found
            shown.append(copies[weights])
    graph.output((returned, tuple(shown)))
    return fx.GraphModule(graph_module, graph)


def attention_weights(  # noqa: PLR0913 - the arguments of torch's function
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The matrix A with which `torch.nn.functional.scaled_dot_product_attention` weighs values.

    Args:
        query: (…, heads, L, d).
        key: (…, heads, S, d); fewer heads, each shared by several of the queries', with
            `enable_gqa`.
        value: not looked at.
        attn_mask: added to the scores, or True where a key may be seen.
        dropout_p: not looked at: networks are captured for inference.
        is_causal: hide keys that come after a query.
        scale: of the scores; None is ``1 / sqrt(d)``.
        enable_gqa: see `key`.

    Returns:
        (…, heads, L, S), not negative; rows add up to 1.
    """
    del value, dropout_p
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = query @ key.transpose(-2, -1) * factor
    if is_causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1)


def _weights_of(graph_module: fx.GraphModule, product: fx.Node) -> fx.Node | None:
    """The softmax that `product` weighs values with; None if it is no attention."""
    factors = product.all_input_nodes
    if len(factors) != 2:
        return None
    node = _before(graph_module, factors[0], _KEEPS_ROWS)
    if not _is_softmax(graph_module, node):
        return None
    scores = _before(graph_module, node.all_input_nodes[0], _ON_SCORES)
    return node if operation(scores) in _PRODUCTS else None


def _before(graph_module: fx.GraphModule, node: fx.Node, passed: frozenset[str]) -> fx.Node:
    """Back from `node` along first arguments, through functions called like those in `passed`."""
    while node.all_input_nodes:
        module = module_of(graph_module, node)
        if not (operation(node) in passed or isinstance(module, nn.Identity | nn.Dropout)):
            break
        node = node.all_input_nodes[0]
    return node


def _is_softmax(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` is a softmax over the last dimension."""
    module = module_of(graph_module, node)
    if isinstance(module, nn.Softmax):
        return module.dim in (-1, None)
    if operation(node) not in _SOFTMAXES:
        return False
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", -1)
    return isinstance(dim, int)
