"""Lifting: aten calls of an exported graph become standard `nn` layers that share its tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload  # pyright: ignore[reportPrivateUsage]
from torch.fx.node import map_arg

from datafree.errors import CaptureError
from datafree.graph._exported import attach, attribute, caller, casts_nothing, writes
from datafree.graph.sizes import mark_images

aten = torch.ops.aten

_IDENTITIES = (
    "dropout",
    "feature_dropout",
    "alpha_dropout",
    "alias",
    "detach",
    "detach_",
    "lift_fresh_copy",
)
_ASSERTIONS = ("_assert", "sym_constrain", "_guards")


def lift(exported: fx.GraphModule) -> fx.GraphModule:
    """A plain graph module of standard layers equal to `exported`, in eval mode.

    Layers with weights take the module path their weight had; activation functions the path of the
    module that called them, e.g. ``layer1.0.relu``. In-place calls become their functional forms.

    Args:
        exported: what `ExportedProgram.module(check_guards=False)` returns.

    Raises:
        CaptureError: a dropout or batch norm is in training mode.
    """
    lifter = _Lifter(exported)
    for node in exported.graph.nodes:
        lifter.visit(node)
    return lifter.finish()


@dataclass
class _Call:
    """One aten call: its arguments by name, with the tensors behind `get_attr` nodes looked up."""

    node: fx.Node
    values: dict[str, Any]
    tensors: dict[str, tuple[str, Tensor]]

    def tensor(self, name: str) -> Tensor | None:
        return self.tensors[name][1] if name in self.tensors else None

    def parameter(self, name: str) -> nn.Parameter | None:
        """A tensor as modules hold it, also where the network keeps it as a buffer."""
        found = self.tensor(name)
        if found is None or isinstance(found, nn.Parameter):
            return found
        return nn.Parameter(found.detach(), requires_grad=False)

    @property
    def rank(self) -> int:
        return self.values["input"].meta["val"].ndim


@dataclass
class _Lifter:
    exported: fx.GraphModule
    graph: fx.Graph = field(default_factory=fx.Graph)
    env: dict[fx.Node, Any] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    built: dict[tuple[Any, ...], str] = field(default_factory=dict)
    parameters: dict[int, nn.Parameter] = field(default_factory=dict)
    aliases: bool = False
    images: fx.Node | None = None

    def __post_init__(self) -> None:
        """See whether values are written through a view, which must then stay one."""
        nodes = self.exported.graph.nodes
        self.aliases = any(writes(node) and _functional(node)[1] is None for node in nodes)

    def visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.env[node] = self.graph.placeholder(node.name)
            self.images = self.images or node
        elif node.op == "output":
            flat = _flatten(map_arg(node.args[0], lambda n: self.env[n]))
            self.graph.output(flat[0] if len(flat) == 1 else tuple(flat))
        elif node.op == "call_function" and _name(node).startswith(_ASSERTIONS):
            return
        elif node.op == "call_function" and _trains(node):
            raise CaptureError(
                f"{_name(node)} is in training mode: call model.eval() before torch.export.export,"
                " and give F.dropout training=self.training"
            )
        elif node.op == "call_function" and (_name(node) in _IDENTITIES or casts_nothing(node)):
            self.env[node] = self._mapped(node.args[0])
        elif node.op == "call_function":
            self._call(node)
        else:
            self.env[node] = self.graph.node_copy(node, lambda n: self.env[n])
        lifted = self.env.get(node)
        if isinstance(lifted, fx.Node) and node.op != "get_attr":
            mark_images(lifted, node, self.images)

    def finish(self) -> fx.GraphModule:
        root = nn.Module()
        for path in sorted(self.modules, key=lambda path: path.count(".")):
            attach(root, path, self.modules[path])
        self.graph.eliminate_dead_code(
            is_impure_node=lambda node: node.op in ("placeholder", "output") or writes(node)
        )
        for node in self.graph.nodes:
            if node.op == "get_attr":
                value = attribute(self.exported, str(node.target))
                node.target = self._attribute_path(str(node.target))
                attach(
                    root, node.target, self._shared(value) if isinstance(value, Tensor) else value
                )
        module = fx.GraphModule(root, self.graph, "Captured")
        self.graph.lint()
        return module.eval()

    def _attribute_path(self, path: str) -> str:
        # This use of a tensor that a layer holds too must not change when the layer is folded.
        if path in self.modules or path.rpartition(".")[0] in self.modules:
            return f"{path.replace('.', '_')}_tensor"
        return path

    def _mapped(self, value: Any) -> Any:
        return map_arg(value, lambda n: self.env[n])

    def _call(self, node: fx.Node) -> None:
        target, written = _functional(node)
        if target is aten.view.default and not self.aliases:
            target = aten.reshape.default  # the same values in any memory layout
        rule = _RULES.get(_name(node).removesuffix("_") if written is not None else _name(node))
        call = self._arguments(node) if rule is not None else None
        module = rule(call) if rule is not None and call is not None else None
        if module is None or call is None:
            self.env[node] = self.graph.create_node(
                "call_function",
                target,
                self._mapped(node.args),
                self._mapped(node.kwargs),
                node.name,
            )
        else:
            path = self._path(call, module)
            source = self.env[call.values["input"]]
            self.env[node] = self.graph.create_node(
                "call_module", path, (source,), None, path.replace(".", "_")
            )
        self.env[node].stack_trace = node.stack_trace
        if written is not None:
            self.env[written] = self.env[node]

    def _arguments(self, node: fx.Node) -> _Call | None:
        schema = node.target._schema.arguments  # pyright: ignore
        values = {argument.name: argument.default_value for argument in schema}
        values |= {argument.name: value for argument, value in zip(schema, node.args, strict=False)}
        values |= node.kwargs
        values["input"] = values.pop("self", values.get("input"))
        if not isinstance(values["input"], fx.Node) or values["input"].op == "get_attr":
            return None
        tensors: dict[str, tuple[str, Tensor]] = {}
        for name, value in values.items():
            if name != "input" and isinstance(value, fx.Node):
                if value.op != "get_attr":
                    return None
                found = attribute(self.exported, str(value.target))
                tensors[name] = (str(value.target), self._shared(found))
        return _Call(node, values, tensors)

    def _shared(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            return tensor
        if id(tensor) not in self.parameters:
            self.parameters[id(tensor)] = nn.Parameter(tensor.detach(), requires_grad=False)
        return self.parameters[id(tensor)]

    def _path(self, call: _Call, module: nn.Module) -> str:
        key = (repr(module), *(id(tensor) for _, tensor in call.tensors.values()))
        if call.tensors and key in self.built:
            return self.built[key]
        path = self._free_path(call, module)
        self.modules[path] = module
        self.built[key] = path
        return path

    def _free_path(self, call: _Call, module: nn.Module) -> str:
        owner = next((target for target, _ in call.tensors.values()), None)
        if owner is not None:
            wanted = (
                owner.removesuffix(".weight").removesuffix("_weight").removesuffix(".running_mean")
            )
        else:
            wanted = _caller_path(call.node, type(module).__name__)
            owners = {
                str(n.target).rpartition(".")[0]
                for n in self.exported.graph.nodes
                if n.op == "get_attr"
            }
            if wanted.rpartition(".")[0] in owners:
                wanted = "_".join(wanted.rsplit(".", 1))
        path, count = wanted, 0
        while path in self.modules or path in _NAMES_OF_GRAPH_MODULE:
            count += 1
            path = f"{wanted}_{count}"
        return path


_NAMES_OF_GRAPH_MODULE = frozenset(dir(fx.GraphModule))


def _caller_path(node: fx.Node, kind: str) -> str:
    path, called = caller(node)
    if path and called.rpartition(".")[2].rstrip("'>") in (kind, "ReLU", "ReLU6", "SiLU", "GELU"):
        return path
    return f"{path}.{kind.lower()}" if path else kind.lower()


def _name(node: fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    return packet.__name__ if packet is not None else getattr(node.target, "__name__", "")


def _trains(node: fx.Node) -> bool:
    """Whether a dropout or a batch norm with running statistics was exported in training mode."""
    if _name(node) == "batch_norm":
        return node.args[3] is not None and bool(node.args[5])
    return _name(node).removesuffix("_").endswith("dropout") and bool(node.args[2])


def _functional(node: fx.Node) -> tuple[Any, fx.Node | None]:
    """The functional form of an in-place call and the node it writes to."""
    name = _name(node)
    if not isinstance(node.target, OpOverload) or not name.endswith("_") or name.endswith("__"):
        return node.target, None
    written = node.args[0]
    if not isinstance(written, fx.Node) or _is_view(written):
        return node.target, None
    packet = getattr(aten, name[:-1], None)
    overload = node.target._overloadname  # pyright: ignore[reportPrivateUsage]
    if packet is None or overload not in packet.overloads():
        return node.target, None
    return getattr(packet, overload), written


def _is_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(
        r.alias_info and not r.alias_info.is_write for r in schema.returns
    )


def _flatten(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in _flatten(item)]
    return [value]


def _convolution(kind: type[Any], dimensions: int) -> Callable[[_Call], nn.Module | None]:
    def rule(call: _Call) -> nn.Module | None:
        weight, bias = call.parameter("weight"), call.parameter("bias")
        if weight is None or call.rank != dimensions + 2:
            return None
        v = call.values
        padding = (
            v["padding"] if isinstance(v["padding"], str) else _spread(v["padding"], dimensions)
        )
        module = kind(
            weight.shape[1] * v["groups"],
            weight.shape[0],
            tuple(weight.shape[2:]),
            stride=_spread(v["stride"], dimensions),
            padding=padding,
            dilation=_spread(v["dilation"], dimensions),
            groups=v["groups"],
            bias=bias is not None,
            device="meta",
        )
        module.weight, module.bias = weight, bias
        return module

    return rule


def _spread(value: Any, dimensions: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * dimensions if len(values) == 1 else values


def _linear(call: _Call) -> nn.Module | None:
    weight, bias = call.parameter("weight"), call.parameter("bias")
    if weight is None:
        return None
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    module.weight, module.bias = weight, bias  # pyright: ignore[reportAttributeAccessIssue]
    return module


def _batch_norm(call: _Call) -> nn.Module | None:
    mean, variance = call.tensor("running_mean"), call.tensor("running_var")
    if call.values["training"] or mean is None or variance is None:
        return None
    kinds: dict[int, type[Any]] = {
        2: nn.BatchNorm1d,
        3: nn.BatchNorm1d,
        4: nn.BatchNorm2d,
        5: nn.BatchNorm3d,
    }
    weight, bias = call.parameter("weight"), call.parameter("bias")
    v = call.values
    module = kinds[call.rank](len(mean), eps=v["eps"], momentum=v["momentum"], affine=False)
    module.affine = weight is not None
    module.input_rank = call.rank
    module.running_mean, module.running_var, module.weight, module.bias = (
        mean,
        variance,
        weight,
        bias,
    )
    return module


def _hardtanh(call: _Call) -> nn.Module:
    low, high = float(call.values["min_val"]), float(call.values["max_val"])
    return nn.ReLU6() if (low, high) == (0.0, 6.0) else nn.Hardtanh(low, high)


def _prelu(call: _Call) -> nn.Module | None:
    weight = call.tensor("weight")
    if weight is None:
        return None
    module = nn.PReLU(weight.numel())
    module.weight = weight  # pyright: ignore
    return module


_RULES: dict[str, Callable[[_Call], nn.Module | None]] = {
    "conv1d": _convolution(nn.Conv1d, 1),
    "conv2d": _convolution(nn.Conv2d, 2),
    "conv3d": _convolution(nn.Conv3d, 3),
    "linear": _linear,
    "batch_norm": _batch_norm,
    "relu": lambda call: nn.ReLU(),
    "relu6": lambda call: nn.ReLU6(),
    "hardtanh": _hardtanh,
    "leaky_relu": lambda call: nn.LeakyReLU(call.values["negative_slope"]),
    "elu": lambda call: nn.ELU(call.values["alpha"]),
    "prelu": _prelu,
    "silu": lambda call: nn.SiLU(),
    "gelu": lambda call: nn.GELU(call.values["approximate"]),
    "mish": lambda call: nn.Mish(),
    "hardswish": lambda call: nn.Hardswish(),
    "hardsigmoid": lambda call: nn.Hardsigmoid(),
    "sigmoid": lambda call: nn.Sigmoid(),
    "tanh": lambda call: nn.Tanh(),
}
