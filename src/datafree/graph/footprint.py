"""Memory that one image takes on its way through a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Footprint:
    """Bytes of what layers return for one image.

    Attributes:
        kept: of all of them, as going back needs them.
        peak: of those that are needed at one time at most, where nothing goes back.
    """

    kept: int
    peak: int


def footprint(network: fx.GraphModule, image: Tensor) -> Footprint:
    """What `image` (1, C, …) takes, on the device of the network; it is really passed."""
    watching = _Watching(network)
    with torch.inference_mode():
        watching.run(image)
    return Footprint(watching.kept, watching.peak)


class _Watching(fx.Interpreter):
    """Counts the bytes of what nodes return, unless they return memory that was there before."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.kept = self.peak = 0
        self._alive: dict[fx.Node, int] = {}
        self._known: dict[fx.Node, set[int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        stores = {
            leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes()
            for leaf in tree_leaves(result)
            if isinstance(leaf, Tensor) and n.op not in ("get_attr", "output")
        }
        before = {place for source in n.all_input_nodes for place in self._known.get(source, ())}
        self._known[n] = set(stores)
        self._alive[n] = sum(size for place, size in stores.items() if place not in before)
        self.kept += self._alive[n]
        self.peak = max(self.peak, sum(self._alive.values()))
        for done in self.user_to_last_uses.get(n, ()):
            self._alive.pop(done, None)
            self._known.pop(done, None)
        return result
