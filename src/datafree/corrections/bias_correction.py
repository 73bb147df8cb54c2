"""Empirical bias correction: no channel's mean is shifted by quantization (algorithms B.4.5)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from datafree.errors import ConfigError, ModelError
from datafree.graph.activations import Chunks, Rows, passed, share, stored
from datafree.graph.blocks import find_blocks, subgraph
from datafree.graph.insert import first_calls
from datafree.graph.taps import tap_outputs
from datafree.progress import Progress, silent
from datafree.quant.modules import ActivationQuantizer, QuantizableLayer, add_to_bias
from datafree.tensors import device_of

_TENSORS_HELD = 2  # the values at both borders of a block


def correct_biases(
    folded: fx.GraphModule,
    student: fx.GraphModule,
    images: Tensor,
    *,
    memory_gb: float = 4.0,
    progress: Progress = silent,
) -> dict[str, Tensor]:
    """Take the mean shift of every layer's output off its bias; `student` is changed in place.

    Layer by layer in execution order (Nagel et al. 2019, section 4.2), with the layers before it
    corrected already, for each output channel c

        b_c <- b_c - (mean of the student's output - mean of the float network's output)

    over all images and positions, before the activation function. Layers without a bias get one.
    A layer called several times is corrected for its first call. The student is walked block by
    block, each layer from the start of its block, so time is linear in the number of blocks; no
    batch norm is needed. Only the mean of the error goes: where it is small beside the noise that
    rounding adds, outputs need not come closer.

    Args:
        folded: the float graph the student was made from; not changed.
        student: with quantized weights, its activation quantizers calibrated or disabled, on the
            same device.
        images: (N, C, H, W), normalised.
        memory_gb: room for the values at the border of a block; what goes beyond is kept on disk.
        progress: shown while it runs, in layers.

    Returns:
        What was taken off the bias of each layer, (C,), by path in execution order.

    Raises:
        ConfigError: no images.
        ModelError: the network has no layer to correct, an activation quantizer has no range, or
            outputs are not finite; the message names the layer.
    """
    if not len(images):
        raise ConfigError("bias correction needs images to see the shifts of, and there are none")
    _check_ranges(student)
    limit = share(memory_gb, _TENSORS_HELD)
    blocks = find_blocks(folded)
    calls = {path: node.name for path, node in first_calls(folded).items()}
    wanted = _float_means(folded, images, calls, limit)
    shifts: dict[str, Tensor] = {}
    border = stored(images, device_of(student), limit)
    with progress("bias correction", len(calls)) as step:
        for block in blocks:
            for path in block.layers:
                if path in shifts:
                    continue
                mean = _mean(subgraph(student, block.start, calls[path]), path, student, border)
                shifts[path] = _correct(student, path, mean - wanted[path])
                step(1)
            border = passed(subgraph(student, block.start, block.end), border, limit)
    return shifts


def _float_means(
    folded: fx.GraphModule, images: Tensor, calls: dict[str, str], limit: int
) -> dict[str, Tensor]:
    """Mean output (C,) of every layer's first call in the float network."""
    layers = {path: folded.get_submodule(path) for path in calls}

    def work(chunks: Chunks) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        seen: set[str] = set()

        def add(path: str, output: Tensor) -> None:
            if path in seen:
                return
            seen.add(path)
            total, count = _channel_sums(output, layers[path])
            sums[path] = sums.get(path, 0) + total
            counts[path] = counts.get(path, 0) + count

        with torch.no_grad(), tap_outputs(layers, add):
            for _, values in chunks:
                seen.clear()
                folded(values)
        return {path: sums[path] / counts[path] for path in calls}

    means = stored(images, device_of(folded), limit).through(work)
    return {path: _finite(mean, path, "float network") for path, mean in means.items()}


def _mean(
    part: Callable[[Tensor], Tensor], path: str, student: fx.GraphModule, inputs: Rows
) -> Tensor:
    """Mean output (C,) of the layer `path`, which `part` ends with."""
    layer = student.get_submodule(path)

    @torch.no_grad()
    def work(chunks: Chunks) -> Tensor:
        found = [_channel_sums(part(values), layer) for _, values in chunks]
        total, counted = found[0]
        for sums, count in found[1:]:
            total, counted = total + sums, counted + count
        return total / counted

    return _finite(inputs.through(work), path, "student")


def _channel_sums(output: Tensor, layer: nn.Module) -> tuple[Tensor, int]:
    """Sums (C,) of `output` in float64 over all but its channels, and what to divide them by."""
    rows = output.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1)
    return rows.sum(1, dtype=torch.float64), rows.shape[1]


def _correct(student: fx.GraphModule, path: str, shift: Tensor) -> Tensor:
    layer = student.get_submodule(path)
    assert isinstance(layer, QuantizableLayer)  # noqa: S101 - quantizing keeps the kinds
    add_to_bias(layer, -shift)
    return shift.to(layer.weight.dtype)


def _finite(mean: Tensor, path: str, network: str) -> Tensor:
    if not bool(torch.isfinite(mean).all()):
        raise ModelError(
            f"outputs of {path} in the {network} are not finite: the images or the network overflow"
            " there; check both before correcting biases"
        )
    return mean


def _check_ranges(student: fx.GraphModule) -> None:
    for name, module in student.named_modules():
        if isinstance(module, ActivationQuantizer) and module.enabled and not module.has_range:
            raise ModelError(f"the quantizer {name} has no range: calibrate the student first")
