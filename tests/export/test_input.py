"""Files that take bytes, and images of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, fx, nn

from datafree.calibrators.base import calibrate
from datafree.calibrators.minmax import MinMax
from datafree.config import InputSpec, Scheme
from datafree.errors import ExportError
from datafree.export._input import as_bytes, from_bytes
from datafree.export._parity import Parity
from datafree.export.onnx import Onnx
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.graph.integer import integer_model
from datafree.graph.settle import settle

SPEC = InputSpec(shape=(3, 12, 16), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), classes=5)


class Small(nn.Module):
    """Takes images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.stem(x)).mean((2, 3)))


class Bound(Small):
    """Flattens its maps, so that their size is that of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8 * 6 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.stem(x)).flatten(1))


def student(network: type[nn.Module]) -> fx.GraphModule:
    torch.manual_seed(0)
    folded = fold_batch_norms(capture(network().eval(), SPEC))
    made = insert_quantizers(folded, Scheme(target="onnxruntime"), SPEC)
    calibrate(made, [from_bytes(pixels(), SPEC)], MinMax())
    return settle(made)


def pixels(height: int = 12, width: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (8, height, width, 3), generator=generator, dtype=torch.uint8)


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])


def test_bytes_go_there_and_back() -> None:
    assert torch.equal(as_bytes(from_bytes(pixels(), SPEC), SPEC), pixels())
    white = from_bytes(torch.full((1, 1, 1, 3), 255, dtype=torch.uint8), SPEC).flatten()
    torch.testing.assert_close(white, torch.tensor([3.0, 2.0, 4 / 3]))
    far = torch.tensor([-9.0, 9.0, 0.0]).view(1, 3, 1, 1)  # outside what bytes can be
    assert as_bytes(far, SPEC).flatten().tolist() == [0, 255, 153]


@pytest.mark.integration
def test_a_file_takes_the_bytes_of_a_camera(tmp_path: Path) -> None:
    made, path = student(Small), tmp_path / "student.onnx"
    images = torch.randn(8, 3, 12, 16)
    report = Onnx(input_uint8=True).export(made, SPEC, path, check=images)
    assert report.parity.difference < 1e-5
    loaded = session(path)
    (given,) = loaded.get_inputs()
    assert (given.type, given.shape) == ("tensor(uint8)", ["batch", 12, 16, 3])
    (logits,) = loaded.run(None, {"images": pixels().numpy()})
    with torch.no_grad():
        expected = integer_model(made)(from_bytes(pixels(), SPEC))
    np.testing.assert_allclose(np.asarray(logits), expected.numpy(), atol=1e-5)
    # Whoever has normalised images gives them to `run`, which knows what the file takes.
    again = Onnx().run(path)(from_bytes(pixels(), SPEC))
    torch.testing.assert_close(again, torch.from_numpy(np.asarray(logits)))


@pytest.mark.integration
def test_a_file_takes_images_of_any_size(tmp_path: Path) -> None:
    made, path = student(Small), tmp_path / "student.onnx"
    Onnx(any_size=True, input_uint8=True).export(made, SPEC, path)
    loaded = session(path)
    assert loaded.get_inputs()[0].shape == ["batch", "height", "width", 3]
    larger = pixels(21, 30)
    (logits,) = loaded.run(None, {"images": larger.numpy()})
    with torch.no_grad():
        expected = integer_model(made)(from_bytes(larger, SPEC))
    np.testing.assert_allclose(np.asarray(logits), expected.numpy(), atol=1e-5)


@pytest.mark.integration
def test_a_network_bound_to_one_size_is_told(tmp_path: Path) -> None:
    path = tmp_path / "student.onnx"
    with pytest.raises(ExportError, match=r"size of its images, 12 x 16, .*: leave any_size out"):
        Onnx(any_size=True).export(student(Bound), SPEC, path)
    assert not any(tmp_path.iterdir())


@pytest.mark.integration
def test_tensors_beside_the_file(tmp_path: Path) -> None:
    made, path = student(Bound), tmp_path / "student.onnx"
    one = Onnx().export(made, SPEC, path)
    two = Onnx(external_above=1024).export(made, SPEC, path, force=True)
    (beside,) = tmp_path.glob("*.data")
    assert two.bytes == path.stat().st_size + beside.stat().st_size
    assert two.bytes == pytest.approx(one.bytes, rel=0.2)
    assert two.parity.difference < 1e-5
    assert onnx.load(path).graph.initializer  # finds them
    # Another student of the same name: what nothing refers to any more is gone.
    with torch.no_grad():
        made.get_submodule("head").get_parameter("weight").neg_()
    Onnx(external_above=1024).export(made, SPEC, path, force=True)
    (other,) = tmp_path.glob("*.data")
    assert other != beside
    Onnx().export(made, SPEC, path, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["student.onnx"]


@pytest.mark.parametrize("location", ["../mine.bin", "mine.bin", "/tmp/weights-0123456789ab.data"])
def test_a_strangers_file_that_is_replaced_takes_no_other_with_it(
    tmp_path: Path, location: str
) -> None:
    """An ONNX file says where its tensors are; replacing it must not remove what it names."""
    folder = tmp_path / "out"
    folder.mkdir()
    mine = folder / location.removeprefix("/tmp/")
    mine.write_bytes(b"mine")
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[1])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    graph = onnx.GraphProto(name="g", initializer=[tensor])
    (folder / "student.onnx").write_bytes(onnx.ModelProto(graph=graph).SerializeToString())
    Onnx().export(student(Bound), SPEC, folder / "student.onnx", force=True)
    assert mine.read_bytes() == b"mine"


class Failing(Onnx):
    """Refuses everything that it wrote."""

    def judge(
        self, parity: Parity, own: Parity | None, path: Path, *, rounded: bool = False
    ) -> None:
        raise ExportError("no")


@pytest.mark.integration
def test_nothing_of_a_refused_file_is_left(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no"):
        Failing(external_above=1024).export(student(Bound), SPEC, tmp_path / "student.onnx")
    assert not any(tmp_path.iterdir())
