"""Networks that people use, exported in the ways people do, quantized from the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import datafree
from datafree.config import ModelConfig
from datafree.graph.capture import capture
from datafree.graph.insert import quantizable_layers
from datafree.graph.taps import batch_norms
from datafree.models import load_teacher
from networks import randomized

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the exporters of torch
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

NORMAL: dict[str, Any] = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}


@dataclass(frozen=True)
class How:
    """One way to export a network.

    Attributes:
        dynamo: by the exporter of today, or the one before.
        opset: asked for; the exporter of today writes 18 for less.
        kept: with batch norms, or folded.
        any_batch: for any number of images, or for one.
    """

    dynamo: bool
    opset: int
    kept: bool
    any_batch: bool

    def __str__(self) -> str:
        exporter = "dynamo" if self.dynamo else "script"
        batch = "any" if self.any_batch else "one"
        return f"{exporter}{self.opset}-{'kept' if self.kept else 'folded'}-{batch}"

    def export(self, model: nn.Module, shape: tuple[int, int, int], path: Path) -> Path:
        x = torch.randn(2 if self.any_batch else 1, *shape)
        names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
        if self.dynamo:
            dims = ({0: torch.export.Dim("batch")},) if self.any_batch else None
            torch.onnx.export(
                model, (x,), path, dynamo=True, opset_version=self.opset, dynamic_shapes=dims,
                optimize=not self.kept, external_data=False, verbose=False, **names,
            )  # fmt: skip
        else:
            mode = torch.onnx.TrainingMode
            torch.onnx.export(
                model, (x,), path, dynamo=False, opset_version=min(self.opset, 17),
                training=mode.PRESERVE if self.kept else mode.EVAL,
                do_constant_folding=not self.kept,
                dynamic_axes={"images": {0: "batch"}} if self.any_batch else None, **names,
            )  # fmt: skip
            if self.opset > 17:
                onnx.save(onnx.version_converter.convert_version(onnx.load(path), self.opset), path)
        return path


WAYS = [
    How(dynamo=False, opset=13, kept=True, any_batch=True),
    How(dynamo=False, opset=17, kept=False, any_batch=False),
    How(dynamo=False, opset=21, kept=True, any_batch=False),
    How(dynamo=True, opset=21, kept=True, any_batch=True),
    How(dynamo=True, opset=18, kept=False, any_batch=False),
]


def _resnet20(shared_networks: ModuleType) -> tuple[nn.Module, tuple[int, int, int]]:
    return shared_networks.build("resnet20_cifar10jpeg"), (3, 32, 32)


def _mobilenet_v1(shared_networks: ModuleType) -> tuple[nn.Module, tuple[int, int, int]]:
    return shared_networks.build("mobilenet_v1_075_224_imagenet"), (3, 224, 224)


def _resnet18(shared_networks: ModuleType) -> tuple[nn.Module, tuple[int, int, int]]:
    provider = pytest.importorskip("pytorchcv.model_provider")
    model = provider.get_model("resnet18", pretrained=False)
    return randomized(model, torch.randn(4, 3, 224, 224)), (3, 224, 224)


NETWORKS: dict[str, tuple[Callable[[ModuleType], Any], int]] = {
    "resnet20": (_resnet20, 20),
    "mobilenet_v1": (_mobilenet_v1, 28),
    "resnet18": (_resnet18, 21),
}
"""How each is made, and how many convolutions and linear layers it has."""

PAIRS = [
    *(("resnet20", way) for way in WAYS),
    ("mobilenet_v1", WAYS[0]),
    ("mobilenet_v1", WAYS[1]),
    ("resnet18", WAYS[2]),
]


@pytest.mark.parametrize(("name", "way"), PAIRS, ids=lambda value: str(value))
def test_exported_network(name: str, way: How, tmp_path: Path, shared_networks: ModuleType) -> None:
    """Captured exactly, equal to the network it came from, all layers found under its names."""
    build, layers = NETWORKS[name]
    model, shape = build(shared_networks)
    model.eval()
    path = way.export(model, shape, tmp_path / "net.onnx")
    found = load_teacher(ModelConfig(source=str(path), **NORMAL))
    graph = capture(found.model, found.spec)
    assert isinstance(found.model, nn.Module)
    x = torch.randn(4, *shape)
    with torch.no_grad():
        ours, captured, theirs = found.model(x), graph(x), model(x)
    assert torch.equal(ours, captured)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
    quantizable = quantizable_layers(graph)
    assert len(quantizable) == layers
    paths = {path for path, _ in model.named_modules()}
    assert (way.opset == 21 and not way.dynamo) or {str(layer) for layer in quantizable} <= paths
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert len(batch_norms(graph)) == (norms if way.kept else 0)
    assert any("has no batch norms" in note for note in found.notes) != way.kept


@pytest.mark.parametrize(("bits", "loss"), [("W8A8", 0.01), ("W4A8", 0.08)])
def test_resnet20_quantized_from_its_file(
    bits: str, loss: float, tmp_path: Path, shared: Path, shared_networks: ModuleType
) -> None:
    """The float network from the file is as right as that of torch, and its student nearly."""
    model = shared_networks.build("resnet20_cifar10jpeg").eval()
    path = WAYS[0].export(model, (3, 32, 32), tmp_path / "net.onnx")
    result = datafree.quantize(
        str(path), bits=bits, **NORMAL, method="dsg", method_options={"iterations": 10},
        images=8, holdout=0, latency=False, output=tmp_path / "run",
    )  # fmt: skip
    with np.load(shared / "data" / "cifar10jpeg_test.npz") as archive:
        pixels, labels = (torch.from_numpy(archive[key][:500]) for key in ("images", "labels"))
    mean, std = (torch.tensor(NORMAL[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    x = (pixels.permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        truth, teacher, student = (
            net(x).argmax(1) for net in (model, result.teacher, result.student)
        )
    assert torch.equal(teacher, truth)
    assert (student == labels).float().mean() > (truth == labels).float().mean() - loss
    written = onnx.load(tmp_path / "run" / "student.onnx")
    assert sum(node.op_type in ("Conv", "Gemm") for node in written.graph.node) == 20
    assert result.metrics["runtime"]["integer"] == 20
