"""What callers give instead of a network: the right treatment, or a line that fits that case."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import datafree
from datafree.errors import DatafreeError, ModelError
from datafree.models import from_module
from datafree.models.given import recognised
from datafree.tensors import state_digest
from datafree.testing.networks import randomized
from teachers import HERE, NORMAL, Tiny, complaint, teacher

SHAPE = (1, 8, 8)
QUICK: dict[str, Any] = {
    "method": "noise", "images": 4, "holdout": 0, "calibrator": "minmax", "device": "cpu",
}  # fmt: skip


class Needs(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()


def build() -> nn.Module:
    return Tiny()


def _scripted() -> Any:
    with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
        return torch.jit.trace(Tiny().eval(), torch.zeros(2, *SHAPE))


def _program(**changes: Any) -> ExportedProgram:
    dims = changes.get("dims", ({0: Dim("batch")},))
    return torch.export.export(
        randomized(Tiny(), torch.randn(8, *SHAPE)), (torch.zeros(2, *SHAPE),), dynamic_shapes=dims
    )


STRANGE: dict[str, tuple[Any, str]] = {
    "none": (None, "the model is None: does the function that builds it return it?"),
    "class": (Tiny, "the class Tiny, not a network: pass Tiny()"),
    "class with arguments": (Needs, "the class Needs, not a network: pass Needs(...)"),
    "function": (build, "the function build, not a network: pass what it returns, build()"),
    "method": (Tiny().forward, "the function forward, not a network"),
    "state dict": (
        Tiny().state_dict(),
        "a state dict, weights without a network: build the network, load them with"
        " model.load_state_dict(state) and pass model",
    ),
    "plain state dict": (dict(Tiny().state_dict()), "load_state_dict(state) and pass model"),
    "checkpoint": (
        {"epoch": 3, "state_dict": Tiny().state_dict()},
        "a checkpoint, weights under 'state_dict' without a network: build the network, load them"
        " with model.load_state_dict(state['state_dict']) and pass model",
    ),
    "checkpoint with a network": ({"model": Tiny()}, "a dict with a network in it: pass 'model'"),
    "options": ({"width": 3}, "a dict, not a network"),
    "network and transforms": ((Tiny(), None), "a tuple of 2: pass the network in it alone, [0]"),
    "transforms and network": ([1, 2, Tiny()], "a list of 3: pass the network in it alone, [2]"),
    "networks": ([Tiny(), Tiny()], "a list of 2 networks: pass one"),
    "empty": ([], "a list, not a network"),
    "tensor": (torch.zeros(2), "a tensor, not a network"),
    "array": (np.zeros(2), "a ndarray, not a network: pass a torch.nn.Module"),
    "number": (8, "a int, not a network"),
    "trainer": (SimpleNamespace(model=Tiny()), "a SimpleNamespace, not a network: pass its .model"),
    "layers": (nn.ModuleList([Tiny()]), "the model, ModuleList, has no forward"),
    "parts": (nn.ModuleDict({"body": Tiny()}), "has no forward: pass the network in it (body)"),
}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("door", [datafree.quantize, datafree.synthesize])
def test_what_is_no_network_gets_a_line_of_its_own(door: Any, kind: str) -> None:
    given, said = STRANGE[kind]
    assert said in complaint(lambda: door(given, input_shape=SHAPE))


def test_torchscript_is_told_how_to_export() -> None:
    message = complaint(lambda: datafree.quantize(_scripted(), input_shape=SHAPE))
    assert message.startswith("the model is TorchScript, which torch.export does not take")
    assert "torch.export.save(torch.export.export(model.eval(), (images,)" in message


def test_the_export_that_is_advised_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line of code in the message, carried out as it stands."""
    message = complaint(lambda: recognised(_scripted()))
    model, images = Tiny(), torch.rand(2, *SHAPE)
    monkeypatch.chdir(tmp_path)
    exec(message[message.index("torch.export.save") :], {"torch": torch}, locals())
    assert teacher("net.pt2", **NORMAL).digest == state_digest(model.state_dict())
    assert len(images) == 2


def test_the_student_of_a_distillation_is_looked_at_too() -> None:
    strange: list[Any] = [Tiny, Tiny().state_dict(), None, (Tiny(), 3)]
    for given in strange:
        message = complaint(
            lambda given=given: datafree.distill("digits_resnet8", student=given), ModelError
        )
        assert message.startswith("the student is ")


def test_a_program_in_memory() -> None:
    program = _program()
    before = state_digest(program.state_dict)
    result = datafree.quantize(program, **QUICK)
    assert result.spec.shape == SHAPE
    assert result.config.model == "<ExportedProgram in memory>"
    images = torch.randn(4, *SHAPE)
    with torch.no_grad():
        exact = program.module()(images)
    assert torch.equal(result.teacher(images), exact)
    assert state_digest(program.state_dict) == before
    message = complaint(lambda: datafree.quantize(_program(dims=({},)), **QUICK))
    assert "ExportedProgram was exported for batches of 2 only" in message
    message = complaint(lambda: from_module(_program(), input_shape=(1, 9, 9)))
    assert "was exported for images of 1, 8, 8 (channels, height, width), not 1, 9, 9" in message


def test_a_program_of_free_size_asks_for_it() -> None:
    program = _program(dims=(dict.fromkeys((0, 2, 3), Dim.AUTO),))
    assert "pass input_shape=(C, H, W)" in complaint(lambda: from_module(program))
    assert from_module(program, input_shape=(1, 10, 9)).spec.shape == (1, 10, 9)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_of_a_program(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "net.pt2"
    torch.export.save(_program(), path)
    images = datafree.synthesize(
        kind(path), method="noise", images=3, excite=False, mean=(0.0,), std=(1.0,)
    )
    assert images.spec.shape == SHAPE


def test_wrapped_networks_come_through_both_functions() -> None:
    net = randomized(Tiny(), torch.randn(8, *SHAPE))
    wrapped = nn.DataParallel(net)
    result = datafree.quantize(wrapped, input_shape=SHAPE, **QUICK)
    assert result.config.model == "<Tiny in memory>"
    assert result.metrics["teacher"] == state_digest(net.state_dict())
    assert "conv" in result.metrics["sqnr_db"]


FACTORY = """
import torch
from torch import nn
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
def wrapped(): return nn.DataParallel(net())
def program():
    sizes = {0: torch.export.Dim("batch")}
    return torch.export.export(net(), (torch.zeros(2, 1, 8, 8),), dynamic_shapes=(sizes,))
def nothing(): net()
def pair(): return net(), "transforms"
def state(): return net().state_dict()
def kind(): return nn.Linear
def needs(width, depth=3): return net()
model = net()
other = program()
weights = model.state_dict()
"""


@pytest.fixture
def factory(tmp_path: Path) -> str:
    path = tmp_path / "nets.py"
    path.write_text(FACTORY)
    return f"{path}:"


@pytest.mark.parametrize("name", ["net", "wrapped", "program", "model", "other"])
def test_factories_may_return_all_kinds_of_networks(factory: str, name: str) -> None:
    found = teacher(factory + name, input_shape=SHAPE, **NORMAL)
    expected = teacher(factory + "net", input_shape=SHAPE, **NORMAL).digest
    assert found.digest == expected
    assert found.name.endswith(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "nothing() returned is None: does the function that builds it return it?"),
        ("pair", "pair() returned is a tuple of 2: pass the network in it alone, [0]"),
        ("state", "state() returned is a state dict, weights without a network"),
        ("kind", "kind() returned is the class Linear, not a network: pass Linear(...)"),
        ("needs", "needs width: name a function that takes nothing and returns the network"),
        ("weights", "weights is a state dict, weights without a network"),
    ],
)
def test_factories_that_return_something_else(factory: str, name: str, said: str) -> None:
    assert said in complaint(lambda: teacher(factory + name, input_shape=SHAPE, **NORMAL))


def test_programs_bring_their_weights(factory: str, tmp_path: Path) -> None:
    weights = tmp_path / "w.pth"
    torch.save(OrderedDict(), weights)
    call = {"weights_file": weights, "input_shape": SHAPE, **NORMAL}
    message = complaint(lambda: teacher(factory + "program", **call))
    assert "brings its own weights: leave out weights_file" in message


def test_names_are_for_load_teacher() -> None:
    given: Any = "digits_resnet8"
    assert "'digits_resnet8' is the name of a network" in complaint(lambda: from_module(given))


def test_a_module_still_has_to_be_told_its_shape() -> None:
    assert "Tiny does not say what input it takes: pass input_shape=(C, H, W)" in complaint(
        lambda: datafree.quantize(Tiny())
    )


def test_everything_is_an_error_of_the_package() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(name)

    with pytest.raises(DatafreeError):
        datafree.quantize(Odd, input_shape=SHAPE)  # pyright: ignore
    assert HERE
