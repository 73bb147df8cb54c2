"""Whole detectors as teachers: backbone and heads are the network, the rest measures its boxes."""

from __future__ import annotations

from dataclasses import replace

from datafree.config import InputSpec
from datafree.detection.detectors import Detector, taken_apart, torchvision_boxes
from datafree.detection.precision import MeanAveragePrecision
from datafree.models.hubs import Found


def apart(found: Found) -> tuple[Found, Detector | None]:
    """Backbone and heads of a whole detector, with what it knows of its images.

    Args:
        found: any network; all but detectors are returned as they are, with None.

    Raises:
        ModelError: a detector of two stages.
    """
    detector = taken_apart(found.model)
    if detector is None:
        return found, None
    known = {"shape": detector.shape, "mean": detector.mean, "std": detector.std}
    return replace(found, model=detector.network, **known), detector


def measure_of(detector: Detector, spec: InputSpec) -> MeanAveragePrecision:
    """What measures the boxes that the heads of `detector` tell.

    Args:
        detector: taken apart.
        spec: input of its backbone.
    """
    height, width = spec.shape[1:]
    boxes = torchvision_boxes(detector.whole, (height, width))
    return MeanAveragePrecision(boxes, stretch=detector.shape is not None)
