"""Torchvision's detectors: what they find whole is what their heads and the way to boxes find."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import datafree
from datafree.detection import torchvision_boxes
from datafree.detection.detectors import taken_apart
from datafree.errors import ModelError
from datafree.models.hubs import operators_of_torchvision

SIZE = (64, 96)
STEM = ((3, 8, 2), (8, 16, 2), (16, 32, 2))


@pytest.fixture(autouse=True)
def suppression(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision's, written anew: its own is not built for every torch."""
    pytest.importorskip("PIL")
    operators_of_torchvision()
    pytest.importorskip("torchvision")
    monkeypatch.setattr(importlib.import_module("torchvision.ops.boxes"), "nms", nms)


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    order, kept = scores.argsort(descending=True), list[int]()
    while len(order):
        first, rest = order[0], order[1:]
        kept.append(int(first))
        upper = torch.maximum(boxes[first, :2], boxes[rest, :2])
        lower = torch.minimum(boxes[first, 2:], boxes[rest, 2:])
        common = (lower - upper).clamp(min=0).prod(1)
        areas = [(part[..., 2:] - part[..., :2]).prod(-1) for part in (boxes[first], boxes[rest])]
        order = rest[common / (areas[0] + areas[1] - common) <= threshold]
    return torch.tensor(kept, dtype=torch.long)


def backbone() -> Any:
    layers: list[nn.Module] = []
    for inputs, outputs, stride in STEM:
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    made: Any = nn.Sequential(*layers)
    made.out_channels = 32
    return made


def detector(kind: str) -> Any:
    library: Any = importlib.import_module("torchvision.models.detection")
    anchors: Any = importlib.import_module("torchvision.models.detection.anchor_utils")
    torch.manual_seed(0)
    one = anchors.AnchorGenerator(sizes=((16,),), aspect_ratios=((1.0,),))
    if kind == "SSD":
        whole = backbone()
        whole.out_channels = [32]
        boxes = anchors.DefaultBoxGenerator([[2]], scales=[0.2, 0.4])
        return library.ssd.SSD(whole, boxes, (SIZE[1], SIZE[0]), 4, score_thresh=0.1).eval()
    sizes = {"min_size": SIZE[0], "max_size": SIZE[1]}
    made = getattr(library, kind)(backbone(), 4, anchor_generator=one, **sizes)
    if kind != "FasterRCNN":
        made.score_thresh = 0.001
    return made.eval()


@pytest.mark.parametrize("kind", ["SSD", "RetinaNet", "FCOS"])
def test_in_parts_it_finds_what_it_finds_whole(kind: str) -> None:
    whole = detector(kind)
    parts = taken_apart(whole)
    assert parts is not None and parts.shape == ((3, *SIZE) if kind == "SSD" else None)
    pictures = [torch.rand(3, *SIZE) for _ in range(2)]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (parts.mean, parts.std))
    with torch.inference_mode():
        wanted = whole([picture.clone() for picture in pictures])
        returned = parts.network(torch.stack([(picture - mean) / std for picture in pictures]))
    found = torchvision_boxes(whole, SIZE)({name: v.numpy() for name, v in returned.items()})
    assert all(len(one["boxes"]) > 5 for one in wanted)
    for one, other in zip(wanted, found, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in ("boxes", "scores", "labels"))
    assert not isinstance(whole.transform, nn.Identity) and whole.backbone is not None


def labelled(folder: Path) -> Path:
    """What the float detector finds with the highest score, as labels: its mAP is not 0."""
    images, boxes = list[dict[str, Any]](), list[dict[str, Any]]()
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 255, (*SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        size = {"width": SIZE[1], "height": SIZE[0]}
        images.append({"id": index, "file_name": f"{index}.png", **size})
        found = detector("SSD")([torch.from_numpy(pixels).permute(2, 0, 1) / 255])[0]
        for box, label in zip(found["boxes"][:5].tolist(), found["labels"][:5], strict=True):
            about = {"id": len(boxes), "image_id": index, "category_id": int(label)}
            boxes.append({**about, "bbox": [*box[:2], box[2] - box[0], box[3] - box[1]]})
    kinds = [{"id": label} for label in range(4)]
    path = folder / "boxes.json"
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": kinds}))
    return path


@pytest.mark.integration
def test_a_whole_detector_is_quantized_and_measured(tmp_path: Path) -> None:
    whole = detector("SSD")
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    with torch.no_grad(), pytest.warns(datafree.errors.NetworkWarning):
        result = datafree.quantize(
            whole, method="noise", images=8, calibrator="minmax", bits="W8A8",
            data=labelled(tmp_path), latency=False, output=tmp_path / "run",
        )  # fmt: skip
    reached = result.metrics["map"]
    assert reached["teacher"] > 60 and 0 < reached["student"] <= reached["teacher"]
    assert any("backbone and heads are quantized" in note for note in result.metrics["notes"])
    assert result.metrics["task"] == "detection heads"
    assert set(result.student(torch.zeros(1, 3, *SIZE))) == {"bbox_regression", "cls_logits"}
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())


def test_two_stages_are_refused() -> None:
    with pytest.raises(ModelError, match=r"quantize detector\.backbone, and put what comes out"):
        datafree.quantize(detector("FasterRCNN"), input_shape=(3, *SIZE))


def test_a_size_must_be_known() -> None:
    with pytest.raises(ModelError, match="does not say what input it takes: pass input_shape"):
        datafree.quantize(detector("RetinaNet"))
    with pytest.raises(ModelError, match="Sequential is no SSD, RetinaNet or FCOS"):
        torchvision_boxes(backbone(), SIZE)
