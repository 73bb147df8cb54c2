"""Teachers from every source, and one clear line for everything that can be wrong with them."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from datafree.config import ModelConfig
from datafree.errors import ConfigError, ModelError, UnknownNameError
from datafree.models import Teacher, from_module, hubs, load_teacher, sources
from datafree.tensors import state_digest
from datafree.zoo import ZOO

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
NORMAL = {"mean": (0.0,), "std": (1.0,)}


class Tiny(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bn(self.conv(x)).relu().mean((2, 3)))


def tiny() -> nn.Module:
    return Tiny()


def not_a_module() -> str:
    return "network"


def broken() -> nn.Module:
    raise ValueError("no such checkpoint")


HERE = f"{Path(__file__)}:"


def teacher(source: str, **options: Any) -> Teacher:
    return load_teacher(ModelConfig(source=source, **options))


def complaint(call: Callable[[], object], kind: type[Exception] = ModelError) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- the zoo, weights -----------------------------------------------------------------------------


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


def test_unknown_name_offers_the_nearest() -> None:
    message = complaint(lambda: teacher("digits_resnet9"), UnknownNameError)
    assert "'digits_resnet9': did you mean digits_resnet8" in message


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_are_loaded_and_module_prefix_is_stripped(tmp_path: Path, suffix: str) -> None:
    net, path = Tiny(), tmp_path / f"weights{suffix}"
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    found = teacher(HERE + "tiny", weights=path, input_shape=(1, 8, 8), **NORMAL)
    assert found.digest == state_digest(net.state_dict())
    assert found.spec.classes == 3


def test_missing_batch_counters_are_forgiven(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    state = Tiny().state_dict()
    save_file({key: value for key, value in state.items() if "num_batches" not in key}, path)
    assert teacher(HERE + "tiny", weights=path, input_shape=(1, 8, 8), **NORMAL).spec.classes == 3


def _foreign(tmp_path: Path, change: Callable[[dict[str, Tensor]], object]) -> str:
    state = Tiny().state_dict()
    change(state)
    path = tmp_path / "foreign.safetensors"
    save_file(state, path)
    return complaint(lambda: teacher(HERE + "tiny", weights=path, input_shape=(1, 8, 8), **NORMAL))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    message = _foreign(tmp_path, lambda state: [state.pop("bn.bias"), state.pop("head.bias")])
    assert "2 tensors of the network are missing (bn.bias, head.bias)" in message


def test_foreign_weights_are_named(tmp_path: Path) -> None:
    message = _foreign(
        tmp_path, lambda state: state.update({f"extra{i}": torch.ones(1) for i in range(4)})
    )
    assert "4 tensors are not of this network (extra0, extra1, extra2, …)" in message


def test_weights_of_another_shape_are_named(tmp_path: Path) -> None:
    message = _foreign(tmp_path, lambda state: state.update({"head.bias": torch.ones(7)}))
    assert "head.bias is (7,) in the file, (3,) in the network" in message


def test_non_finite_weights_are_named(tmp_path: Path) -> None:
    message = _foreign(tmp_path, lambda state: state["bn.running_var"].fill_(float("nan")))
    assert "bn.running_var holds 4 NaN or infinite values of 4" in message


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_unreadable_weights(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert f"cannot read weights from {path}: No such file" in complaint(
        lambda: teacher("digits_resnet8", weights=path)
    )
    path.write_bytes(b"this is not a weight file")
    assert str(path) in complaint(lambda: teacher("digits_resnet8", weights=path))


def test_weights_of_unknown_format(tmp_path: Path) -> None:
    message = complaint(lambda: teacher("digits_resnet8", weights=tmp_path / "w.h5"))
    assert "use .safetensors, .pt or .pth" in message


def test_a_weight_file_that_would_run_code_does_not(tmp_path: Path) -> None:
    path, witness = tmp_path / "evil.pth", tmp_path / "witness"
    torch.save({"conv.weight": Evil(witness)}, path)
    message = complaint(lambda: teacher("digits_resnet8", weights=path))
    assert "never unpickled" in message
    assert not witness.exists()


def test_a_weight_file_without_a_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "list.pth"
    torch.save([torch.ones(1)], path)
    message = complaint(lambda: teacher("digits_resnet8", weights=path))
    assert "does not hold a state dict" in message


def test_a_weight_file_as_source_is_explained() -> None:
    message = complaint(lambda: teacher("resnet.safetensors"))
    assert "holds weights without a network" in message and "--weights resnet" in message


# --- factories ------------------------------------------------------------------------------------


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
    assert "pass --input-shape C,H,W" in complaint(lambda: teacher(HERE + "tiny", **NORMAL))


def test_missing_normalisation_is_asked_for() -> None:
    call = {"input_shape": (1, 8, 8)}
    assert "pass --mean and --std (0 and 1" in complaint(lambda: teacher(HERE + "tiny", **call))
    message = complaint(lambda: teacher(HERE + "tiny", mean=(0.0,), **call))
    assert "pass --std (0 and 1" in message


def test_wrong_input_shape_is_named() -> None:
    message = complaint(
        lambda: teacher("digits_resnet8", input_shape=(3, 8, 8), mean=(0, 0, 0)), ConfigError
    )
    assert "std has 1 values for 3 channels" in message
    message = complaint(lambda: teacher(HERE + "tiny", input_shape=(1, 2, 2), **NORMAL))
    assert "does not take images of 1, 2, 2 (channels, height, width)" in message
    assert "Kernel size can't be greater" in message


# --- modules in memory ----------------------------------------------------------------------------


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


class Pair(Tiny):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (Pair(), "must return one tensor of (batch, classes), got tuple"),
        (nn.Conv2d(1, 2, 3), "a batch of 2 gave (2, 2, 6, 6)"),
    ],
)
def test_networks_that_do_not_classify(net: nn.Module, said: str) -> None:
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


# --- libraries ------------------------------------------------------------------------------------


def _fail_import(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(hubs, "importlib", SimpleNamespace(import_module=fail))


@pytest.mark.parametrize("hub", ["timm", "torchvision", "pytorchcv"])
def test_missing_extra(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_import(monkeypatch, ModuleNotFoundError(f"No module named {hub!r}", name=hub))
    message = complaint(lambda: teacher(f"{hub}:resnet18"))
    assert message == f"{hub} is not installed: pip install 'datafree[{hub}]'"


def test_broken_torchvision_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_import(monkeypatch, RuntimeError("operator torchvision::nms does not exist"))
    message = complaint(lambda: teacher("torchvision:resnet18"))
    assert "operator torchvision::nms does not exist" in message
    assert "built for the same torch" in message


def _fake_timm(fail: Exception | None = None) -> Any:
    def create_model(name: str, pretrained: bool, num_classes: int = 3) -> nn.Module:
        if pretrained and fail is not None:
            raise fail
        net: Any = Tiny(num_classes)
        net.pretrained_cfg = {"input_size": (1, 12, 12), "mean": (0.1,), "std": (0.2,)}
        return net

    return SimpleNamespace(
        create_model=create_model, list_models=lambda: ["tinynet_a", "tinynet_b"]
    )


def _with_library(monkeypatch: pytest.MonkeyPatch, library: Any) -> None:
    def give(name: str) -> Any:
        return library

    monkeypatch.setattr(hubs, "importlib", SimpleNamespace(import_module=give))


def test_timm_metadata_and_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_library(monkeypatch, _fake_timm())
    spec = teacher("timm:tinynet_a.in1k").spec
    assert (spec.shape, spec.mean, spec.std, spec.classes) == ((1, 12, 12), (0.1,), (0.2,), 3)


def test_unknown_timm_model(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_library(monkeypatch, _fake_timm())
    message = complaint(lambda: teacher("timm:tinynet_c"), UnknownNameError)
    assert "unknown timm model 'tinynet_c': did you mean tinynet_" in message


def test_failed_download_asks_for_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _with_library(monkeypatch, _fake_timm(URLError("no route to host")))
    message = complaint(lambda: teacher("timm:tinynet_a"))
    assert "no route to host" in message and "--weights file.safetensors" in message
    path = tmp_path / "w.safetensors"
    save_file(Tiny(5).state_dict(), path)
    assert teacher("timm:tinynet_a", weights=path, classes=5).spec.classes == 5


def test_torchvision_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    preset = SimpleNamespace(crop_size=[16], mean=(0.4,) * 3, std=(0.2,) * 3)
    weights = SimpleNamespace(DEFAULT=SimpleNamespace(transforms=lambda: preset))

    class Models:
        @staticmethod
        def list_models(module: object) -> list[str]:
            return ["tiny"]

        @staticmethod
        def get_model_weights(name: str) -> object:
            return weights

        @staticmethod
        def get_model(name: str, weights: object) -> nn.Module:
            assert name == "tiny" and weights is not None
            return nn.Sequential(nn.Flatten(), nn.Linear(768, 6))

    _with_library(monkeypatch, SimpleNamespace(models=Models))
    spec = teacher("torchvision:tiny").spec
    assert (spec.shape, spec.mean, spec.classes) == ((3, 16, 16), (0.4,) * 3, 6)


@pytest.mark.parametrize(
    ("name", "size", "classes", "std"),
    [("resnet20_cifar100", 32, 100, 0.2023), ("resnet10", 224, 1000, 0.229)],
)
def test_pytorchcv_metadata(name: str, size: int, classes: int, std: float, tmp_path: Path) -> None:
    provider = pytest.importorskip("pytorchcv.model_provider")
    path = tmp_path / "w.safetensors"
    save_file(provider.get_model(name).state_dict(), path)
    spec = teacher(f"pytorchcv:{name}", weights=path).spec
    assert (spec.shape, spec.classes, spec.std[0]) == ((3, size, size), classes, std)


def test_unknown_pytorchcv_model() -> None:
    pytest.importorskip("pytorchcv")
    message = complaint(lambda: teacher("pytorchcv:resnet20_cifar11"), UnknownNameError)
    assert "resnet20_cifar10" in message


def test_sources_list_zoo_and_every_prefix() -> None:
    names = [name for name, description in sources() if description]
    assert names[0] == "digits_resnet8"
    assert {"timm:NAME", "torchvision:NAME", "pytorchcv:NAME", "FILE.pt2"} <= set(names)


# --- .pt2 files -----------------------------------------------------------------------------------


def export(path: Path, net: nn.Module | None = None, dims: Any = None) -> Path:
    net = (net or Tiny()).eval()
    dims = ({0: Dim("batch")},) if dims is None else dims
    torch.export.save(
        torch.export.export(net, (torch.rand(2, 1, 8, 8),), dynamic_shapes=dims), path
    )
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("pt2") / "tiny.pt2")


def test_exported_program(tmp_path: Path) -> None:
    net = Tiny().eval()
    found = teacher(str(export(tmp_path / "tiny.pt2", net)), **NORMAL)
    assert isinstance(found.model, ExportedProgram)
    assert (found.spec.shape, found.spec.classes) == ((1, 8, 8), 3)
    assert found.digest == state_digest(net.state_dict())
    x = torch.rand(5, 1, 8, 8)
    assert torch.equal(found.model.module()(x), net(x))


def test_exported_program_does_not_know_its_normalisation(archive: Path) -> None:
    message = complaint(lambda: teacher(str(archive)))
    assert message == (
        f"{archive} does not say how its images are normalised: pass --mean and --std "
        "(0 and 1 if they are not)"
    )


def test_exported_program_with_weights_is_refused(archive: Path, tmp_path: Path) -> None:
    message = complaint(lambda: teacher(str(archive), weights=tmp_path / "w.pth", **NORMAL))
    assert "brings its own weights: leave out --weights" in message


def test_exported_program_of_another_shape(archive: Path) -> None:
    message = complaint(lambda: teacher(str(archive), input_shape=(1, 9, 8), **NORMAL))
    assert "was exported for images of 1, 8, 8 (channels, height, width), not 1, 9, 8" in message


def test_exported_program_with_static_batch(tmp_path: Path) -> None:
    path = export(tmp_path / "static.pt2", dims=({},))
    message = complaint(lambda: teacher(str(path), **NORMAL))
    assert "exported for batches of 2 only" in message and "Dim.AUTO" in message


def test_exported_program_with_free_size_asks_for_it(tmp_path: Path) -> None:
    path = export(tmp_path / "free.pt2", dims=(dict.fromkeys((0, 2, 3), Dim.AUTO),))
    assert "--input-shape C,H,W" in complaint(lambda: teacher(str(path), **NORMAL))
    assert teacher(str(path), input_shape=(1, 10, 11), **NORMAL).spec.shape == (1, 10, 11)


def test_exported_program_with_non_finite_weights(tmp_path: Path) -> None:
    net = Tiny()
    with torch.no_grad():
        net.conv.weight[0, 0, 0, 0] = float("nan")
    path = export(tmp_path / "nan.pt2", net)
    message = complaint(lambda: teacher(str(path), **NORMAL))
    assert "conv.weight holds 1 NaN or infinite values of 36" in message


def test_damaged_and_missing_programs(archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    assert f"cannot read {path}: No such file" in complaint(lambda: teacher(str(path), **NORMAL))
    for content in (b"", b"not a zip", archive.read_bytes()[:3000]):
        path.write_bytes(content)
        message = complaint(lambda: teacher(str(path), **NORMAL))
        assert "is not a program written by torch.export.save" in message
    torch.save({"a": torch.ones(1)}, path)
    message = complaint(lambda: teacher(str(path), **NORMAL))
    assert "is not a program written by torch.export.save" in message


class Evil:
    """Unpickling this makes a folder: a witness that code of the file ran."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.witness),)


Members = dict[str, bytes]


def rewrite(archive: Path, path: Path, change: Callable[[Members], object]) -> Path:
    """A copy of `archive` in which `change` edited the members, named without their folder."""
    with zipfile.ZipFile(archive) as file:
        members = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(f"{path.stem}/{name}", content)
    return path


def edit_model(members: Members, pattern: str, replacement: str) -> None:
    """Replace the first match in the serialized program; the match must exist."""
    text, count = re.subn(
        pattern, lambda _: replacement, members["models/model.json"].decode(), count=1
    )
    assert count == 1
    members["models/model.json"] = text.encode()


def _pickled_sample(members: Members, witness: Path) -> None:
    members["data/sample_inputs/model.pt"] = pickle.dumps(Evil(witness))


def _pickled_weight(members: Members, witness: Path) -> None:
    config = json.loads(members["data/weights/model_weights_config.json"])
    payload = config["config"]["head.bias"]
    payload["use_pickle"] = True
    members["data/weights/model_weights_config.json"] = json.dumps(config).encode()
    members[f"data/weights/{payload['path_name']}"] = pickle.dumps(Evil(witness))


def _opaque_constant(members: Members, witness: Path) -> None:
    config = json.loads(members["data/weights/model_weights_config.json"])["config"]["head.bias"]
    payload = {"config": {"c": {**config, "path_name": "opaque_obj_0", "use_pickle": False}}}
    members["data/constants/model_constants_config.json"] = json.dumps(payload).encode()


def _legacy_weights(members: Members, witness: Path) -> None:
    members["data/weights/model.pt"] = pickle.dumps(Evil(witness))


def _library(members: Members, witness: Path) -> None:
    members["data/aotinductor/model/model.so"] = b"\x7fELF"


def _expression(members: Members, witness: Path) -> None:
    code = f"__import__('os').mkdir('{witness}')"
    edit_model(members, r"Symbol\('s\d+', positive=True, integer=True\)", code)


def _operator(members: Members, witness: Path) -> None:
    edit_model(members, r'"torch\.ops\.aten\.relu\.default"', '"torch.os.mkdir"')


def _node_name(members: Members, witness: Path) -> None:
    text = members["models/model.json"].decode()
    evil = f"relu = __import__('os').mkdir('{witness}'); relu"
    text = text.replace('"name": "relu"', f'"name": "{evil}"')
    members["models/model.json"] = text.replace('"relu": {', f'"{evil}": {{').encode()


def _argument_name(members: Members, witness: Path) -> None:
    evil = f"\"forward_arg_names\": [\"x=__import__('os').mkdir('{witness}')\"]"
    edit_model(members, r'"forward_arg_names": \["x"\]', evil)


def _guards(members: Members, witness: Path) -> None:
    code = f"__import__('os').mkdir('{witness}') is None"
    edit_model(members, r'"guards_code": \[\]', f'"guards_code": ["{code}"]')


def _tree(members: Members, witness: Path) -> None:
    edit_model(members, "builtins.dict", "collections.defaultdict")


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (_pickled_sample, "its example inputs are pickled objects"),
        (_pickled_weight, "its tensor 'head.bias' is pickled"),
        (_opaque_constant, "its tensor 'c' is pickled"),
        (_legacy_weights, "'data/weights/model.pt' is not part of an exported program"),
        (_library, "'data/aotinductor/model/model.so' is not part of an exported program"),
        (_expression, "is not a shape expression"),
        (_operator, "it calls 'torch.os.mkdir'"),
        (_node_name, "where a name should stand"),
        (_argument_name, "where a name should stand"),
        (_tree, "it takes or returns a collections.defaultdict"),
    ],
)
def test_a_program_that_would_run_code_is_refused(
    archive: Path, tmp_path: Path, attack: Callable[[Members, Path], None], said: str
) -> None:
    witness = tmp_path / "witness"
    path = rewrite(archive, tmp_path / "evil.pt2", lambda members: attack(members, witness))
    message = complaint(lambda: teacher(str(path), **NORMAL))
    assert "is refused, loading it could run code from the file" in message
    assert said in message
    assert not witness.exists()


def test_an_archive_written_anew_is_still_a_program(archive: Path, tmp_path: Path) -> None:
    """The attacks above are refused for what they changed, not for being rewritten."""
    path = rewrite(archive, tmp_path / "same.pt2", lambda members: None)
    assert teacher(str(path), **NORMAL).digest == teacher(str(archive), **NORMAL).digest


@pytest.mark.parametrize("attack", [_pickled_sample, _pickled_weight, _expression, _guards])
def test_why_torch_alone_is_not_enough(
    archive: Path, tmp_path: Path, attack: Callable[[Members, Path], None]
) -> None:
    """`torch.export.load` runs what is refused above; when it no longer does, the guard may go."""
    witness = tmp_path / "witness"
    path = rewrite(archive, tmp_path / "evil.pt2", lambda members: attack(members, witness))
    with contextlib.suppress(Exception):  # whatever it says, it is too late
        torch.export.load(path).module()(torch.rand(2, 1, 8, 8))
    assert witness.exists()


def test_guards_of_a_program_are_never_run(archive: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    path = rewrite(archive, tmp_path / "guards.pt2", lambda members: _guards(members, witness))
    assert teacher(str(path), **NORMAL).spec.classes == 3
    assert not witness.exists()


# --- real files -----------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize("name", ["resnet20_cifar10jpeg", "resnet8_mlperftiny_cifar10"])
def test_shared_exported_programs(name: str, shared: Path, shared_networks: ModuleType) -> None:
    found = teacher(str(shared / "data" / "exported" / f"{name}.pt2"), **IMAGENET)
    assert isinstance(found.model, ExportedProgram)
    assert (found.spec.shape, found.spec.classes) == ((3, 32, 32), 10)
    net = shared_networks.build(name)
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(found.model.module()(x), net(x))


@pytest.mark.integration
def test_shared_factory_with_weights(shared: Path, tmp_path: Path) -> None:
    networks, name = shared / "data" / "networks.py", "resnet20_cifar10jpeg"
    weights = shared / "data" / "weights" / f"{name}.safetensors"
    source = f"{networks}:CifarResNet"
    found = teacher(source, weights=weights, input_shape=(3, 32, 32), **IMAGENET)
    again = importlib.import_module("safetensors.torch").load_file(weights)
    assert found.digest == state_digest(again)
