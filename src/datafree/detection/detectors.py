"""Torchvision's detectors: their backbone and heads as a network, all else as the way to boxes."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from datafree.detection.boxes import Boxes
from datafree.errors import ModelError

_HOME = "torchvision.models.detection"
_ONE_STAGE = ("SSD", "RetinaNet", "FCOS")
_TWO_STAGES = "GeneralizedRCNN"


class Heads(nn.Module):
    """What is quantized of a detector: images (B, C, H, W), normalised, to what its heads return.

    Parameters have the names they have in the detector, and are its own.

    Args:
        detector: of one stage.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone = detector.get_submodule("backbone")
        self.head = detector.get_submodule("head")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Scores and offsets of all anchors, (B, anchors, numbers) each."""
        return self.head(_maps(self.backbone(images)))


@dataclass(frozen=True)
class Detector:
    """A detector taken apart.

    Attributes:
        network: its backbone and heads.
        whole: the detector itself, in eval mode, of which they are part.
        shape: of its images, where it has a size of its own, to which it stretches them.
        mean: it takes off its images, per channel, scaled to 0..1.
        std: it divides them by.
    """

    network: Heads
    whole: nn.Module
    shape: tuple[int, int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def note(self) -> str:
        """What a user should know."""
        name = type(self.whole).__name__
        return (
            f"of the {name} backbone and heads are quantized, and the network returns what its"
            " heads do; datafree.detection.torchvision_boxes makes boxes of that"
        )


def taken_apart(model: object) -> Detector | None:
    """A detector of torchvision as network and the rest; None of all other networks.

    Args:
        model: the detector is not changed; the network shares its parameters.

    Raises:
        ModelError: it has two stages.
    """
    kinds = {kind.__name__ for kind in type(model).__mro__ if kind.__module__.startswith(_HOME)}
    if not isinstance(model, nn.Module) or not kinds:
        return None
    name = type(model).__name__
    if _TWO_STAGES in kinds:
        raise ModelError(
            f"{name} crops regions between its backbone and its last layers, as many as it finds,"
            " which no fixed graph holds: quantize detector.backbone, and put what comes out in its"
            " place (detector.backbone = result.student)"
        )
    if not kinds & set(_ONE_STAGE):
        return None
    prepare = cast("Any", model.get_submodule("transform"))
    size = prepare.fixed_size  # (width, height)
    shape = None if size is None else (len(prepare.image_mean), int(size[1]), int(size[0]))
    mean, std = (
        tuple(float(value) for value in values)
        for values in (prepare.image_mean, prepare.image_std)
    )
    return Detector(Heads(model), model, shape, mean, std)


def torchvision_boxes(detector: nn.Module, size: tuple[int, int]) -> Callable[[Any], list[Boxes]]:
    """The way from what the heads of a torchvision detector return to boxes: its own, in float.

    The detector itself is run on what its heads, quantized or not, returned, so anchors, thresholds
    and suppression of duplicates are those it has. Of its weights none is used.

    Args:
        detector: an `SSD` (SSDLite too), `RetinaNet` or `FCOS`.
        size: height and width of the images that the heads have seen.

    Returns:
        A function of the dict that the heads return for B images (tensors, or arrays of an ONNX
        file by its names), which returns boxes, scores and labels of every image.

    Raises:
        ModelError: it is no such detector.
    """
    found = taken_apart(detector)
    if found is None:
        raise ModelError(
            f"{type(detector).__name__} is no SSD, RetinaNet or FCOS of torchvision: write a"
            " function that makes boxes of what the network returns"
        )
    return _Decoder(found, size)


class _Given(nn.Module):
    """Returns what it was given, for whatever images."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, *_: Any) -> Any:
        return self.value


class _Decoder:
    """A detector without layers."""

    def __init__(self, detector: Detector, size: tuple[int, int]) -> None:
        self.channels, self.size = len(detector.mean), size
        with torch.inference_mode():
            training = detector.whole.training
            detector.whole.eval()
            try:
                maps = _maps(detector.network.backbone(self._blank(1)))
            finally:
                detector.whole.train(training)
        self.shapes = [tuple(one.shape[1:]) for one in maps]
        self.shell = _emptied(detector.whole, self._transform(detector))

    def __call__(self, returned: Any) -> list[Boxes]:
        """Boxes of every image in pixels of the network's input."""
        named = cast("Mapping[str, Any]", returned)
        heads = {name: torch.as_tensor(value).detach() for name, value in named.items()}
        count = len(next(iter(heads.values())))
        shell = cast("Any", self.shell)
        maps = {str(i): torch.zeros(count, *shape) for i, shape in enumerate(self.shapes)}
        shell.backbone, shell.head = _Given(maps), _Given(heads)
        with torch.inference_mode():
            return shell(list(self._blank(count)))

    def _blank(self, count: int) -> Tensor:
        return torch.zeros(count, self.channels, *self.size)

    def _transform(self, detector: Detector) -> nn.Module:
        """Images are of the network's size already, and stay so."""
        library: Any = importlib.import_module(f"{_HOME}.transform")
        height, width = self.size
        return library.GeneralizedRCNNTransform(
            min(self.size), max(self.size), list(detector.mean), list(detector.std),
            size_divisible=1, fixed_size=(width, height),
        )  # fmt: skip


def _maps(features: Any) -> list[Tensor]:
    return [features] if isinstance(features, Tensor) else list(features.values())


def _emptied(detector: nn.Module, transform: nn.Module) -> nn.Module:
    """The detector with nothing where its layers were."""
    shell = copy.copy(detector)
    modules = {**vars(detector)["_modules"], "backbone": None, "head": None, "transform": transform}
    vars(shell).update(_modules=modules, training=False)
    return copy.deepcopy(shell)
