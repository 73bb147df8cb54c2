"""How many images pass together in calibration and evaluation."""

from __future__ import annotations

from torch import fx

from datafree.config import InputSpec, RunConfig
from datafree.graph.footprint import footprint
from datafree.images import batch_size, blank
from datafree.tensors import device_of
from datafree.tensors.memory import Portion, free_bytes

_QUANTIZING = 3.0  # quantizers keep their input, its codes and their result at one time
_REMEDY = "use a machine that has more memory, or a network for smaller images"


def passing(what: str, network: fx.GraphModule, spec: InputSpec, config: RunConfig) -> Portion:
    """As many images as `config` says, or else as their size allows, if so many fit into memory.

    Args:
        what: is done with them, for people.
        network: canonical graph.
        spec: its input.
        config: of the run.
    """
    portion = Portion(what, config.images_per_batch or batch_size(spec), remedy=_REMEDY)
    device = device_of(network)
    free = None if config.images_per_batch else free_bytes(device)
    if free is None:
        return portion
    return portion.afford(_QUANTIZING * footprint(network, blank(spec, device)).peak, free)
