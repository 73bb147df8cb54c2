"""Feature maps of teacher and student at the same places, for losses that compare them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, fx, nn

from datafree.errors import ModelError
from datafree.graph.blocks import Block, find_blocks
from datafree.graph.taps import BatchNorm, tap_outputs
from datafree.training._task import Dream

_LEAST_LAYERS = 2  # of a block, where networks have such blocks


@dataclass(frozen=True)
class Place:
    """Where a map is taken: behind a convolution and its batch norm, if it has one.

    Attributes:
        layer: path of the convolution, which gives the map where batch norms are folded.
        norm: path of the batch norm, or None.
    """

    layer: str
    norm: str | None

    def of(self, network: nn.Module) -> nn.Module:
        """The module of `network` whose output is the map."""
        present = self.norm is not None and any(n == self.norm for n, _ in network.named_modules())
        return network.get_submodule(str(self.norm) if present else self.layer)


@dataclass(frozen=True)
class Watched:
    """A teacher, and where its maps are taken.

    Attributes:
        teacher: as captured, with its batch norms.
        places: whose features are compared.
        last: where its class map is taken, if it is.
    """

    teacher: nn.Module
    places: tuple[Place, ...] = ()
    last: Place | None = None


@dataclass(frozen=True)
class Maps:
    """What two networks make of the same images.

    Attributes:
        dream: the images, with the teacher's logits of them.
        logits: the student's.
        features: maps (B, C, H, W) of teacher and student, of every place.
        last: those of the last place, if there is one.
    """

    dream: Dream
    logits: Tensor
    features: list[tuple[Tensor, Tensor]]
    last: tuple[Tensor, Tensor] | None


def block_places(graph: fx.GraphModule) -> tuple[Place, ...]:
    """The last convolution of every block, before what is added to it: HAST's places.

    Of the branches that a block adds up, the one with most convolutions is taken. Blocks of a
    single layer, such as a stem, are left out where there are others, and so are layers that are
    called several times.

    Args:
        graph: canonical graph of the teacher, with its batch norms.

    Raises:
        ModelError: no layer of the network makes a map.
    """
    found = [(block, _last_of(graph, block)) for block in find_blocks(graph)]
    every = [(block, place) for block, place in found if place is not None]
    large = [place for block, place in every if len(block.layers) >= _LEAST_LAYERS]
    places = large or [place for _, place in every]
    if not places:
        raise ModelError("no convolution was found whose maps could be compared: use fixed_set")
    return tuple(places)


def last_place(graph: fx.GraphModule) -> Place:
    """The convolution that is carried out last.

    Raises:
        ModelError: there is none.
    """
    calls = [node for node in graph.graph.nodes if node.op == "call_module"]
    places = [place for node in calls if (place := _place(graph, node)) is not None]
    if not places:
        raise ModelError("no convolution was found whose maps could be compared: use fixed_set")
    return places[-1]


def observed(watched: Watched, student: nn.Module, images: Tensor, dream: Dream) -> Maps:
    """Show `images` to both networks, with gradients to the images where they ask for some.

    Args:
        watched: the teacher.
        student: made from it.
        images: (B, C, H, W).
        dream: the batch they are of, for its labels.
    """
    last = () if watched.last is None else (watched.last,)
    places = list(dict.fromkeys((*watched.places, *last)))
    found: list[dict[str, Tensor]] = []
    answers: list[Tensor] = []
    for network in (watched.teacher, student):
        maps: dict[str, Tensor] = {}
        modules = {place.layer: place.of(network) for place in places}
        with tap_outputs(modules, maps.__setitem__):
            answers.append(network(images).float())
        found.append({path: value.float() for path, value in maps.items()})
    pairs = {place: (found[0][place.layer], found[1][place.layer]) for place in places}
    return Maps(
        replace(dream, images=images, logits=answers[0], features=[], blocks=[]), answers[1],
        [pairs[place] for place in watched.places],
        None if watched.last is None else pairs[watched.last],
    )  # fmt: skip


def attention_distance(one: Tensor, other: Tensor) -> Tensor:
    """``mean_(B, C) (a_1 - a_2)^2`` of channel attentions ``a = v / |v|``, ``v = mean_hw f^2``.

    Factors on a map change nothing; HAST's feature alignment is the sum over blocks.

    Args:
        one: (B, C, H, W).
        other: likewise.

    Returns:
        Scalar.
    """
    first, second = (F.normalize(f.square().mean((2, 3)), dim=1) for f in (one, other))
    return (first - second).square().mean()


def _last_of(graph: fx.GraphModule, block: Block) -> Place | None:
    """The last convolution of `block` on its longest branch; None if it ends in another layer."""
    depth: dict[fx.Node, int] = {}
    nodes = {node.name: node for node in graph.graph.nodes}
    inside = False
    for node in graph.graph.nodes:
        if inside:
            counted = node.op == "call_module" and str(node.target) in block.layers
            before = [depth[used] for used in node.all_input_nodes if used in depth]
            if before or (node.all_input_nodes and nodes[block.start] in node.all_input_nodes):
                depth[node] = max(before, default=0) + counted
        inside = inside or node.name == block.start
        if node.name == block.end:
            break
    node = nodes[block.end]
    while not (node.op == "call_module" and str(node.target) in block.layers):
        node = max((used for used in node.all_input_nodes if used in depth), key=depth.__getitem__)
    return _place(graph, node)


def _place(graph: fx.GraphModule, node: fx.Node) -> Place | None:
    """Behind `node`, if it is a convolution that is called once."""
    path = str(node.target)
    alone = len(graph.graph.find_nodes(op="call_module", target=path)) == 1
    if not alone or not isinstance(graph.get_submodule(path), nn.Conv2d):
        return None
    return Place(path, _norm_behind(graph, node))


def _norm_behind(graph: fx.GraphModule, node: fx.Node) -> str | None:
    if len(node.users) != 1:
        return None
    (reader,) = node.users
    if reader.op != "call_module":
        return None
    path = str(reader.target)
    return path if isinstance(graph.get_submodule(path), BatchNorm) else None
