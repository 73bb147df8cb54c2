"""Files that are named as a network: what they are is told, and nothing in them is run."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from datafree.errors import UnknownNameError
from datafree.models import hubs
from datafree.models.files import foreign_classes, kind_of
from teachers import NORMAL, Evil, Tiny, complaint, teacher


class Args:
    """Hyper-parameters as an object of the training's own."""

    rate = 0.1


def write(path: Path, kind: str) -> Path:
    """A file of this kind at `path`."""
    net = Tiny()
    writers: dict[str, Any] = {
        "state": lambda: torch.save(net.state_dict(), path),
        "old state": lambda: torch.save(
            net.state_dict(), path, _use_new_zipfile_serialization=False
        ),
        "namespace": lambda: torch.save(
            {"model": net.state_dict(), "args": argparse.Namespace(lr=1), "best": np.float64(3)},
            path,
        ),
        "object": lambda: torch.save({"model": net.state_dict(), "args": Args()}, path),
        "network": lambda: torch.save(net, path),
        "old network": lambda: torch.save(net, path, _use_new_zipfile_serialization=False),
        "pickled network": lambda: path.write_bytes(pickle.dumps(net, protocol=4)),
        "layers": lambda: torch.save(nn.Sequential(nn.Linear(2, 3)), path),
        "safetensors": lambda: save_file(net.state_dict(), path),
        "script": lambda: _traced(net).save(str(path)),
        "arrays": lambda: np.savez(path, a=np.zeros(3)),
        "hdf5": lambda: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(32)),
        "text": lambda: path.write_text("weights"),
        "empty": lambda: path.write_bytes(b""),
    }
    writers[kind]()
    return path


def _traced(net: nn.Module) -> Any:
    with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
        return torch.jit.trace(net.eval(), torch.zeros(2, 1, 8, 8))


WEIGHTS = "holds weights without a network: pass package.module:factory with"
WHOLE = "holds a whole pickled network ("
FILES: dict[str, tuple[str, str]] = {
    "state": ("net.pth", WEIGHTS),
    "old state": ("net.pt", WEIGHTS),
    "namespace": ("net.tar", WEIGHTS),
    "object": (
        "net.ckpt",
        "beside objects that are never unpickled (tests.models.test_files.Args)",
    ),
    "network": ("net.pt", WHOLE + "tests.teachers.Tiny"),
    "old network": ("net.pth", WHOLE + "tests.teachers.Tiny"),
    "pickled network": ("net.pkl", WHOLE + "tests.teachers.Tiny"),
    "layers": ("net.pt", WHOLE + "torch.nn.modules.container.Sequential"),
    "safetensors": ("net.safetensors", WEIGHTS),
    "script": ("net.pt", "is TorchScript, which torch.export does not take"),
    "arrays": ("net.npz", "is no file that a network could be read from"),
    "hdf5": ("net.h5", "is no file of torch: convert the network to torch"),
    "text": ("net.pt", "is no file that a network could be read from"),
    "empty": ("net.pth", "is no file that a network could be read from"),
}


def _named_here(said: str) -> str:
    """Modules of tests have other names where they are run alone."""
    return said.replace("tests.teachers", Tiny.__module__).replace(
        "tests.models.test_files", Args.__module__
    )


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_network_is_told_what_it_is(kind: str, tmp_path: Path) -> None:
    name, said = FILES[kind]
    path = write(tmp_path / name, kind)
    message = complaint(lambda: teacher(str(path), input_shape=(1, 8, 8), **NORMAL))
    assert message.startswith(str(path))
    assert _named_here(said) in message


@pytest.mark.parametrize("kind", ["state", "network", "script", "safetensors"])
def test_a_pt2_file_that_is_something_else(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "net.pt2", kind)
    message = complaint(lambda: teacher(str(path), **NORMAL))
    assert _named_here(FILES[kind][1]) in message


def test_a_program_may_have_any_name(tmp_path: Path) -> None:
    sizes = {0: torch.export.Dim("batch")}
    batch = torch.zeros(2, 1, 8, 8)
    program = torch.export.export(Tiny().eval(), (batch,), dynamic_shapes=(sizes,))
    torch.export.save(program, tmp_path / "net.pt2")
    path = (tmp_path / "net.pt2").rename(tmp_path / "exported.pt")
    assert kind_of(path) == "program"
    assert teacher(str(path), **NORMAL).spec.shape == (1, 8, 8)


@pytest.mark.parametrize("name", ["evil.pt", "evil.pth", "evil.pkl"])
@pytest.mark.parametrize("old", [False, True])
def test_nothing_is_run_to_tell_what_a_file_is(name: str, old: bool, tmp_path: Path) -> None:
    path, witness = tmp_path / name, tmp_path / "witness"
    torch.save({"state_dict": Evil(witness)}, path, _use_new_zipfile_serialization=not old)
    assert any(asked.endswith("mkdir") for asked in foreign_classes(path))
    message = complaint(lambda: teacher(str(path), **NORMAL))
    assert "never unpickled" in message and "mkdir" in message
    assert not witness.exists()


def test_places_that_are_no_files(tmp_path: Path) -> None:
    assert f"{tmp_path} is a folder" in complaint(lambda: teacher(str(tmp_path)))
    for name in ("no.pth", "no.safetensors", "no.py"):
        path = tmp_path / name
        assert f"there is no file {path}" in complaint(lambda path=path: teacher(str(path)))


def test_a_python_file_asks_for_the_function(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text("def build(): pass\ndef _own(): pass\nclass Net: pass\n")
    message = complaint(lambda: teacher(str(path)))
    assert message.endswith(
        f"name the function that returns the network, {path}:NAME; it has build, Net"
    )
    path.write_text("def build(")
    assert f"{path} is not Python: " in complaint(lambda: teacher(str(path)))


def test_names_of_libraries_are_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    def names(_: object) -> list[str]:
        return ["resnet18", "vit_tiny"]

    def imported(hub: str) -> str:
        return hub

    def built(*_: Any) -> hubs.Found:
        return hubs.Found(Tiny())

    known = hubs.Hub("", names, built)
    monkeypatch.setattr(hubs, "HUBS", {"timm": known, "pytorchcv": known})
    monkeypatch.setattr(hubs, "_import", imported)
    assert hubs.offered("resnet18") == ["timm:resnet18", "pytorchcv:resnet18"]
    assert hubs.offered("timm/vit_tiny.augreg_in1k") == ["timm:vit_tiny.augreg_in1k"]
    assert hubs.offered("resnet") == []
    message = complaint(lambda: teacher("resnet18"), UnknownNameError)
    assert message == "unknown model 'resnet18': did you mean timm:resnet18 or pytorchcv:resnet18?"
