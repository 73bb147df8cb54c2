"""`.pt2` files: read without running anything from them."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from datafree.errors import ModelError
from datafree.models.archive import load_archive
from datafree.tensors import state_digest
from teachers import IMAGENET, NORMAL, Evil, Tiny, complaint, teacher


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
        f"{archive} does not say how its images are normalised: give mean and std "
        "(0 and 1 if they are not)"
    )


def test_exported_program_with_weights_is_refused(archive: Path, tmp_path: Path) -> None:
    message = complaint(lambda: teacher(str(archive), weights_file=tmp_path / "w.pth", **NORMAL))
    assert "brings its own weights: leave out weights_file" in message


def test_exported_program_of_another_shape(archive: Path) -> None:
    message = complaint(lambda: teacher(str(archive), input_shape=(1, 9, 8), **NORMAL))
    assert "was exported for images of 1, 8, 8 (channels, height, width), not 1, 9, 8" in message


def test_exported_program_with_static_batch(tmp_path: Path) -> None:
    path = export(tmp_path / "static.pt2", dims=({},))
    message = complaint(lambda: teacher(str(path), **NORMAL))
    assert "exported for batches of 2 only" in message and "Dim.AUTO" in message


def test_exported_program_with_free_size_asks_for_it(tmp_path: Path) -> None:
    path = export(tmp_path / "free.pt2", dims=(dict.fromkeys((0, 2, 3), Dim.AUTO),))
    assert "input_shape as C,H,W" in complaint(lambda: teacher(str(path), **NORMAL))
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


def test_a_reader_that_nobody_looked_through_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.99.0+cpu")
    with pytest.raises(ModelError, match=r"safely with torch 2\.99\.0\+cpu: .* install that one"):
        load_archive(tmp_path / "net.pt2")
