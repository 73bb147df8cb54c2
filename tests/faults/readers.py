"""Every reader of a stranger's file, as a function of its bytes, and inputs to begin with."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from datafree.config import InputSpec, RunConfig, build, load_config
from datafree.config.files import save_config
from datafree.config.widths import layer_width, name_patterns, width_for
from datafree.data import open_labelled
from datafree.generators import Generator, GeneratorConfig, load_generator, save_generator
from datafree.images import SyntheticSet
from datafree.models.archive import load_archive
from datafree.models.files import refused_file
from datafree.models.onnx import load_onnx
from datafree.models.programs import found_program
from datafree.models.weights import load_weights
from datafree.runs.stored import read_run

CORPUS = Path(__file__).parent / "corpus"
RGB = InputSpec(shape=(3, 8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5), classes=10)


class Small(nn.Module):
    """What weights are loaded into, and what is written as a program."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.bn = nn.BatchNorm2d(2)
        self.head = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.bn(self.conv(x)).relu().mean((2, 3)))


@dataclass(frozen=True)
class Reader:
    """A reader.

    Attributes:
        read: what an input in a folder does; raises only a `DatafreeError`.
        file: what the input is called there.
        kind: how its inputs are changed, see `mutations`.
        modules: of datafree that read it, whose coverage guides.
    """

    read: Callable[[Path], object]
    file: str
    kind: str
    modules: tuple[str, ...]


def _program(path: Path) -> object:
    return found_program(load_archive(path), path.name, None)


def _weights(path: Path) -> object:
    load_weights(Small(), path)
    return refused_file(path)


def _labelled(path: Path, **options: Any) -> list[Any]:
    return list(open_labelled(path, RGB, **options).batches(4))


def _record(path: Path) -> object:
    stored = read_run(path.parent)
    return stored.metrics, stored.version


def _options(path: Path) -> object:
    """Fields of a run, one a line, and patterns of layers."""
    values: dict[str, Any] = {}
    for line in path.read_bytes().decode("utf-8", "replace").splitlines()[:20]:
        name, _, text = line.partition("=")
        try:
            values[name] = yaml.safe_load(text)
        except Exception:  # noqa: BLE001 - then it is the text itself
            values[name] = text
    for value in (*values, *values.values()):
        for parse in (layer_width, name_patterns):
            with contextlib.suppress(ValueError):
                parse(value)
    config = build(RunConfig, values, "options")
    for name in ("conv1", "layer3.0.conv2", "[", "*"):
        width_for(name, config.layer_bits)
    save_config(config, path.with_suffix(".yaml"))
    if load_config(path.with_suffix(".yaml")) != config:
        raise AssertionError("a configuration is not the same when it is read again")
    return config


_DATA = ("datafree.data", "datafree.pictures", "datafree.bounds")
READERS = {
    "program": Reader(
        _program, "x.pt2", "zip",
        ("datafree.models.archive", "datafree.models.expressions", "datafree.models.programs"),
    ),
    "onnx": Reader(load_onnx, "x.onnx", "onnx", ("datafree.models.onnx",)),
    "weights": Reader(
        _weights, "x.pth", "zip",
        ("datafree.models.weights", "datafree.models.checkpoints", "datafree.models.files"),
    ),
    "images": Reader(SyntheticSet.load, "x.safetensors", "safetensors", ("datafree.images",)),
    "generator": Reader(load_generator, "x.safetensors", "safetensors", ("datafree.generators",)),
    "arrays": Reader(_labelled, "x.npz", "zip", _DATA),
    "pictures": Reader(lambda path: _labelled(path.parent), "x.png", "picture", _DATA),
    "labels": Reader(lambda path: _labelled(path.parent), "labels.csv", "text", _DATA),
    "boxes": Reader(
        lambda path: _labelled(path, labelled="boxes"), "x.json", "json",
        ("datafree.detection.coco", "datafree.bounds"),
    ),
    "config": Reader(load_config, "config.yaml", "text", ("datafree.config",)),
    "record": Reader(_record, "metrics.json", "json", ("datafree.runs.stored",)),
    "options": Reader(_options, "options", "text", ("datafree.config",)),
}  # fmt: skip


def prepare(name: str, folder: Path) -> Callable[[bytes], object]:
    """A function that gives bytes to the reader called `name`; `folder` gets what else it needs."""
    reader, path = READERS[name], folder / READERS[name].file
    folder.mkdir(parents=True, exist_ok=True)
    if name in ("labels", "boxes"):
        Image.new("RGB", (9, 8), (9, 99, 200)).save(folder / "a.png")
    if name == "pictures":
        (folder / "labels.csv").write_text("filename,class_index\nx.png,1\n")
    if name == "record":
        save_config(RunConfig(model="digits_resnet8"), folder / "config.yaml")

    def read(content: bytes) -> object:
        path.write_bytes(content)
        return reader.read(path)

    return read


def corpus(name: str) -> list[bytes]:
    """Inputs to begin with, from the folder of the reader."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def write_corpus() -> None:
    """Write the corpus anew: the smallest inputs that each reader accepts."""
    torch.manual_seed(0)
    made = {
        **_of_torch(), **_of_pictures(),
        "labels/plain.csv": b"filename,class_index\na.png,3\n",
        "boxes/plain.json": json.dumps(_BOXES).encode(),
        "options/widths": _OPTIONS.encode(),
    }  # fmt: skip
    for name, content in made.items():
        path = CORPUS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (CORPUS / "config").mkdir(exist_ok=True)
    save_config(RunConfig(model="digits_resnet8"), CORPUS / "config" / "default.yaml")
    (CORPUS / "record").mkdir(exist_ok=True)
    (CORPUS / "record" / "plain.json").write_text(json.dumps(_RECORD))


_BOXES = {
    "images": [{"id": 7, "file_name": "a.png", "height": 8, "width": 9}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [{"id": 1, "image_id": 7, "category_id": 1, "bbox": [1, 2, 3.5, 4]}],
}
_RECORD = {
    "results": {"teacher": {"top1": 91.5}, "top1": 90.0, "seconds": {"all": 1.5}},
    "environment": {"packages": {"datafree": "0.1.0"}, "python": "3.11"},
}
_OPTIONS = (
    "model=digits_resnet8\nbits=W4A8\nlayer_bits={conv1: 8, 'layer*': W4A8}\n"
    "keep_float=[head, '*.bn']\nimages=64\nseed=0\nmethod=zeroq\n"
)


def _of_torch() -> dict[str, bytes]:
    from onnx import TensorProto, helper, numpy_helper

    net, folder = Small().eval(), Path(__file__).parent
    program, weights, legacy = io.BytesIO(), io.BytesIO(), io.BytesIO()
    batch = {0: torch.export.Dim("batch")}
    exported = torch.export.export(net, (torch.rand(2, 1, 8, 8),), dynamic_shapes=(batch,))
    torch.export.save(exported, program)
    torch.save({"epoch": 3, "state_dict": net.state_dict()}, weights)
    torch.save(net.state_dict(), legacy, _use_new_zipfile_serialization=False)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Expand", ["one", "size"], ["e"]),
        helper.make_node("Add", ["g", "e"], ["a"]),
        helper.make_node("Flatten", ["a"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["y"], transB=1),
    ]  # fmt: skip
    held: dict[str, NDArray[Any]] = {
        "w": np.ones((2, 1, 3, 3), np.float32), "v": np.ones((3, 2), np.float32),
        "one": np.ones(1, np.float32), "size": np.array([1, 2, 1, 1]),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(value, name) for name, value in held.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    found = {
        "program/small.pt2": program.getvalue(), "weights/checkpoint.pth": weights.getvalue(),
        "weights/legacy.pth": legacy.getvalue(), "onnx/small.onnx": made.SerializeToString(),
    }  # fmt: skip
    scratch = folder / "scratch.safetensors"
    sizes = GeneratorConfig(shape=(1, 4, 4), classes=2, latent=2, width=2)
    save_generator(Generator(sizes, torch.Generator()), scratch)
    found["generator/small.safetensors"] = scratch.read_bytes()
    grey = InputSpec(shape=(1, 2, 2), mean=(0.5,), std=(0.5,), classes=3)
    SyntheticSet(torch.zeros(2, 1, 2, 2), grey, torch.tensor([0, 2])).save(scratch)
    found["images/small.safetensors"] = scratch.read_bytes()
    scratch.unlink()
    return found


def _of_pictures() -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    ramp = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)
    wide = np.arange(72, dtype=np.uint16).reshape(8, 9) * 900
    for kind in ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF"):
        content = io.BytesIO()
        Image.fromarray(ramp).save(content, kind)
        found[f"pictures/rgb.{kind.lower()}"] = content.getvalue()
    for name, picture in {
        "wide": Image.fromarray(wide), "palette": Image.fromarray(ramp).convert("P")
    }.items():  # fmt: skip
        content = io.BytesIO()
        picture.save(content, "PNG")
        found[f"pictures/{name}.png"] = content.getvalue()
    for name, options in {"plain": {}, "packed": {"compress": True}}.items():
        content = io.BytesIO()
        save = np.savez_compressed if options else np.savez
        save(content, images=np.zeros((2, 8, 8, 3), np.uint8), labels=np.arange(2))
        found[f"arrays/{name}.npz"] = content.getvalue()
    return found
