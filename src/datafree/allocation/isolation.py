"""What every layer loses by itself: quantized alone, and left in float alone.

Noise adds up along a network, so that the noisiest layer is nearly always the last one. These two
measures say which layer is to blame.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from datafree.errors import ConfigError
from datafree.graph.activations import Rows, share, stored
from datafree.graph.outputs import heads_of
from datafree.graph.widths import quantizers_before
from datafree.losses import Heads, distillation
from datafree.progress import Progress, silent
from datafree.quant.modules import QUANTIZED, ActivationQuantizer, QuantizedLayer
from datafree.tensors import device_of

_MOST_IMAGES = 32
_FEWEST_IMAGES = 8
_PASSES = 2048  # images through the network, over all layers


@dataclass(frozen=True)
class Share:
    """What one layer does to the answers of a network.

    Attributes:
        alone: divergence from the float network where this layer alone is quantized, its weights
            and its input.
        without: divergence from the teacher where every layer is quantized but this one.
    """

    alone: float
    without: float


@dataclass(frozen=True)
class Isolation:
    """The layers of a student, each by itself.

    Attributes:
        total: divergence of the student from the teacher.
        shares: of the layers that were measured, by path in execution order.
        layers: number of quantized layers.
        images: number of images it was measured on.
    """

    total: float
    shares: Mapping[str, Share]
    layers: int
    images: int

    @property
    def weakest(self) -> str:
        """The layer with the largest `blame`."""
        return max(self.shares, key=self.blame)

    def blame(self, path: str) -> float:
        """What layer `path` has to do with `total`: the mean of its first and its last step.

        ``(alone + (total - without)) / 2``: of all orders in which layers could be quantized one
        after the other, what it adds where it comes first and where it comes last. The Shapley
        value is the mean over all places.
        """
        share = self.shares[path]
        return (share.alone + self.total - share.without) / 2


def isolation(
    teacher: fx.GraphModule,
    student: fx.GraphModule,
    images: Tensor,
    *,
    trained: bool = False,
    seconds: float = 60.0,
    progress: Progress = silent,
) -> Isolation:
    """Quantize one layer alone, and all but one, and see what the answers are.

    With the divergence D of answers (KL divergence of classes in nats, plus the relative squared
    error of numbers), the float network F, the student Q, F_l with only layer l quantized and Q_l
    with layer l in float,

        alone_l = D(F, F_l),    without_l = D(F, Q_l).

    A layer is its weights, its bias and the quantizers of its input, which other layers may read
    too. Two passes of all images for each layer; networks of many layers get fewer images, so that
    the whole takes about 2,048 passes of one image.

    Args:
        teacher: float graph whose layers are the student's; not changed.
        student: settled; not changed.
        images: (N, C, H, W), normalised; of these the first 8 to 32.
        trained: the weights of the student are no longer those of `teacher`, but fine-tuned: its
            float network is then itself without quantizers, and `alone` is measured against that.
        seconds: after which no further layer is measured. Layers are measured in an order that
            spreads over the network.
        progress: shown meanwhile, in layers.

    Raises:
        ConfigError: no images, or no time.
    """
    layers = [n for n, module in student.named_modules() if isinstance(module, QUANTIZED)]
    if not len(images) or seconds <= 0 or not layers:
        raise ConfigError("layers are measured on images and in some time: give more than none")
    most = min(_MOST_IMAGES, max(_FEWEST_IMAGES, _PASSES // (2 * len(layers))))
    # The room is that of a hundred megabytes of images, which are held once.
    rows = stored(images[:most], device_of(student), share(1.0, 1))
    switches = _Switches.of(teacher, student, trained=trained)
    heads = heads_of(teacher)
    expected = _answers(teacher, rows)
    off, on = switches.network(quantized=False), switches.network(quantized=True)
    plain = _answers(off, rows) if trained else expected
    total = _divergence(expected, _answers(on, rows), heads)
    found: dict[str, Share] = {}
    end = time.perf_counter() + seconds
    with progress("layers one by one", len(layers)) as step:
        for path in _spread(switches.paths):
            if found and time.perf_counter() > end:
                break
            switches.switch(off, path, quantized=True)
            alone = _divergence(plain, _answers(off, rows), heads)
            switches.switch(off, path, quantized=False)
            switches.switch(on, path, quantized=False)
            without = _divergence(expected, _answers(on, rows), heads)
            switches.switch(on, path, quantized=True)
            found[path] = Share(alone, without)
            step(1)
    ordered = {path: found[path] for path in switches.paths if path in found}
    return Isolation(total, ordered, len(switches.paths), rows.count)


@dataclass(frozen=True)
class _Switches:
    """Both versions of every part of a student.

    `quantizers` are those of each layer's input, by path of the layer in execution order; `parts`
    what stands under a name, in float and quantized.
    """

    student: fx.GraphModule
    quantizers: Mapping[str, Collection[str]]
    parts: Mapping[str, tuple[nn.Module, nn.Module]]

    @classmethod
    def of(cls, teacher: fx.GraphModule, student: fx.GraphModule, *, trained: bool) -> _Switches:
        parts: dict[str, tuple[nn.Module, nn.Module]] = {}
        for name, module in student.named_modules():
            if isinstance(module, QUANTIZED):
                plain = _unquantized(module) if trained else teacher.get_submodule(name)
                parts[name] = plain, module
            elif isinstance(module, ActivationQuantizer):
                parts[name] = nn.Identity(), module
        return cls(student, quantizers_before(student), parts)

    @property
    def paths(self) -> list[str]:
        """All layers, in execution order."""
        return list(self.quantizers)

    def network(self, *, quantized: bool) -> fx.GraphModule:
        """A network of its own that shares its parts with others, all in one state."""
        made = fx.GraphModule(self.student, self.student.graph).eval()
        for name, both in self.parts.items():
            made.set_submodule(name, both[quantized])
        return made

    def switch(self, network: fx.GraphModule, path: str, *, quantized: bool) -> None:
        """Put layer `path` of `network`, with the quantizers of its input, into one state."""
        for name in (path, *self.quantizers[path]):
            network.set_submodule(name, self.parts[name][quantized])


def _unquantized(layer: QuantizedLayer) -> nn.Module:
    """`layer` with its own weights, not rounded; it shares them."""
    plain = copy.copy(layer)
    plain.__dict__["_modules"] = dict[str, nn.Module]()
    off = copy.copy(layer.weight_quantizer)
    off.enabled = False
    plain.weight_quantizer = off
    return plain


def _spread(paths: Sequence[str]) -> list[str]:
    """All of `paths`: first far apart, then those between them."""
    order: dict[str, None] = {}
    stride = 1 << max(len(paths) - 1, 1).bit_length()
    while stride:
        order |= dict.fromkeys(paths[::stride])
        stride //= 2
    return list(order)


def _answers(network: nn.Module, rows: Rows) -> Tensor:
    """(N, numbers) that `network` returns, float64 on the processor."""
    with torch.inference_mode():
        return rows.through(
            lambda chunks: torch.cat([network(values).cpu() for _, values in chunks])
        ).double()


def _divergence(expected: Tensor, actual: Tensor, heads: Heads) -> float:
    """How far answers are from what is expected; rounding can leave -1e-17."""
    return max(float(distillation(actual, expected, temperature=1.0, heads=heads)), 0.0)
