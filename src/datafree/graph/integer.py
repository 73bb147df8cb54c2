"""A student as integers compute it: codes, int32 sums, and onnxruntime's rounding to the last bit.

Fake quantization computes in float32, whose sums depend on their order; a runtime's sums are whole
numbers. This evaluation has the runtime's arithmetic, so that a written file can be asked for
equality instead of a tolerance. Formulas (all in float32, halves to even, limits last) were
compared with onnxruntime's kernels on random tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from datafree.graph.edges import fuses, is_result, module_of, moves, operator_of
from datafree.graph.inputs import is_input_part
from datafree.graph.logistic import logistic
from datafree.graph.settle import bias_scale, rules_of
from datafree.graph.sizes import is_size
from datafree.quant.modules import QUANTIZED, ActivationQuantizer, QuantizedLayer

_DIVISOR = 6  # where `avg_pool2d` is told another number to divide by
_EXACT = 2.0**24
_LARGE, _AT_ONCE = 2**15, 2  # positions of an image beyond which so many pass together
OnGrid = Callable[[ActivationQuantizer], Tensor]


@dataclass(frozen=True)
class _Codes:
    """A quantized tensor: codes counted from the zero point, float32 holding whole numbers."""

    centred: Tensor
    quantizer: ActivationQuantizer

    def real(self) -> Tensor:
        return self.centred * self.quantizer.scale


@dataclass(frozen=True)
class _Pending:
    """What a kernel has computed and not yet rounded: as real numbers, or codes on a given grid."""

    real: Callable[[], Tensor]
    codes: OnGrid

    def relu(self, module: nn.Module) -> _Pending:
        return _Pending(
            lambda: module(self.real()),
            lambda quantizer: torch.maximum(self.codes(quantizer), quantizer.zero_point),
        )


def integer_model(student: fx.GraphModule) -> Callable[[Tensor], Tensor]:
    """`student` with the arithmetic of onnxruntime's integer kernels.

    Operators that have no integer kernel there compute in float32 on dequantized values, as in a
    file.

    Args:
        student: settled; not changed.

    Returns:
        A function of normalised images (B, C, H, W) that gives what the student returns.
    """

    def run(images: Tensor) -> Tensor:
        # Whole numbers beyond 2^24 need float64, and convolutions of these copies of what they
        # read: large images pass a few at a time.
        size = _AT_ONCE if images[0, 0].numel() > _LARGE else len(images)
        with torch.no_grad():
            found = [_real(_Integers(student).run(part)) for part in images.split(size)]
        return torch.cat(found) if len(found) > 1 else found[0]

    return run


def as_computed(student: fx.GraphModule) -> Callable[[Tensor], Tensor]:
    """`student` as its target computes it, to the last bit where its arithmetic is known.

    Args:
        student: settled; not changed.
    """
    quantized = any(isinstance(m, ActivationQuantizer) and m.enabled for m in student.modules())
    return integer_model(student) if rules_of(student).exact and quantized else student


def float_operators(student: fx.GraphModule) -> list[str]:
    """Nodes that compute in float32 between quantizers, of a student for onnxruntime; in order."""
    found: list[str] = []
    for node in student.graph.nodes:
        module = module_of(student, node)
        if node.op not in ("call_module", "call_function") or moves(student, node):
            continue
        if is_size(node) or is_input_part(node):
            continue
        if isinstance(module, (*QUANTIZED, ActivationQuantizer)):
            continue
        fused = fuses(student, node) and not isinstance(
            module_of(student, node.all_input_nodes[0]), ActivationQuantizer
        )
        if not fused and operator_of(student, node) is None:
            found.append(node.name)
    return found


def returns_mean(student: fx.GraphModule) -> bool:
    """Whether a mean that no quantizer follows is among what `student` returns."""
    return any(
        operator_of(student, node) == "avg_pool" and is_result(student, node)
        for node in student.graph.nodes
    )


class _Integers(fx.Interpreter):
    """One evaluation."""

    def __init__(self, student: fx.GraphModule) -> None:
        super().__init__(student)
        self.student = student

    def run_node(self, n: fx.Node) -> Any:
        """The value of a node: a tensor, codes, or what is still to be rounded."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        module = module_of(self.student, n)
        first = args[0] if args else None
        if isinstance(module, ActivationQuantizer) and module.enabled:
            return _quantized(first, module)
        if isinstance(first, _Codes) and isinstance(module, QUANTIZED) and _is_whole(module):
            return _products(module, first)
        if isinstance(module, nn.ReLU | nn.Hardtanh) and isinstance(first, _Pending):
            return first.relu(module)
        if isinstance(first, _Codes) and moves(self.student, n):
            moved = getattr(self, n.op)(n.target, (first.centred, *args[1:]), kwargs)
            return _labelled(moved, first.quantizer)
        pending = self._kernel(n, module, args)
        if pending is not None:
            return pending
        args, kwargs = map_aggregate(args, _real), map_aggregate(kwargs, _real)  # pyright: ignore
        return getattr(self, n.op)(n.target, args, kwargs)

    def _kernel(self, n: fx.Node, module: nn.Module | None, args: Any) -> _Pending | None:
        """What an operator without weights computes from codes alone."""
        kind = operator_of(self.student, n)
        first = args[0] if args else None
        operands = list(first) if kind == "cat" and isinstance(first, list | tuple) else [*args[:2]]
        if kind in ("add", "mul", "cat") and all(isinstance(o, _Codes) for o in operands):
            if kind == "cat":
                return _joined(operands, args[1] if len(args) > 1 else 0)
            return (_sum if kind == "add" else _product)(*operands)
        if not isinstance(first, _Codes):
            return None
        if kind == "sigmoid":
            return _of_real(lambda: _looked_up(first, logistic))
        if kind == "leaky_relu" and module is not None:
            return _of_real(lambda: module(first.real()))
        if kind == "avg_pool" and _whole_map(n, first):
            return _pooled(first, keep=_keeps(n))
        if kind == "avg_pool":
            args = map_aggregate(args, _real)
            return _windows(lambda: getattr(self, n.op)(n.target, args, n.kwargs))
        return None


def _is_whole(layer: QuantizedLayer) -> bool:
    return layer.weight_quantizer.enabled


def _labelled(moved: Any, quantizer: ActivationQuantizer) -> Any:
    """What a move gives, one tensor or several, as codes of the same grid."""
    if isinstance(moved, list | tuple):
        return [_labelled(one, quantizer) for one in moved]
    return _Codes(moved, quantizer) if isinstance(moved, Tensor) else moved


def _real(value: Any) -> Any:
    return value.real() if isinstance(value, _Codes | _Pending) else value


def _quantized(value: Any, quantizer: ActivationQuantizer) -> _Codes:
    if isinstance(value, _Pending):
        codes = value.codes(quantizer).clamp_(quantizer.grid.qmin, quantizer.grid.qmax)
    else:
        codes = quantizer.codes(_real(value).float())
    return _Codes(codes.sub_(quantizer.zero_point), quantizer)


def _looked_up(source: _Codes, function: Callable[[Tensor], Tensor]) -> Tensor:
    """`function` of the real values, computed once for every code."""
    grid, zero = source.quantizer.grid, source.quantizer.zero_point
    every = torch.arange(grid.qmin, grid.qmax + 1, device=zero.device) - zero
    table = function(every * source.quantizer.scale)
    return table[(source.centred + zero - grid.qmin).long()]


def _of_real(real: Callable[[], Tensor]) -> _Pending:
    return _Pending(real, lambda quantizer: quantizer.codes(real()))


def _products(layer: QuantizedLayer, source: _Codes) -> _Pending:
    """``A = sum (x - z_x)(w - z_w) + b`` as a whole number, then ``A s_x s_w``."""
    weights, grid = layer.weight_quantizer, source.quantizer.grid
    codes = weights.codes(layer.weight) - weights.zero_point
    step = bias_scale(layer, source.quantizer.scale)
    largest = float(codes.abs().flatten(1).sum(1).max()) * (grid.qmax - grid.qmin)
    # float32 holds whole numbers up to 2^24 exactly, in whatever order they are added.
    kind = torch.float32 if largest < _EXACT else torch.float64
    values, codes = source.centred.to(kind), codes.to(kind)
    if isinstance(layer, nn.Linear):
        sums, shape = F.linear(values, codes), (-1,)
    else:
        sums = layer._conv_forward(values, codes, None)  # pyright: ignore[reportPrivateUsage]
        shape = (-1, *[1] * (layer.weight.ndim - 2))
    if layer.bias is not None:
        bias = torch.round(layer.bias.double() / step.double()).view(shape)
        sums = sums.double().add_(bias)
    sums, step = sums.float(), step.view(shape) if step.ndim else step
    return _Pending(
        lambda: sums * step,
        lambda quantizer: (sums * (step / quantizer.scale)).round_().add_(quantizer.zero_point),
    )


def _fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``a b + c`` with one rounding; `a` has the shape of the result."""
    return a.to(torch.float64, copy=True).mul_(b.double()).add_(c).float()


def _sum(a: _Codes, b: _Codes) -> _Pending:
    def codes(quantizer: ActivationQuantizer) -> Tensor:
        zero = quantizer.zero_point
        first, second = (one.quantizer.scale / quantizer.scale for one in (a, b))
        zeros = [one.quantizer.zero_point for one in (a, b)]
        constant = (zero.double() - _fma(first, zeros[0], second * zeros[1]).double()).float()
        inner = _fma(b.centred + zeros[1], second, constant)
        return _fma(a.centred + zeros[0], first, inner).round_()

    return _Pending(lambda: a.real() + b.real(), codes)


def _product(a: _Codes, b: _Codes) -> _Pending:
    def codes(quantizer: ActivationQuantizer) -> Tensor:
        scale = a.quantizer.scale * b.quantizer.scale / quantizer.scale
        return (a.centred * b.centred).mul_(scale).add_(quantizer.zero_point).round_()

    return _Pending(lambda: a.real() * b.real(), codes)


def _joined(parts: list[_Codes], dim: int) -> _Pending:
    return _Pending(
        lambda: torch.cat([part.real() for part in parts], dim),
        lambda quantizer: torch.cat([quantizer.codes(part.real()) for part in parts], dim),
    )


def _windows(real: Callable[[], Tensor]) -> _Pending:
    """Means of windows, whose zero point is added before they are rounded."""
    return _Pending(
        real, lambda quantizer: (real() / quantizer.scale).add_(quantizer.zero_point).round_()
    )


def _whole_map(n: fx.Node, source: _Codes) -> bool:
    """Whether a pooling takes the mean of all positions: whole numbers are summed then.

    onnxruntime does so too where the window of an ordinary pooling is the whole map.
    """
    name = str(n.target)
    sizes = source.centred.shape[2:]
    if "adaptive" not in name and "avg_pool" in name:
        window, padding = (_spread(n, place, len(sizes)) for place in (1, 3))
        divided = len(n.args) > _DIVISOR and n.args[_DIVISOR] is not None
        return window == tuple(sizes) and not any(padding) and not divided
    if "adaptive" in name:
        size = n.args[1]
        return size in ([1, 1], (1, 1), 1)
    return "mean" in name and source.centred.ndim == 4


def _spread(n: fx.Node, place: int, sides: int) -> tuple[int, ...]:
    """The argument at `place`, a number for every side; 0 where it is not there."""
    given: Any = n.args[place] if len(n.args) > place else 0
    given = list(given) if isinstance(given, list | tuple) else [given]
    return tuple(given * sides if len(given) == 1 else given)


def _keeps(n: fx.Node) -> bool:
    kept = n.kwargs.get("keepdim", n.args[2] if len(n.args) > 2 else False)
    return "avg_pool" in str(n.target) or bool(kept)


def _pooled(source: _Codes, *, keep: bool) -> _Pending:
    sides = tuple(range(2, source.centred.ndim))
    sums = source.centred.double().sum(sides, keepdim=keep).float()
    count = float(source.centred[0, 0].numel())
    scale = source.quantizer.scale
    return _Pending(
        lambda: sums * (scale / count),
        lambda quantizer: (
            torch.round(sums * (scale / (quantizer.scale * count))) + quantizer.zero_point
        ),
    )
