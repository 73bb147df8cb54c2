"""What one layer's weights at few bits do to the network's output (ZeroQ, algorithms B.12)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from datafree.config import Scheme
from datafree.errors import ConfigError, ModelError
from datafree.graph.activations import Rows, passed, share, stored
from datafree.graph.blocks import find_blocks, output_name, subgraph
from datafree.graph.insert import quantizable_layers, quantized_layer
from datafree.graph.outputs import heads_of
from datafree.losses import Heads, distillation
from datafree.progress import Progress, silent
from datafree.quant.modules import QUANTIZABLE
from datafree.tensors import device_of

_TENSORS_HELD = 2  # the values at both borders of a block


def sensitivities(
    folded: fx.GraphModule,
    scheme: Scheme,
    images: Tensor,
    bits: Sequence[int],
    *,
    memory_gb: float = 4.0,
    progress: Progress = silent,
) -> dict[str, dict[int, float]]:
    """How far the output moves when one layer alone has its weights at k bits.

    Cai et al. 2020 (ZeroQ): over n images x_j, with the float network M and M_l(k), M with only
    the weights of layer l at k bits,

        Omega_l(k) = 1/n sum_j KL(softmax M(x_j) || softmax M_l(k)(x_j)).

    Of a network with several outputs, or without classes, it is the sum of the divergences at all
    positions and of the relative squared errors of numbers (`datafree.losses.distillation`).
    Activations stay in float. Weights are on the grids `insert_quantizers` would give them. What
    lies before a layer's block is computed once for all layers after it, so this takes about half
    of ``layers x bits`` passes through the network.

    Args:
        folded: the float graph the student will be made from; not changed.
        scheme: granularity, symmetry and range of the weights' grids; its bits are not looked at.
        images: (N, C, H, W), normalised.
        bits: numbers of bits to try.
        memory_gb: room for the values at the border of a block; what goes beyond is kept on disk.
        progress: shown while it runs, in layers times numbers of bits.

    Returns:
        KL divergence in nats, not negative, by layer path in execution order and by bits.

    Raises:
        ConfigError: no images, or no bits to try.
        ModelError: the network has no convolution or linear layer, or weights or outputs are not
            finite; the message names the layer.
    """
    if not len(images):
        raise ConfigError("sensitivity needs images to see the layers work on, and there are none")
    if not bits:
        raise ConfigError("no numbers of bits to try: name at least one, such as 4")
    blocks = find_blocks(folded)
    _check_weights(folded)
    limit = share(memory_gb, _TENSORS_HELD)
    border = stored(images, device_of(folded), limit)
    heads = heads_of(folded)
    expected = _returned(folded, border, "the float network")
    end = output_name(folded)
    found: dict[str, dict[int, float]] = {}
    with progress("sensitivity", len(quantizable_layers(folded)) * len(bits)) as step:
        for block in blocks:
            rest = subgraph(folded, block.start, end)
            # A layer called several times is at k bits in all its calls: measured from the first.
            for path in (path for path in block.layers if path not in found):
                layer = rest.get_submodule(path)
                found[path] = {}
                for width in bits:
                    rest.set_submodule(path, quantized_layer(layer, scheme, width))
                    where = f"the network with {path} at {width} bits"
                    found[path][width] = _divergence(
                        expected, _returned(rest, border, where), heads
                    )
                    step(1)
                rest.set_submodule(path, layer)
            border = passed(subgraph(folded, block.start, block.end), border, limit)
    return {path: found[path] for path in quantizable_layers(folded)}


def _returned(network: fx.GraphModule, inputs: Rows, what: str) -> Tensor:
    """(N, numbers) that the network returns, float64."""
    with torch.no_grad():
        outputs = inputs.through(
            lambda chunks: torch.cat([network(values).cpu() for _, values in chunks])
        )
    if not bool(torch.isfinite(outputs).all()):
        raise ModelError(
            f"outputs of {what} are not finite: check its weights and the images before choosing"
            " bits"
        )
    return outputs.double()


def _divergence(expected: Tensor, actual: Tensor, heads: Heads) -> float:
    """How far what a network returns is from what is expected, both (N, numbers)."""
    total = distillation(actual, expected, temperature=1.0, heads=heads)
    return max(float(total), 0.0)  # rounding can leave -1e-17


def _check_weights(folded: fx.GraphModule) -> None:
    for path in quantizable_layers(folded):
        layer = folded.get_submodule(path)
        assert isinstance(layer, QUANTIZABLE)  # noqa: S101 - only these are listed
        if not bool(torch.isfinite(layer.weight).all()):
            raise ModelError(
                f"weights of {path} hold NaN or infinity: check the file they come from"
            )
