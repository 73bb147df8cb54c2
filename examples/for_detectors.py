r"""A detector without any of its data: its layers as integers, its boxes made outside, mAP of both.

python examples/for_detectors.py, then, from the command line, the same network once more:
datafree quantize examples/for_detectors.py:Detector --input-shape 1,48,48 --mean 0 --std 1 \
    --weights-file runs/detector/weights.safetensors --data runs/detector/scenes.json \
    --decode examples/for_detectors.py:boxes --bits W4A8 --images 96 --output runs/detector/4
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import datafree
from datafree.detection import average_precision
from datafree.zoo import ZOO

SIZE, STRIDE = 48, 4
Scene = tuple[np.ndarray[Any, Any], list[list[int]]]


class Detector(nn.Module):
    """Of every fourth position: ten logits of digits, and the distances to the sides of its box."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((1, 16, 2), (16, 24, 2), (24, 24, 1), (24, 32, 1))
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, s, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
                for a, b, s in sizes
            )
        )
        self.digits, self.sides = nn.Conv2d(32, 10, 3, padding=1), nn.Conv2d(32, 4, 3, padding=1)
        assert self.digits.bias is not None  # noqa: S101
        nn.init.constant_(self.digits.bias, -4.0)  # most positions show nothing

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, 10, 12, 12) and distances (B, 4, 12, 12), in units of 8 pixels."""
        features = self.body(x)
        return self.digits(features), self.sides(features)


def boxes(returned: tuple[Any, Any]) -> list[dict[str, Tensor]]:
    """Boxes at the positions whose logit is the largest around them."""
    logits, sides = (torch.as_tensor(part) for part in returned)
    scores, labels = logits.sigmoid().max(1)
    peaks = scores * (scores == F.max_pool2d(scores[:, None], 3, 1, 1)[:, 0])
    found: list[dict[str, Tensor]] = []
    for peak, label, side in zip(peaks, labels, sides, strict=True):
        rows, columns = (peak > 0.05).nonzero(as_tuple=True)
        centre = torch.stack([columns, rows, columns, rows], 1) * STRIDE + STRIDE / 2
        away = side[:, rows, columns].T * 8 * torch.tensor([-1, -1, 1, 1])
        found.append(
            {"boxes": centre + away, "scores": peak[rows, columns], "labels": label[rows, columns]}
        )
    return found


def scenes(count: int, seed: int, split: str) -> list[Scene]:
    """Grey pictures of two to four digits, with left, top, width, height and digit of each."""
    images, labels = getattr(ZOO["digits_resnet8"], f"load_{split}")()
    random, made = np.random.default_rng(seed), list[Scene]()
    for _ in range(count):
        scene, placed = random.integers(0, 40, (SIZE, SIZE)).astype(np.uint8), list[list[int]]()
        for quarter in random.permutation(4)[: random.integers(2, 5)]:
            which, side = random.integers(len(images)), int(random.integers(12, 23))
            top, left = (int(q) * 24 + int(random.integers(25 - side)) for q in divmod(quarter, 2))
            digit = Image.fromarray(images[which, :, :, 0]).resize((side, side))
            part = scene[top : top + side, left : left + side]
            np.maximum(part, np.asarray(digit), out=part)
            placed.append([left, top, side, side, int(labels[which])])
        made.append((scene, placed))
    return made


def as_tensor(made: list[Scene]) -> Tensor:
    """The pictures of scenes as the network takes them."""
    return torch.from_numpy(np.stack([scene for scene, _ in made]))[:, None].float() / 255


def targets(made: list[Scene]) -> tuple[Tensor, Tensor]:
    """Of every position its digit, or 10, and the distances to the sides of its box."""
    digit = torch.full((len(made), SIZE // STRIDE, SIZE // STRIDE), 10)
    sides = torch.zeros(len(made), 4, SIZE // STRIDE, SIZE // STRIDE)
    for image, (_, placed) in enumerate(made):
        for left, top, width, height, label in placed:
            x, y = (left + width / 2) // STRIDE, (top + height / 2) // STRIDE
            at = (image, slice(None), int(y), int(x))
            x, y = (x + 0.5) * STRIDE, (y + 0.5) * STRIDE
            away = torch.tensor([x - left, y - top, left + width - x, top + height - y])
            digit[image, at[2], at[3]], sides[at] = label, away / 8
    return digit, sides


def train(steps: int = 240) -> Detector:
    """A detector that has learnt scenes of the digits that come with the package."""
    torch.manual_seed(0)
    network, made = Detector(), scenes(1500, 0, "train_sample")
    images, (digit, sides) = as_tensor(made), targets(made)
    optimizer = torch.optim.AdamW(network.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=steps)
    for _ in range(steps):
        pick = torch.randint(len(images), (24,))
        logits, away = network(images[pick])
        wanted = F.one_hot(digit[pick], 11)[..., :10].permute(0, 3, 1, 2).float()
        off = (away - sides[pick]).abs().sum(1)[digit[pick] < 10].mean()
        loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / 72 + off
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def written(made: list[Scene], folder: Path) -> Path:
    """Scenes as people have them: pictures, and beside them a JSON file of boxes like COCO's."""
    found: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    for index, (scene, placed) in enumerate(made):
        name = f"{index:04d}.png"
        Image.fromarray(scene).save(folder / name)
        found["images"].append({"id": index, "file_name": name, "width": SIZE, "height": SIZE})
        for *box, label in placed:
            about = {"id": len(found["annotations"]), "image_id": index, "category_id": label}
            found["annotations"].append({**about, "bbox": box})
    path = folder / "scenes.json"
    kinds = [{"id": digit, "name": str(digit)} for digit in range(10)]
    path.write_text(json.dumps({**found, "categories": kinds}), encoding="utf-8")
    return path


def of_file(path: Path, made: list[Scene]) -> float:
    """Mean average precision of an ONNX file, in percent."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # old processors saturate
    session = onnxruntime.InferenceSession(path, options)
    logits, sides = session.run(None, {session.get_inputs()[0].name: as_tensor(made).numpy()})
    labelled = [torch.tensor(placed).float() for _, placed in made]
    told = [
        {"boxes": torch.cat([p[:, :2], p[:, :2] + p[:, 2:4]], 1), "labels": p[:, 4].long()}
        for p in labelled
    ]
    return average_precision(boxes((logits, sides)), told).mean


def main(folder: Path = Path("runs/detector")) -> dict[str, dict[str, float]]:
    """Train, write, quantize to three widths; mean average precision of networks and files."""
    folder.mkdir(parents=True, exist_ok=True)
    network, made, found = train(), scenes(150, 1, "test"), dict[str, dict[str, float]]()
    save_file(network.state_dict(), folder / "weights.safetensors")
    data = written(made, folder)
    for bits in ("W8A8", "W4A8", "W4A4"):
        result = datafree.quantize(
            network, input_shape=(1, SIZE, SIZE), bits=bits, data=data, decode=boxes,
            output=folder / bits, images=96, latency=False, force=True,
        )  # fmt: skip
        reached = result.metrics["map"] | {"onnx": of_file(folder / bits / "student.onnx", made)}
        print(bits, ", ".join(f"{name} {value:.2f}" for name, value in reached.items()))
        found[bits] = reached
    return found


if __name__ == "__main__":
    main()
