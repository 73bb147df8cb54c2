"""Mean average precision of detectors, as COCO defines it and its own code (pycocotools) counts."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from datafree.detection.boxes import Boxes, boxes_of, per_image
from datafree.errors import ConfigError, DataError

Decode = Callable[[Any], Any]
"""What a detector returns for a batch of images to boxes, scores and labels of each."""


@dataclass(frozen=True)
class AveragePrecision:
    """How well boxes were found, in percent: means over classes of the area under precision/recall.

    Attributes:
        mean: over intersections over union from 0.5 to 0.95 in steps of 0.05, what COCO calls AP.
        at_50: where an intersection over union of 0.5 counts as found.
        at_75: the same at 0.75.
    """

    mean: float
    at_50: float
    at_75: float


@dataclass(frozen=True)
class MeanAveragePrecision:
    """A measure for `datafree.quantize(..., metric=...)`: mean average precision of a detector.

    Attributes:
        decode: makes boxes of what the network returns for a batch, on the processor: for every
            image a dict of `boxes` (n, 4), (left, top, right, bottom) in pixels of the network's
            input, `scores` (n,) and `labels` (n,). None where the network returns that itself.
        stretch: pictures of another size than the network's are stretched to it, as torchvision's
            SSD does; otherwise they keep their form.
    """

    decode: Decode | None = None
    stretch: bool = False

    def found(self, returned: Any, images: int) -> list[Boxes]:
        """Boxes of every image in what the network returned.

        Args:
            returned: by the network, for a batch.
            images: in the batch.

        Raises:
            ConfigError: `decode` fails, or returns something else.
        """
        if self.decode is None:
            return per_image(returned, images, "the network")
        name = getattr(self.decode, "__name__", type(self.decode).__name__)
        try:
            decoded = self.decode(returned)
        except Exception as error:
            raise ConfigError(
                f"{name}, which makes boxes, failed: {type(error).__name__}: {error}; it takes what"
                " the network returns for a batch of images"
            ) from error
        return per_image(decoded, images, name)

    def __call__(self, returned: Any, labels: Sequence[Boxes] | Tensor) -> float:
        """Mean average precision in percent.

        Args:
            returned: by the network, for all images.
            labels: boxes of every image.
        """
        labelled = boxes_of(labels) if isinstance(labels, Tensor) else labels
        return average_precision(self.found(returned, len(labelled)), labelled).mean


def average_precision(found: Sequence[Boxes], labelled: Sequence[Boxes]) -> AveragePrecision:
    """Average precision of the boxes found on some images; at most 100 of an image count.

    T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, as computed by
    pycocotools: precision is interpolated at 101 recalls. Crowds count neither as found nor as
    missed.

    Args:
        found: of each image `boxes` (n, 4), (left, top, right, bottom), `scores` and `labels` (n,).
        labelled: of each image `boxes` and `labels`; `iscrowd` where there are crowds.

    Raises:
        ConfigError: pycocotools is missing; there are boxes of other images, or of other labels.
        DataError: no box is labelled.
    """
    if len(found) != len(labelled):
        raise ConfigError(f"boxes were found on {len(found)} images, {len(labelled)} are labelled")
    known = {int(label) for one in labelled for label in one["labels"]}
    if not known:
        raise DataError("the labelled images have no boxes: mean average precision needs some")
    told = {int(label) for one in found for label in one["labels"]}
    if told and not told & known:
        raise ConfigError(
            f"none of the labels of the boxes found ({_range(told)}) is a label of the labelled"
            f" ones ({_range(known)}): let decode return the category ids of the labels"
        )
    coco, evaluation = _library()
    with contextlib.redirect_stdout(io.StringIO()):  # it tells every step
        truth = coco.COCO()
        truth.dataset = _labelled(labelled, known)
        truth.createIndex()
        rows = _rows(found)
        if not rows:
            return AveragePrecision(0.0, 0.0, 0.0)
        counted = evaluation.COCOeval(truth, truth.loadRes(rows), "bbox")
        counted.evaluate()
        counted.accumulate()
        counted.summarize()
    mean, at_50, at_75 = (100 * float(value) for value in counted.stats[:3])
    return AveragePrecision(mean, at_50, at_75)


def _library() -> tuple[Any, Any]:
    try:
        library = importlib.import_module("pycocotools.coco")
        return library, importlib.import_module("pycocotools.cocoeval")
    except ModuleNotFoundError:
        raise ConfigError(
            "mean average precision needs pycocotools: pip install 'datafree[detection]'"
        ) from None


def _range(labels: set[int]) -> str:
    return f"{min(labels)} to {max(labels)}"


def _labelled(images: Sequence[Boxes], known: set[int]) -> dict[str, Any]:
    """A data set as pycocotools has it."""
    annotations: list[dict[str, Any]] = []
    for place, one in enumerate(images):
        crowds = one.get("iscrowd")
        for index, (box, label) in enumerate(zip(one["boxes"], one["labels"], strict=True)):
            left, top, right, bottom = (float(value) for value in box)
            annotations.append(
                {
                    "id": len(annotations) + 1,  # 0 is how it notes that nothing was found
                    "image_id": place,
                    "category_id": int(label),
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0 if crowds is None else int(crowds[index]),
                }
            )
    return {
        "images": [{"id": place} for place in range(len(images))],
        "categories": [{"id": label} for label in sorted(known)],
        "annotations": annotations,
    }


def _rows(images: Sequence[Boxes]) -> list[dict[str, Any]]:
    """Boxes found as pycocotools has them."""
    rows: list[dict[str, Any]] = []
    for place, one in enumerate(images):
        corners = one["boxes"].double()
        sizes = corners[:, 2:] - corners[:, :2]
        for box, size, score, label in zip(
            corners.tolist(), sizes.tolist(), one["scores"].tolist(), one["labels"].tolist(),
            strict=True,
        ):  # fmt: skip
            row = {"image_id": place, "category_id": label, "bbox": box[:2] + size}
            rows.append({**row, "score": score})
    return rows
