from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from datafree import adapters
from datafree.adapters._tool import imported
from datafree.config import InputSpec
from datafree.config.inputs import Input
from datafree.data import open_labelled
from datafree.errors import ConfigError, DataError
from datafree.images import SyntheticSet
from networks import SPEC, build, images


def made(count: int = 5) -> SyntheticSet:
    return SyntheticSet(images(count), SPEC, torch.arange(count) % SPEC.classes)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    torch.onnx.export(
        build("Tiny"), (images(2),), path, dynamo=True, input_names=["picture"],
        dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False, verbose=False,
    )  # fmt: skip
    return path


@pytest.mark.e2e
def test_onnxruntime_quantizes_on_a_set(model: Path, tmp_path: Path) -> None:
    import onnxruntime
    from onnxruntime.quantization import quantize_static

    written = tmp_path / "int8.onnx"
    quantize_static(str(model), str(written), adapters.for_onnxruntime(made(), model))
    session = onnxruntime.InferenceSession(written)
    found = np.asarray(session.run(None, {"picture": images(5).numpy()})[0])
    wanted = build("Tiny")(images(5)).detach().numpy()
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


def test_a_reader_for_onnxruntime(model: Path, tmp_path: Path) -> None:
    reader = adapters.for_onnxruntime(made(), model, batch_size=2)
    batches: list[Any] = list(iter(reader.get_next, None))
    assert len(batches) == len(reader) == 3
    assert np.array_equal(np.concatenate([b["picture"] for b in batches]), images(5).numpy())
    assert reader.get_next() is None
    reader.rewind()
    assert reader.get_next() is not None
    named = adapters.for_onnxruntime(made(), "absent.onnx", input_name="x")
    assert list(named.get_next()) == ["x"]
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    for path in ("absent.onnx", tmp_path / "bad.onnx"):
        with pytest.raises(DataError, match="cannot read the ONNX model"):
            adapters.for_onnxruntime(made(), path)


def test_a_callback_for_aimet() -> None:
    network = build("Tiny")
    seen: list[torch.Tensor] = []
    network.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    forward = adapters.for_aimet(made(), batch_size=2)
    forward(network)
    forward(network, None)
    assert torch.cat(seen).equal(torch.cat([images(5), images(5)]))


def test_a_calibration_loop_for_pt2e() -> None:
    loop = adapters.for_pt2e(made(), batch_size=2)
    seen: list[torch.Tensor] = []
    loop(seen.append)
    assert torch.cat(seen).equal(images(5)[:4])
    assert len(loop) == len(seen) == 2
    assert len(list(adapters.for_pt2e(made()))) == 5
    assert [len(inputs[0]) for inputs in adapters.for_pt2e(made(), batch_size=9)] == [5]


def test_a_representative_dataset_for_mct() -> None:
    data = adapters.for_mct(made(), batch_size=2)
    for _ in range(2):
        parts = [inputs[0] for inputs in data()]
        assert [len(part) for part in parts] == [2, 2, 1]
        assert np.array_equal(np.concatenate(parts), images(5).numpy())


def test_a_dataset_for_nncf() -> None:
    if importlib.util.find_spec("nncf") is None:
        with pytest.raises(ConfigError, match=r"cannot import nncf .*pip install nncf"):
            adapters.for_nncf(made())
        return
    data = adapters.for_nncf(made(), batch_size=2)
    parts = list(data.get_inference_data())
    assert torch.cat(parts).equal(images(5))
    named = adapters.for_nncf(made(), input_name="x")
    assert list(next(iter(named.get_inference_data()))) == ["x"]


def test_a_tool_that_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"no_such_tool.*pip install its-package.*\.npz"):
        imported("no_such_tool", "its-package")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_arrays(tmp_path: Path, layout: Any) -> None:
    adapters.save_numpy(made(), tmp_path / "set.npz", layout=layout)
    adapters.save_numpy(made(), tmp_path / "set.npy", layout=layout)
    wanted = images(5).numpy()
    wanted = wanted if layout == "NCHW" else wanted.transpose(0, 2, 3, 1)
    with np.load(tmp_path / "set.npz") as file:
        assert np.array_equal(file["images"], wanted)
        assert np.array_equal(file["targets"], made().targets)  # pyright: ignore
        assert np.allclose(file["mean"], SPEC.mean) and np.allclose(file["std"], SPEC.std)
    assert np.array_equal(np.load(tmp_path / "set.npy"), wanted)
    with pytest.raises(ConfigError, match=r"set\.csv.*\.npz"):
        adapters.save_numpy(made(), tmp_path / "set.csv")
    assert len(list(tmp_path.iterdir())) == 2


POINT = Input(name="point", shape=(2,), kind="values", mean=(0.0, 0.0), std=(1.0, 1.0))
SPEED = Input(name="speed", shape=(1,), kind="values", mean=(10.0,), std=(2.0,))
BOTH = InputSpec(
    shape=(3, 1, 1), mean=(0.0, 0.0, 10.0), std=(1.0, 1.0, 2.0), classes=4, inputs=(POINT, SPEED)
)
ALONE = InputSpec(shape=(2, 1, 1), mean=(0.0, 0.0), std=(1.0, 1.0), classes=4, inputs=(POINT,))


@pytest.mark.parametrize("targets", [None, torch.tensor([3, 1])])
def test_arrays_of_two_inputs_have_their_names(
    tmp_path: Path, targets: torch.Tensor | None
) -> None:
    packed = torch.tensor([[1.0, 2, 3], [4, 5, 6]]).view(2, 3, 1, 1)
    adapters.save_numpy(SyntheticSet(packed, BOTH, targets), tmp_path / "set.npz")
    with np.load(tmp_path / "set.npz") as file:
        told = {name: file[name].tolist() for name in file.files}
    expected = {"point": [[1, 2], [4, 5]], "speed": [[3], [6]]}
    assert told == (expected if targets is None else {**expected, "targets": [3, 1]})


def test_an_array_by_itself_holds_one_input(tmp_path: Path) -> None:
    packed = torch.tensor([[1.0, 2], [4, 5]]).view(2, 2, 1, 1)
    adapters.save_numpy(SyntheticSet(packed, ALONE), tmp_path / "set.npy")
    assert np.load(tmp_path / "set.npy").tolist() == [[1, 2], [4, 5]]
    both = SyntheticSet(torch.zeros(2, 3, 1, 1), BOTH)
    for name in ("both.npy", "both.csv"):
        with pytest.raises(ConfigError, match=f"{name} does not hold point and speed.*in .npz"):
            adapters.save_numpy(both, tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["set.npy"]


def test_pictures_are_read_back_as_labelled_data(tmp_path: Path) -> None:
    inside = SyntheticSet(images(5).clamp(-1.5, 1.2), SPEC, torch.arange(5))
    adapters.save_pictures(inside, tmp_path / "set")
    with Image.open(tmp_path / "set" / "0003.png") as picture:
        assert np.array_equal(np.asarray(picture), inside.pixels()[3].numpy())
    ((read, labels),) = list(open_labelled(tmp_path / "set", SPEC).batches(9))
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert (read - inside.images).abs().max() < 0.51 / 255 / min(SPEC.std)


def test_grey_pictures_and_others(tmp_path: Path) -> None:
    grey = InputSpec(shape=(1, 4, 6), mean=(0.5,), std=(0.5,), classes=2)
    adapters.save_pictures(SyntheticSet(torch.zeros(2, 1, 4, 6), grey), tmp_path)
    with Image.open(tmp_path / "0001.png") as picture:
        assert (picture.mode, picture.size) == ("L", (6, 4))
    assert not (tmp_path / "labels.csv").exists()
    four = InputSpec(shape=(4, 4, 6), mean=(0.5,) * 4, std=(0.5,) * 4, classes=2)
    with pytest.raises(DataError, match=r"4 channels.*\.npz"):
        adapters.save_pictures(SyntheticSet(torch.zeros(2, 4, 4, 6), four), tmp_path)


def test_a_set_survives_a_copy_of_the_network() -> None:
    """Adapters hand out the images themselves and change none of them."""
    data, network = made(), copy.deepcopy(build("Tiny"))
    before = data.digest()
    assert isinstance(network, nn.Module)
    adapters.for_aimet(data)(network)
    adapters.for_pt2e(data)(network)
    assert data.digest() == before
