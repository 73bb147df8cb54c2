"""Teachers by name, from factories and from memory; one clear line for all that can be wrong."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from datafree import models
from datafree.config.options import TeacherOptions
from datafree.errors import ConfigError, DatafreeError, UnknownNameError
from datafree.models import from_module, sources
from datafree.tensors import state_digest
from datafree.zoo import ZOO
from teachers import HERE, IMAGENET, NORMAL, Tiny, complaint, teacher


def test_zoo_network_brings_its_input_spec() -> None:
    found = teacher("digits_resnet8")
    entry = ZOO["digits_resnet8"]
    assert (found.spec.shape, found.spec.mean, found.spec.std, found.spec.classes) == (
        entry.input_shape,
        entry.mean,
        entry.std,
        10,
    )
    assert isinstance(found.model, nn.Module) and not found.model.training
    assert found.name == "digits_resnet8"


def test_options_take_precedence_over_the_source() -> None:
    found = teacher("digits_resnet8", mean=(0.5,), std=(0.25,), input_shape=(1, 16, 16))
    assert (found.spec.shape, found.spec.mean, found.spec.std) == ((1, 16, 16), (0.5,), (0.25,))


@pytest.mark.parametrize("given", ["0.5", 0.5, (0.5,)])
def test_one_number_is_that_of_all_channels(given: object) -> None:
    options = TeacherOptions.model_validate({"mean": given, "std": given})
    found = from_module(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), input_shape=(3, 2, 2),
        mean=options.mean, std=options.std,
    )  # fmt: skip
    assert (found.spec.mean, found.spec.std) == ((0.5,) * 3, (0.5,) * 3)


def test_unknown_name_offers_the_nearest() -> None:
    message = complaint(lambda: teacher("digits_resnet9"), UnknownNameError)
    assert "'digits_resnet9': did you mean digits_resnet8" in message


def test_factory_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "df_nets_x.py").write_text(
        "from torch import nn\n"
        "def make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    found = teacher("df_nets_x:make", input_shape=(1, 2, 2), **NORMAL)
    assert found.spec.classes == 2
    assert isinstance(found.model, nn.Module) and not found.model.training


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (HERE + "not_a_module", "returned str, not a torch.nn.Module"),
        (HERE + "broken", "broken() failed: ValueError: no such checkpoint"),
        ("no_such_package_x.nets:make", "cannot import no_such_package_x.nets"),
        ("no/such/file.py:make", "there is no file no/such/file.py"),
    ],
)
def test_factories_that_do_not_work(source: str, said: str) -> None:
    assert said in complaint(lambda: teacher(source, input_shape=(1, 8, 8), **NORMAL))


def test_unknown_factory_offers_the_nearest() -> None:
    assert "did you mean tiny" in complaint(lambda: teacher(HERE + "tinny"), UnknownNameError)


def test_missing_input_shape_is_asked_for() -> None:
    assert "give input_shape as C,H,W" in complaint(lambda: teacher(HERE + "tiny", **NORMAL))


def test_missing_normalisation_is_asked_for() -> None:
    call = {"input_shape": (1, 8, 8)}
    assert "give mean and std (0 and 1" in complaint(lambda: teacher(HERE + "tiny", **call))
    message = complaint(lambda: teacher(HERE + "tiny", mean=(0.0,), **call))
    assert "give std (0 and 1" in message


def test_wrong_input_shape_is_named() -> None:
    message = complaint(
        lambda: teacher("digits_resnet8", input_shape=(3, 8, 8), std=(1, 1)), ConfigError
    )
    assert "std has 2 values for 3 channels" in message
    message = complaint(lambda: teacher(HERE + "tiny", input_shape=(1, 2, 2), **NORMAL))
    assert "does not take images of 1, 2, 2 (channels, height, width)" in message
    assert "Kernel size can't be greater" in message


def test_a_module_in_memory_is_copied_and_left_alone() -> None:
    net = Tiny().train()
    before = state_digest(net.state_dict())
    found = from_module(net, input_shape=(1, 8, 8))
    assert isinstance(found.model, nn.Module) and found.model is not net
    assert net.training and not found.model.training
    assert found.digest == before == state_digest(net.state_dict())
    assert (found.spec.mean, found.spec.std, found.spec.classes) == ((0.0,), (1.0,), 3)
    with torch.no_grad():
        net.conv.weight.zero_()
    assert state_digest(found.model.state_dict()) == before


def test_non_finite_parameters_of_a_module_are_named() -> None:
    net = Tiny()
    with torch.no_grad():
        net.head.bias[1] = float("inf")
    message = complaint(lambda: from_module(net, input_shape=(1, 8, 8)))
    assert "Tiny cannot be quantized: head.bias holds 1 NaN or infinite values of 3" in message


class Summed(Tiny):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).sum(0)


class Text(Tiny):
    def forward(self, x: Tensor) -> Any:
        return {"label": "cat", "count": 3}


@pytest.mark.parametrize(
    ("net", "said"), [(Summed(), "but a tensor of (3,)"), (Text(), "but a dict")]
)
def test_networks_that_return_nothing_of_an_image(net: nn.Module, said: str) -> None:
    assert said in complaint(lambda: from_module(net, input_shape=(1, 8, 8)))


def test_classes_are_checked_against_the_output() -> None:
    assert from_module(Tiny(), input_shape=(1, 8, 8), classes=3).spec.classes == 3
    message = complaint(lambda: from_module(Tiny(), input_shape=(1, 8, 8), classes=4))
    assert "returns 3 classes, not 4" in message


def test_digest_depends_on_names_and_values() -> None:
    state = {"a": torch.ones(2), "b": torch.tensor(1)}
    assert state_digest(state) == state_digest(dict(reversed(state.items())))
    others = [{"a": torch.ones(2), "c": torch.tensor(1)}, {**state, "a": torch.zeros(2)}]
    assert len({state_digest(item) for item in [state, *others]}) == 3


def test_sources_list_zoo_and_every_prefix() -> None:
    names = [name for name, description in sources() if description]
    assert names[0] == "digits_resnet8"
    assert {"timm:NAME", "torchvision:NAME", "pytorchcv:NAME", "FILE.pt2", "FILE.onnx"} <= set(
        names
    )


@pytest.mark.integration
def test_shared_factory_with_weights(shared: Path, tmp_path: Path) -> None:
    networks, name = shared / "data" / "networks.py", "resnet20_cifar10jpeg"
    weights = shared / "data" / "weights" / f"{name}.safetensors"
    source = f"{networks}:CifarResNet"
    found = teacher(source, weights_file=weights, input_shape=(3, 32, 32), **IMAGENET)
    again = importlib.import_module("safetensors.torch").load_file(weights)
    assert found.digest == state_digest(again)


@pytest.mark.parametrize(
    ("typed", "there"), [("kept.onx", "kept.onnx"), ("netwrk.pt", "network.pt2")]
)
def test_a_file_beside_is_offered(typed: str, there: str, tmp_path: Path) -> None:
    (tmp_path / there).write_bytes(b"")
    (tmp_path / "other.txt").write_text("no network")
    told = complaint(lambda: teacher(str(tmp_path / typed)), DatafreeError)
    assert f"did you mean {tmp_path / there}?" in told


class Keeps(nn.Module):
    """Knows whether what it computed on the way is still there."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.kept = nn.Linear(12, 5), list[Any]()

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1).exp()
        self.kept.append(StorageWeakRef(x.untyped_storage()))
        return self.linear(x)


def test_trying_a_network_keeps_no_activations() -> None:
    network = Keeps()
    returned = models._returned(network, ((3, 2, 2),), "one")  # pyright: ignore[reportPrivateUsage]
    assert returned.grad_fn is not None
    assert network.kept[-1].expired()
    assert not StorageWeakRef(returned.untyped_storage()).expired()
