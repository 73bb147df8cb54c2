"""Mean average precision of a few boxes, by hand."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from datafree.detection import Boxes, MeanAveragePrecision, average_precision
from datafree.errors import ConfigError, DataError

Box = tuple[float, float, float, float]


def labelled(*boxes: Box, labels: tuple[int, ...] | None = None, crowd: bool = False) -> Boxes:
    told = torch.tensor(labels or (1,) * len(boxes))
    crowds = torch.full((len(boxes),), crowd)
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": told, "iscrowd": crowds}


def found(*boxes: Box, scores: tuple[float, ...], labels: tuple[int, ...] | None = None) -> Boxes:
    return {**labelled(*boxes, labels=labels), "scores": torch.tensor(scores)}


SQUARE, OTHER = (0.0, 0.0, 10.0, 10.0), (30.0, 0.0, 40.0, 10.0)


def test_the_box_itself() -> None:
    one = average_precision([found(SQUARE, scores=(0.9,))], [labelled(SQUARE)])
    assert (one.mean, one.at_50, one.at_75) == pytest.approx((100, 100, 100))


def test_an_intersection_over_union_of_62_percent() -> None:
    """62 of 100 pixels: found at 0.5, 0.55 and 0.6, three of ten thresholds."""
    one = average_precision([found((0.0, 0.0, 10.0, 6.2), scores=(0.9,))], [labelled(SQUARE)])
    assert (one.mean, one.at_50, one.at_75) == pytest.approx((30, 100, 0))


def test_half_of_the_boxes() -> None:
    """Precision is 1 up to a recall of 0.5, which is 51 of the 101 recalls from 0 to 1."""
    one = average_precision([found(SQUARE, scores=(0.9,))], [labelled(SQUARE, OTHER)])
    assert one.mean == pytest.approx(100 * 51 / 101)


def test_a_wrong_box_before_the_right_one() -> None:
    """At every recall one of two boxes is right."""
    one = average_precision([found(OTHER, SQUARE, scores=(0.9, 0.8))], [labelled(SQUARE)])
    assert one.mean == pytest.approx(50)


def test_a_duplicate_behind_costs_nothing_before_costs_half() -> None:
    """A second box on what was found is wrong; only if it comes before another right one."""
    truth = [labelled(SQUARE, OTHER)]
    last = average_precision([found(SQUARE, OTHER, SQUARE, scores=(0.9, 0.8, 0.7))], truth)
    assert last.mean == pytest.approx(100)
    middle = average_precision([found(SQUARE, SQUARE, OTHER, scores=(0.9, 0.8, 0.7))], truth)
    # precision 1 at 51 recalls, 2/3 at the other 50
    assert middle.mean == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)


def test_the_mean_of_two_classes() -> None:
    truth = [labelled(SQUARE, OTHER, labels=(1, 2))]
    one = average_precision([found(SQUARE, OTHER, scores=(0.9, 0.9), labels=(1, 1))], truth)
    assert one.mean == pytest.approx((100 + 0) / 2)


def test_a_crowd_is_neither_found_nor_missed() -> None:
    truth = {
        name: torch.cat([labelled(SQUARE)[name], labelled(OTHER, crowd=True)[name]])
        for name in ("boxes", "labels", "iscrowd")
    }
    one = average_precision([found(OTHER, SQUARE, scores=(0.9, 0.8))], [truth])
    assert one.mean == pytest.approx(100)


def test_images_are_kept_apart_and_nothing_may_be_found() -> None:
    truth = [labelled(SQUARE), labelled(OTHER)]
    nothing = found(scores=())
    assert average_precision([nothing, nothing], truth).mean == 0
    there = [found(OTHER, scores=(0.9,)), found(SQUARE, scores=(0.9,))]
    assert average_precision(there, truth).mean == 0


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    average_precision([found(SQUARE, scores=(0.9,))], [labelled(SQUARE)])
    assert capsys.readouterr().out == ""


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="have no boxes"):
        average_precision([found(SQUARE, scores=(0.9,))], [labelled()])
    with pytest.raises(ConfigError, match="found on 2 images, 1 are labelled"):
        average_precision([found(scores=())] * 2, [labelled(SQUARE)])
    off = found(SQUARE, scores=(0.9,), labels=(0,))
    with pytest.raises(ConfigError, match=r"\(0 to 0\) is a label of the labelled ones \(1 to 1\)"):
        average_precision([off], [labelled(SQUARE)])
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(ConfigError, match=r"pip install 'datafree\[detection\]'"):
        average_precision([found(SQUARE, scores=(0.9,))], [labelled(SQUARE)])


def test_decode_is_called_and_checked() -> None:
    def halves(returned: Any) -> Any:
        return [found(tuple(row), scores=(0.9,)) for row in (returned / 2).tolist()]

    measure = MeanAveragePrecision(halves)
    assert measure(torch.tensor([SQUARE]) * 2, [labelled(SQUARE)]) == pytest.approx(100)
    with pytest.raises(ConfigError, match="halves, which makes boxes, failed: TypeError"):
        measure("boxes", [labelled(SQUARE)])
    with pytest.raises(ConfigError, match="the network returned a Tensor"):
        MeanAveragePrecision()(torch.zeros(1, 4), [labelled(SQUARE)])
