"""Detectors: labelled boxes, boxes out of what heads return, and mean average precision.

    from datafree.detection import MeanAveragePrecision, average_precision, torchvision_boxes

Only the layers of a detector are quantized, its backbone and its heads. What makes boxes of their
outputs (anchors, thresholds, suppression of duplicates) stays outside, in float: a function
`decode` that takes what the network returns for a batch and returns boxes, scores and labels of
every image.
"""

from datafree.detection.boxes import Boxes, boxes_of
from datafree.detection.detectors import torchvision_boxes
from datafree.detection.precision import (
    AveragePrecision,
    MeanAveragePrecision,
    average_precision,
)

__all__ = [
    "AveragePrecision",
    "Boxes",
    "MeanAveragePrecision",
    "average_precision",
    "boxes_of",
    "torchvision_boxes",
]
