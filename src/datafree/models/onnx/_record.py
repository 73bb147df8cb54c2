"""A converted network written down as one plain graph, by running it once on images without values.

The converter's modules compute sizes, slices and axes from tensors of the file, which
`torch.export` takes for values that nobody knows before the network runs. Here every call whose
result depends on the images becomes a node with plain numbers; everything else is computed on the
spot. The number of images is a prime that divides nothing else (`datafree.models.onnx._simple`), so
wherever a multiple of it turns up, images are counted, and the graph counts those it is given.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from datafree.models.onnx._calls import Call, Counts, RecordError, canonical
from datafree.models.onnx._names import plain_path
from datafree.tensors import is_taken

_FORBIDDEN = frozenset(dir(fx.GraphModule))
_RESHAPES = frozenset({"reshape", "view"})


def record(
    module: nn.Module, inputs: dict[str, tuple[int, ...]], counts: Counts, names: dict[int, str]
) -> fx.GraphModule:
    """The graph of `module`, for any number of images.

    Args:
        module: images in, one tensor or several out; not changed, its tensors are shared.
        inputs: shapes of one item of each, by the names that the graph's arguments get.
        counts: how many images it is run on.
        names: what parameters and buffers of `module` are to be called, by `id`.

    Raises:
        RecordError: a size or a value depends on the images; the message says which.
        Exception: what torch raises where the sizes of a call do not fit.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        given = {name: torch.empty(counts.batch, *shape) for name, shape in inputs.items()}
    recorder = _Recorder(given, counts, names)
    with torch.no_grad(), recorder:
        outputs = module(*given.values())
    return recorder.finish(outputs)


class _Recorder(TorchFunctionMode):
    """Runs every call and makes a node of those that read images."""

    def __init__(self, given: dict[str, Tensor], counts: Counts, names: dict[int, str]) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.counts = counts
        self.names = names
        self.nodes: dict[int, fx.Node] = {
            id(tensor): self.graph.placeholder(name) for name, tensor in given.items()
        }
        self.images, *_ = self.nodes.values()
        # An id is one tensor's only while that is alive.
        self.kept: list[Tensor] = list(given.values())
        self.constants: dict[int, fx.Node] = {}
        self.size: fx.Node | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `func`; note the call where it reads images and returns tensors."""
        call = Call(func, args, kwargs or {})
        if not any(id(tensor) in self.nodes for tensor in call.tensors()):
            return func(*args, **(kwargs or {}))
        if call.name == "data":
            return args[0]
        call = canonical(call, self.counts, lambda tensor: id(tensor) in self.nodes)
        result = call.func(*call.args, **call.kwargs)
        self._note(call, result)
        return result

    def finish(self, outputs: Any) -> fx.GraphModule:
        """The graph that returns `outputs`."""
        values = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
        if any(id(value) not in self.nodes for value in values):
            raise RecordError("an output does not depend on the images")
        found = [self.nodes[id(value)] for value in values]
        self.graph.output(found[0] if len(found) == 1 else tuple(found))
        _drop_indices(self.graph)
        self.graph.eliminate_dead_code()
        module = fx.GraphModule(self.root, self.graph)
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        return module.eval()

    def _note(self, call: Call, result: Any) -> None:
        values: Any = [result] if isinstance(result, Tensor) else result
        if not isinstance(values, list | tuple) or not any(isinstance(v, Tensor) for v in values):
            if call.name == "__setitem__":
                raise RecordError("values are written in place")
            return  # a size, a type: known now
        if isinstance(result, Tensor) and id(result) in self.nodes:
            if call.name.endswith("_") and not call.name.endswith("__"):
                raise RecordError(f"{call.name} writes in place")
            return  # the tensor itself: a conversion to the type it has
        if call.read:
            raise RecordError(f"{call.name} cannot be written down")
        node = self.graph.call_function(
            call.func,
            self._arguments(call),
            {key: self._argument(value) for key, value in call.kwargs.items()},
        )
        if isinstance(result, Tensor):
            self._keep(result, node)
            return
        for place, value in enumerate(values):
            if isinstance(value, Tensor):
                self._keep(value, self.graph.call_function(operator.getitem, (node, place)))

    def _keep(self, tensor: Tensor, node: fx.Node) -> None:
        self.nodes[id(tensor)] = node
        self.kept.append(tensor)

    def _arguments(self, call: Call) -> tuple[Any, ...]:
        if call.name not in _RESHAPES:
            return tuple(self._argument(value) for value in call.args)
        source, *sizes = call.args
        sizes = list(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
        sizes = [int(size) for size in sizes]
        counting = [place for place, size in enumerate(sizes) if self._counts_images(size)]
        if len(counting) == 1 and -1 not in sizes:
            sizes[counting[0]] = -1
        return self._argument(source), tuple(self._argument(size) for size in sizes)

    def _argument(self, value: Any) -> Any:
        """`value` as it stands in a node."""
        if isinstance(value, Tensor):
            return self.nodes.get(id(value)) or self._constant(value)
        if isinstance(value, bool | float | str | type(None)):
            return value
        if isinstance(value, int | np.integer):
            return self._counted(int(value))
        if isinstance(value, slice):
            bounds = (value.start, value.stop, value.step)
            return slice(*(self._argument(self._plain(bound)) for bound in bounds))
        if isinstance(value, list | tuple):
            kind = list if isinstance(value, list) else tuple
            return kind(self._argument(self._plain(item)) for item in value)
        return value

    def _plain(self, value: Any) -> Any:
        """One of several sizes or bounds as a number."""
        single = isinstance(value, Tensor) and value.ndim == 0 and id(value) not in self.nodes
        return int(value) if single and not value.is_floating_point() else value

    def _counts_images(self, size: int) -> bool:
        return size != 0 and size % self.counts.batch == 0

    def _counted(self, size: int) -> Any:
        """`size`, or how many times the number of images it is."""
        if not self._counts_images(size):
            return size
        if self.size is None:
            with self.graph.inserting_after(self.images):
                self.size = self.graph.call_method("size", (self.images, 0))
        times = size // self.counts.batch
        return (
            self.size if times == 1 else self.graph.call_function(operator.mul, (self.size, times))
        )

    def _constant(self, value: Tensor) -> fx.Node:
        if id(value) not in self.constants:
            self.kept.append(value)
            self.constants[id(value)] = self._attached(value)
        return self.constants[id(value)]

    def _attached(self, value: Tensor) -> fx.Node:
        counting = [place for place, size in enumerate(value.shape) if self._counts_images(size)]
        one = value
        for place in counting:
            if value.shape[place] != self.counts.batch:
                raise RecordError("a constant is laid out for a number of images")
            one = one.narrow(place, 0, 1)
        if counting and not torch.equal(one.expand_as(value), value):
            raise RecordError("a constant differs from image to image")
        path = self._free(self.names.get(id(value), "constant"))
        owner = self.root
        *parents, leaf = path.split(".")
        for parent in parents:
            if not hasattr(owner, parent):
                owner.add_module(parent, nn.Module())
            owner = owner.get_submodule(parent)
        weight = isinstance(value, nn.Parameter) or (value.is_floating_point() and value.ndim > 0)
        if weight and "running_" not in leaf:
            owner.register_parameter(leaf, nn.Parameter(one.detach().contiguous(), False))
        else:
            owner.register_buffer(leaf, one.contiguous())
        node = self.graph.get_attr(path)
        if counting:
            sizes = [self._counted(size) for size in value.shape]
            node = self.graph.call_method("expand", (node, *sizes))
        return node

    def _free(self, name: str) -> str:
        wanted = plain_path(name, _FORBIDDEN)
        path, count = wanted, 0
        while is_taken(self.root, path):
            count += 1
            stem, dot, leaf = wanted.rpartition(".")
            path = f"{stem}_{count}.{leaf}" if dot else f"{wanted}_{count}"
        return path


def _drop_indices(graph: fx.Graph) -> None:
    """Pool without indices where nothing reads them."""
    plain = {
        nn.functional.max_pool1d_with_indices: torch.max_pool1d,
        nn.functional.max_pool2d_with_indices: torch.max_pool2d,
        nn.functional.max_pool3d_with_indices: torch.max_pool3d,
    }
    for node in list(graph.nodes):
        if node.target in plain and all(
            not user.users or (user.target is operator.getitem and user.args[1] == 0)
            for user in node.users
        ):
            node.target = plain[node.target]
            node.kwargs = {k: v for k, v in node.kwargs.items() if k != "return_indices"}
            for user in list(node.users):
                user.replace_all_uses_with(node)
                graph.erase_node(user)
