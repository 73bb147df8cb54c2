"""The network behind its own normalisation, and in front of which pixels have the usual unit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx

from datafree.config import InputSpec, build
from datafree.errors import ConfigError
from datafree.graph.image import affine_ends
from datafree.tensors import device_of

GREY, DEVIATION = 0.449, 0.226
"""Mean and deviation of ImageNet's pixels on a scale from 0 to 1, the mean over its colours."""
# Deviations of photographs, and means, that methods can begin from: pixels from 0 to 1 are.
_NEAR, _FURTHEST = (0.2, 5.0), 2.5


def behind_normalisation(
    graph_module: fx.GraphModule, spec: InputSpec
) -> tuple[fx.GraphModule, InputSpec]:
    """The network behind what it adds to, and multiplies, its images by at first.

    Methods that dream images begin from, and stay near, images of mean 0 and deviation 1 by
    channel, which are the normalised ones. For a network that takes far other numbers, as pixels
    from 0 to 255, that is a black image, and the papers' rates are a hundredth of what they should
    be: such a network gets a step in front of it, and takes images as ImageNet's are normalised.

    Args:
        graph_module: canonical; not changed.
        spec: its input.

    Returns:
        A graph without these operators and the input it takes, whose `mean` and `std` say the same
        of pixels as `spec` and the operators did; or one with a step in front. Both arguments where
        neither is needed, or where the operators turn black to white.
    """
    inner, own = _peeled(graph_module, spec)
    if own.inputs or _usual(own):
        return inner, own
    return _in_front(inner, own), own.model_copy(
        update={"mean": (GREY,) * len(own.mean), "std": (DEVIATION,) * len(own.std)}
    )


def _usual(spec: InputSpec) -> bool:
    """Whether photographs, normalised, have about mean 0 and deviation 1 in all channels."""
    pairs = list(zip(spec.mean, spec.std, strict=True))
    near = all(_NEAR[0] <= DEVIATION / std <= _NEAR[1] for _, std in pairs)
    return near and all(abs(GREY - mean) / std <= _FURTHEST for mean, std in pairs)


def _in_front(graph_module: fx.GraphModule, spec: InputSpec) -> fx.GraphModule:
    """A copy that takes images as ImageNet's are normalised, and makes of them those of `spec`."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(graph_module.graph, {}))
    made = fx.GraphModule(graph_module, graph)
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)
        for values in (spec.mean, spec.std)
    )
    images = next(node for node in made.graph.nodes if node.op == "placeholder")
    readers, last = list(images.users), images
    for name, values, function in (
        ("usual_factor", DEVIATION / std, torch.ops.aten.mul.Tensor),
        ("usual_shift", (GREY - mean) / std, torch.ops.aten.add.Tensor),
    ):
        made.register_buffer(name, values.float().to(device_of(graph_module)))
        with made.graph.inserting_after(last):
            constant = made.graph.get_attr(name)
        with made.graph.inserting_after(constant):
            last = made.graph.call_function(function, (last, constant))
    for reader in readers:
        reader.replace_input_with(images, last)
    made.recompile()
    return made


def _peeled(graph_module: fx.GraphModule, spec: InputSpec) -> tuple[fx.GraphModule, InputSpec]:
    """Without what adds to images, and multiplies them, at first."""
    ends = _ends(graph_module, spec)
    if ends is None:
        return graph_module, spec
    last, black, white = ends
    if not bool((white > black).all()):
        return graph_module, spec
    std = 1 / (white - black)
    described = {
        **spec.model_dump(),
        "mean": tuple((-black * std).tolist()),
        "std": tuple(std.tolist()),
    }
    try:
        inner = build(InputSpec, described, "input")
    except ConfigError:  # of numbers that no images between 0 and 1 have
        return graph_module, spec
    return _without(graph_module, last), inner


def as_taken(graph_module: fx.GraphModule, spec: InputSpec) -> Callable[[Tensor], Tensor]:
    """What turns images (B, C, H, W) of the network behind its own normalisation into its images.

    Generators make images of mean 0 and deviation 1, which a network that normalises inside
    `forward` does not take. Images stay the same tensors where it does not.

    Args:
        graph_module: canonical; not changed.
        spec: its input.
    """
    _, inner = behind_normalisation(graph_module, spec)
    if inner is spec:
        return lambda images: images
    mean, std, own_mean, own_std = (
        torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)
        for values in (inner.mean, inner.std, spec.mean, spec.std)
    )
    factor, shift = std / own_std, (mean - own_mean) / own_std
    return lambda images: images * factor.to(images) + shift.to(images)


def _ends(graph_module: fx.GraphModule, spec: InputSpec) -> tuple[fx.Node, Tensor, Tensor] | None:
    """The last of the operators, and what black and white are behind it, (C,) each."""
    node = next(node for node in graph_module.graph.nodes if node.op == "placeholder")
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (spec.mean, spec.std))
    ends, first = (-mean / std, (1 - mean) / std), node
    while len(node.users) == 1:
        (reader,) = node.users
        found = affine_ends(graph_module, reader, node, ends)
        if found is None:
            break
        node, ends = reader, found
    return None if node is first else (node, *ends)


def _without(graph_module: fx.GraphModule, last: fx.Node) -> fx.GraphModule:
    """A copy in which the input takes the place of `last`."""
    known: dict[fx.Node, fx.Node] = {}
    graph = fx.Graph()
    graph.output(graph.graph_copy(graph_module.graph, known))
    images = next(node for node in graph.nodes if node.op == "placeholder")
    known[last].replace_all_uses_with(images)
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    return fx.GraphModule(graph_module, graph)
