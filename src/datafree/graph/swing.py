"""Swing convolution: strided convolutions that see their input shifted at random (A.6.1).

A strided convolution reads some positions more often than others, and images optimised through it
carry that pattern. Shifting its input by up to a pixel, anew in every forward pass, lets every
position take every role (Jeon et al., GENIE, CVPR 2023).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

_REACH = 1
"""Pixels an image moves by at most, to either side; the published method pads by one."""


class Swing(nn.Module):
    """Shift images by an offset drawn once per forward pass, for the whole batch.

    Equal to a reflection pad of 1 on all sides and a crop back to the old size at an offset drawn
    uniformly from ``{0, 1, 2}^2``.
    """

    def __init__(self, generator: torch.Generator) -> None:
        """Draw offsets from `generator`, on the CPU."""
        super().__init__()
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) shifted by up to a pixel; same shape."""
        offsets = torch.randint(-_REACH, _REACH + 1, (2,), generator=self.generator)
        rows, columns = offsets.tolist()
        return shifted(shifted(x, rows, 2), columns, 3)


def shifted(x: Tensor, offset: int, dim: int) -> Tensor:
    """`x` read `offset` positions further along `dim`, reflected at the edge without repeating it.

    ``y[i] = x[i + offset]``, where ``x[-1]`` is ``x[1]`` and ``x[n]`` is ``x[n - 2]``.

    Args:
        x: any tensor.
        offset: -1, 0 or 1.
        dim: dimension to move along; one of size 1 has nothing to reflect and stays as it is.

    Returns:
        Tensor of the shape of `x`; `x` itself where nothing moves.
    """
    size = x.shape[dim]
    if offset == 0 or size == 1:
        return x
    # Slices rather than F.pad: its gradient on CUDA adds in no fixed order.
    if offset < 0:
        return torch.cat([x.narrow(dim, 1, 1), x.narrow(dim, 0, size - 1)], dim)
    return torch.cat([x.narrow(dim, 1, size - 1), x.narrow(dim, size - 2, 1)], dim)


def swing_convolutions(graph_module: fx.GraphModule, generator: torch.Generator) -> fx.GraphModule:
    """A copy of `graph_module` in which every strided `Conv2d` swings.

    Strided means a stride other than (1, 1), 1x1 and depthwise convolutions included; every call
    draws its own offset. Pooling and all other layers stay. For synthesis only: quantize the
    original.

    Args:
        graph_module: the canonical graph; not changed.
        generator: source of the offsets, on the CPU; shared, not copied.

    Returns:
        A graph module with the same shapes everywhere.
    """
    swung = copy.deepcopy(graph_module)
    for node in list(swung.graph.nodes):
        if node.op != "call_module" or not _is_strided(swung.get_submodule(str(node.target))):
            continue
        name = f"{node.name}_swing"
        swung.add_submodule(name, Swing(generator))
        source = node.all_input_nodes[0]
        with swung.graph.inserting_before(node):
            moved = swung.graph.call_module(name, (source,))
        node.replace_input_with(source, moved)
    swung.graph.lint()
    swung.recompile()
    return swung


def _is_strided(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and any(step != 1 for step in module.stride)
