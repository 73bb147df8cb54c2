"""What a network takes: one tensor inside, the network's own arguments outside.

A graph whose network takes more, or something else, than one image begins with `input_part`, which
takes each input out of one packed tensor (B, C, H, W) and gives it its own shape. That is the only
form the stages know. Files and people give the inputs by themselves (`apart`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor, fx
from torch.fx.graph import CodeGen

from datafree.config.inputs import Input, layout
from datafree.errors import CaptureError
from datafree.losses import input_part, unpack

_META = "inputs"
PACKED = "images"
"""Name of the one input of a graph whose inputs stand in one tensor."""
T = TypeVar("T")


def inputs_of(graph_module: fx.GraphModule) -> tuple[Input, ...]:
    """The inputs of a network that takes more than one image; empty of all others."""
    return graph_module.meta.get(_META, ())


def input_at(graph_module: fx.GraphModule, node: fx.Node) -> Input | None:
    """The input that `node` takes out of the packed tensor; None where it is something else."""
    if not is_input_part(node):
        return None
    return inputs_of(graph_module)[int(node.args[1])]  # pyright: ignore[reportArgumentType]


def is_input_part(node: fx.Node) -> bool:
    """Whether `node` takes an input out of the packed tensor."""
    return node.target is input_part


def fed(call: Callable[..., T], inputs: Sequence[Input]) -> Callable[[Tensor], T]:
    """`call`, which takes all inputs, as a function of the packed tensor."""
    return (lambda packed: call(*unpack(packed, inputs))) if inputs else call


def joined_inputs(graph_module: fx.GraphModule, inputs: tuple[Input, ...]) -> None:
    """Let a graph that takes `inputs` one by one take them packed, in place.

    Raises:
        CaptureError: it takes another number of tensors.
    """
    graph = graph_module.graph
    own = list(graph.find_nodes(op="placeholder"))
    if len(own) != max(len(inputs), 1):
        raise CaptureError(
            f"the model takes {len(own)} inputs ({', '.join(str(n.target) for n in own)}), and is"
            f" said to take {max(len(inputs), 1)}: give input_shape of each"
        )
    if not inputs:
        return
    places, _ = layout(inputs)
    with graph.inserting_before(own[0]):
        packed = graph.placeholder(PACKED)
    packed.meta = {**own[0].meta, "rank": 4}
    for k, (node, one, place) in enumerate(zip(own, inputs, places, strict=True)):
        if node.users:
            with graph.inserting_before(node):
                arguments = (packed, k, place.start, place.channels, one.shape)
                part = graph.call_function(input_part, arguments)
            part.meta = dict(node.meta)
            node.replace_all_uses_with(part)
            node.name, part.name = f"{node.name}_given", node.name
        graph.erase_node(node)
    graph_module.meta[_META] = inputs
    graph.lint()
    graph_module.recompile()


def apart(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A graph that takes every input by itself, under its name; tensors are shared.

    Args:
        graph_module: as the stages have it. One that takes an image, or is apart already, is
            returned as it is.
    """
    inputs = inputs_of(graph_module)
    if not inputs or not _is_packed(graph_module):
        return graph_module
    graph = copy.deepcopy(graph_module.graph)
    (packed,) = graph.find_nodes(op="placeholder")
    with graph.inserting_before(packed):
        own = [graph.placeholder(one.name) for one in inputs]
    for node in list(packed.users):
        if not is_input_part(node):  # a number of images
            node.replace_input_with(packed, own[0])
            continue
        place = own[int(node.args[1])]  # pyright: ignore[reportArgumentType]
        place.meta = dict(node.meta)
        node.replace_all_uses_with(place)
        graph.erase_node(node)
    graph.erase_node(packed)
    return with_graph(graph_module, graph)


def packed_again(graph_module: fx.GraphModule) -> fx.GraphModule:
    """The form the stages know, of what `apart` returned; tensors are shared."""
    inputs = inputs_of(graph_module)
    if not inputs or _is_packed(graph_module):
        return graph_module
    graph = copy.deepcopy(graph_module.graph)
    graph.set_codegen(CodeGen())
    found = with_graph(graph_module, graph)
    joined_inputs(found, inputs)
    return found


def with_graph(
    graph_module: fx.GraphModule, graph: fx.Graph, constants: dict[str, Tensor] | None = None
) -> fx.GraphModule:
    """`graph` with the modules and tensors of `graph_module`, and what is known of it."""
    for name, value in (constants or {}).items():
        graph_module.register_buffer(name, value, persistent=False)
    found = fx.GraphModule(graph_module, graph, type(graph_module).__name__)
    found.meta = dict(graph_module.meta)
    found.training = graph_module.training
    return found


def _is_packed(graph_module: fx.GraphModule) -> bool:
    own = graph_module.graph.find_nodes(op="placeholder")
    return len(own) == 1 and any(is_input_part(user) for user in own[0].users)
