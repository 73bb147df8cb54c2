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
        By layer path, in execution order, over all calls of a layer; empty where no quantizer
        stands before it. Ways without a quantizer do not count.
    """
    found: dict[str, set[int]] = {}
    for node in student.graph.nodes:
        if node.op == "call_module" and isinstance(
            student.get_submodule(str(node.target)), QUANTIZED
        ):
            path = str(node.target)
            found[path] = found.get(path, set[int]()) | _widths_before(student, node)
    return found


def _widths_before(student: fx.GraphModule, node: fx.Node) -> set[int]:
    widths: set[int] = set()
    seen: set[fx.Node] = set()
    waiting = values_read(node)
    while waiting:
        before = waiting.pop()
        if before in seen:
            continue
        seen.add(before)
        module = student.get_submodule(str(before.target)) if before.op == "call_module" else None
        if isinstance(module, ActivationQuantizer) and module.enabled:
            widths.add(module.grid.bits)
        else:
            waiting.extend(values_read(before))
    return widths
