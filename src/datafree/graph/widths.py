"""How many bits the activations have that reach a layer."""

from __future__ import annotations

from torch import fx

from datafree.graph.sizes import values_read
from datafree.quant.modules import QUANTIZED, ActivationQuantizer


def activation_widths(student: fx.GraphModule) -> dict[str, set[int]]:
    """Bits of the nearest enabled quantizers on every way to each quantized layer.

    Args:
        student: made by `insert_quantizers`.

    Returns:
        By layer path, as `quantizers_before`.
    """
    return {
        path: {_quantizer(student, name).grid.bits for name in names}
        for path, names in quantizers_before(student).items()
    }


def quantizers_before(student: fx.GraphModule) -> dict[str, set[str]]:
    """Paths of the nearest enabled quantizers on every way to each quantized layer.

    Args:
        student: made by `insert_quantizers`.

    Returns:
        By layer path, in execution order, over all calls of a layer; empty where no quantizer
        stands before it. Ways without a quantizer do not count.
    """
    found: dict[str, set[str]] = {}
    for node in student.graph.nodes:
        if node.op == "call_module" and isinstance(
            student.get_submodule(str(node.target)), QUANTIZED
        ):
            path = str(node.target)
            found[path] = found.get(path, set[str]()) | _before(student, node)
    return found


def _quantizer(student: fx.GraphModule, path: str) -> ActivationQuantizer:
    module = student.get_submodule(path)
    assert isinstance(module, ActivationQuantizer)  # noqa: S101 - only these are found
    return module


def _before(student: fx.GraphModule, node: fx.Node) -> set[str]:
    names: set[str] = set()
    seen: set[fx.Node] = set()
    waiting = values_read(node)
    while waiting:
        before = waiting.pop()
        if before in seen:
            continue
        seen.add(before)
        module = student.get_submodule(str(before.target)) if before.op == "call_module" else None
        if isinstance(module, ActivationQuantizer) and module.enabled:
            names.add(str(before.target))
        else:
            waiting.extend(values_read(before))
    return names
