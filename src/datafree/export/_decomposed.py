"""The student with the operators by which PyTorch's PT2E backends know integers.

Every quantizer becomes ``quantized_decomposed.quantize_per_tensor`` and its counterpart, on int8:
unsigned codes and their zero points are moved by 128, which changes no value. Weights are int8
codes behind a ``dequantize`` of their own.
"""

from __future__ import annotations

import copy

import torch
import torch.ao.quantization.fx._decomposed  # pyright: ignore[reportUnusedImport] # the operators
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from datafree.export._readback import bare_codes, quantized_layers
from datafree.graph.edges import module_of, moves, operation, operator_of, origin
from datafree.graph.sizes import is_size
from datafree.quant.grid import Grid
from datafree.quant.modules import QUANTIZED, ActivationQuantizer, Quantizer

_OPS = torch.ops.quantized_decomposed
_LARGEST = 127


def decomposed(student: fx.GraphModule, *, stored: bool = True) -> fx.GraphModule:
    """A copy of `student` that computes the same with ``quantized_decomposed`` operators.

    Args:
        student: settled, on the CPU; not changed.
        stored: weights are integer codes that are dequantized; else float values that are
            quantized and dequantized, as converters that fold constants themselves want them.
    """
    made = copy.deepcopy(student)
    _keep_maps(made)
    _say_again(made)
    for layer in [m for m in made.modules() if isinstance(m, QUANTIZED)]:
        quantizer = layer.weight_quantizer
        if not quantizer.enabled:
            layer.weight_quantizer = nn.Identity()  # pyright: ignore - it is only traced
        elif not isinstance(quantizer, _Codes | _Rounded):  # a layer that is called twice
            weight = layer.weight.detach()
            if stored:
                layer.weight_quantizer = _Codes(quantizer, weight)  # pyright: ignore
                layer.register_parameter("weight", None)
            else:
                layer.weight_quantizer = _Rounded(quantizer)  # pyright: ignore
    for name, module in list(made.named_modules(remove_duplicate=False)):
        if isinstance(module, ActivationQuantizer):
            made.set_submodule(name, _Pair(module) if module.enabled else nn.Identity())
    return made


def one_reader_each(program: ExportedProgram) -> ExportedProgram:
    """`program` itself, with a ``dequantize`` of its own for everyone who reads a tensor; in place.

    Partitioners take an operator together with all that its ``dequantize`` feeds, and then find
    that what lies between two of these readers depends on itself.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is _OPS.dequantize_per_tensor.default:
            for reader in [user for user in node.users if user.op != "output"][1:]:
                with graph.inserting_after(node):
                    reader.replace_input_with(node, graph.node_copy(node))
    program.graph_module.recompile()
    return program


def stored_state(student: fx.GraphModule) -> dict[str, Tensor]:
    """What `decomposed(student)` has to hold of every quantized layer, by the names it has there.

    Computed from the student's grids, not from what was made of them.
    """
    found: dict[str, Tensor] = {}
    for path, layer in quantized_layers(student).items():
        quantizer, stem = layer.weight_quantizer, f"{path}.weight_quantizer"
        zero = quantizer.zero_point + _moved(quantizer.grid)
        found[f"{stem}.codes"] = (bare_codes(layer) + zero.cpu()).to(torch.int8)
        if quantizer.axis is not None:
            found[f"{stem}.scale"] = quantizer.scale.flatten()
            found[f"{stem}.zero_point"] = zero.flatten()
        if layer.bias is not None:
            found[f"{path}.bias"] = layer.bias.detach()
    return found


def stored_bytes(made: nn.Module) -> int:
    """Size of all codes, scales and zero points of weights in what `decomposed` returned."""
    tensors = [b for m in made.modules() if isinstance(m, _Codes) for b in m.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def rounded_bytes(made: nn.Module) -> int:
    """Size that the weights of ``decomposed(student, stored=False)`` have as int8, with scales."""
    layers = [m for m in made.modules() if isinstance(m, QUANTIZED)]
    found = [(m.weight, m.weight_quantizer) for m in layers]
    return sum(
        w.numel() + 5 * (w.shape[0] if q.axis is not None else 1)
        for w, q in found
        if isinstance(q, _Rounded)
    )


def _keep_maps(student: fx.GraphModule) -> None:
    """Means over height and width keep these as ones, and flatten behind; in place.

    Integer kernels for them give maps of one pixel.
    """
    graph = student.graph
    for node in list(graph.nodes):
        kept = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
        if operation(node) != "mean" or operator_of(student, node) != "avg_pool" or kept:
            continue
        node.args, node.kwargs = (*node.args[:2], True), {}
        last, users = node, list(node.users)
        if len(users) == 1 and isinstance(module_of(student, users[0]), ActivationQuantizer):
            last = users[0]
        with graph.inserting_after(last):
            flat = graph.call_function(torch.ops.aten.flatten.using_ints, (last, 1))
        for reader in [user for user in last.users if user is not flat]:
            reader.replace_input_with(last, flat)
    student.recompile()


def _say_again(student: fx.GraphModule) -> None:
    """The quantizer of a tensor once more behind all that only moves its values, in place.

    A backend takes an operator with the pairs directly around it; a code stays what it is.
    """
    for node in list(student.graph.nodes):
        before = module_of(student, origin(student, node)) if moves(student, node) else None
        parts = any(operation(user) == "getitem" for user in node.users)
        if not isinstance(before, ActivationQuantizer) or parts:
            continue
        source = origin(student, node)
        with student.graph.inserting_after(node):
            again = student.graph.call_module(str(source.target), (node,))
        for reader in [user for user in node.users if user is not again and not is_size(user)]:
            reader.replace_input_with(node, again)
    student.recompile()


def _moved(grid: Grid) -> int:
    """What to add to the codes of `grid` for int8."""
    return -_LARGEST - 1 if grid.qmax > _LARGEST else 0


def _limits(grid: Grid) -> tuple[int, int]:
    return grid.qmin + _moved(grid), grid.qmax + _moved(grid)


class _Pair(nn.Module):
    """An activation quantizer."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        zero = int(quantizer.zero_point) + _moved(quantizer.grid)
        self.numbers = (float(quantizer.scale), zero, *_limits(quantizer.grid), torch.int8)

    def forward(self, values: Tensor) -> Tensor:
        codes = _OPS.quantize_per_tensor.default(values, *self.numbers)
        return _OPS.dequantize_per_tensor.default(codes, *self.numbers)


class _Codes(nn.Module):
    """A weight as codes; what it is called with is not read."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: Quantizer, weight: Tensor) -> None:
        super().__init__()
        moved = _moved(quantizer.grid)
        self.axis, self.limits = quantizer.axis, _limits(quantizer.grid)
        self.register_buffer("codes", (quantizer.codes(weight) + moved).to(torch.int8))
        zero = (quantizer.zero_point + moved).flatten().long()
        if self.axis is None:
            self.numbers = float(quantizer.scale), int(zero)
        else:
            self.register_buffer("scale", quantizer.scale.flatten().float())
            self.register_buffer("zero_point", zero)

    def forward(self, _: Tensor | None) -> Tensor:
        if self.axis is None:
            numbers = *self.numbers, *self.limits, torch.int8
            return _OPS.dequantize_per_tensor.default(self.codes, *numbers)
        numbers = self.scale, self.zero_point, self.axis, *self.limits, torch.int8
        return _OPS.dequantize_per_channel.default(self.codes, *numbers)


class _Rounded(nn.Module):
    """A float weight through its codes and back."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.axis, self.limits = quantizer.axis, _limits(quantizer.grid)
        zero = (quantizer.zero_point + _moved(quantizer.grid)).flatten().long()
        if self.axis is None:
            self.numbers = float(quantizer.scale), int(zero)
        else:
            self.register_buffer("scale", quantizer.scale.flatten().float())
            self.register_buffer("zero_point", zero)

    def forward(self, weight: Tensor) -> Tensor:
        if self.axis is None:
            numbers = *self.numbers, *self.limits, torch.int8
            codes = _OPS.quantize_per_tensor.default(weight, *numbers)
            return _OPS.dequantize_per_tensor.default(codes, *numbers)
        numbers = self.scale, self.zero_point, self.axis, *self.limits, torch.int8
        codes = _OPS.quantize_per_channel.default(weight, *numbers)
        return _OPS.dequantize_per_channel.default(codes, *numbers)
