"""Signs that a network was never trained, or that its weights were not loaded.

Training moves the statistics of every batch norm, and the slope and offset of every norm that has
them. Layers in which all of these are as they were created have not seen data.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from datafree.errors import ModelError
from datafree.graph.taps import BatchNorm, batch_norms

_NORMS = ("layer_norm", "group_norm", "instance_norm")
_CURE = "load the trained weights first (weights_file, or load_state_dict)"
_CAUSE = "the network was not trained, or its weights were not loaded"


def virgin(norm: BatchNorm) -> bool:
    """Whether the statistics of a batch norm are those it was created with, 0 and 1."""
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        return False
    return not bool(mean.any()) and bool((variance == 1).all())


def untrained(graph: fx.GraphModule) -> str | None:
    """A line that says which norms of a network never saw data; None where all did.

    Args:
        graph: the canonical graph, its batch norms unfolded.
    """
    norms = batch_norms(graph)
    fresh = [path for path, norm in norms.items() if virgin(norm)]
    if fresh and len(fresh) < len(norms):
        named = ", ".join(fresh[:3]) + (", …" if len(fresh) > 3 else "")
        return (
            f"{len(fresh)} of {len(norms)} batch norms never saw data (mean 0, variance 1):"
            f" {named}; were all of the trained weights loaded?"
        )
    if fresh:
        return (
            f"none of the {len(fresh)} batch norms ever saw data (mean 0, variance 1 everywhere):"
            f" {_CAUSE}; {_CURE}"
        )
    others = _affine(graph)
    if not norms and others and not any(_moved(*pair) for pair in others):
        return (
            f"all {len(others)} norms scale by 1 and shift by 0, as they were created: {_CAUSE};"
            f" {_CURE}"
        )
    return None


def require_statistics(graph: nn.Module, what: str, instead: str) -> None:
    """Refuse a network whose batch norms all are as they were created.

    Args:
        graph: the canonical graph, its batch norms unfolded.
        what: the method that needs them, for the message.
        instead: methods that do without.

    Raises:
        ModelError: there are batch norms, and none ever saw data.
    """
    norms = batch_norms(graph).values()
    if norms and all(virgin(norm) for norm in norms):
        raise ModelError(
            f"{what} uses batch-norm statistics, and none of the {len(norms)} batch norms of this"
            f" network ever saw data (mean 0, variance 1 everywhere): {_CURE}; {instead} needs none"
        )


def _affine(graph: fx.GraphModule) -> list[tuple[Tensor, Tensor | None]]:
    """Slope and offset of every norm without statistics that has them."""
    found: list[tuple[Tensor, Tensor | None]] = []
    for node in graph.graph.nodes:
        packet = getattr(node.target, "overloadpacket", None)
        if node.op != "call_function" or getattr(packet, "__name__", "") not in _NORMS:
            continue
        held = [arg for arg in node.args[1:] if isinstance(arg, fx.Node) and arg.op == "get_attr"]
        tensors = [_attribute(graph, str(arg.target)) for arg in held]
        if tensors:
            found.append((tensors[0], tensors[1] if len(tensors) > 1 else None))
    return found


def _attribute(graph: fx.GraphModule, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    return getattr(graph.get_submodule(owner), name)


def _moved(slope: Tensor, offset: Tensor | None) -> bool:
    return not torch.equal(slope, torch.ones_like(slope)) or (
        offset is not None and bool(offset.any())
    )
