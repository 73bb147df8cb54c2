"""`.pt2` files and checkpoints that are small and claim to be large."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bounded import refused, within
from torch import nn
from torch.export import Dim

from datafree.errors import ModelError
from datafree.models import from_module
from datafree.models.archive import load_archive
from datafree.models.expressions import is_shape_expression
from datafree.models.weights import load_weights, read_weights
from teachers import NORMAL, Tiny, teacher

Members = dict[str, bytes]
WEIGHTS = "data/weights/model_weights_config.json"
MODEL = "models/model.json"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "tiny.pt2"
    exported = torch.export.export(
        Tiny().eval(), (torch.rand(2, 1, 8, 8),), dynamic_shapes=({0: Dim("batch")},)
    )
    torch.export.save(exported, path)
    return path


def rewritten(
    program: Path, path: Path, change: Callable[[Members], Any], how: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(program) as file:
        members = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", how) as file:
        for name, content in members.items():
            file.writestr(f"{path.stem}/{name}", content)
    return path


def expression(text: str) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        model = members[MODEL].decode()
        symbol = next(
            part for part in model.split('"') if part.startswith("Symbol('s") and len(part) < 60
        )
        members[MODEL] = model.replace(symbol, text).encode()

    return change


def sizes(value: int, member: str) -> Callable[[Members], None]:
    """The first weight claims so many values, and holds what it held or nothing."""

    def change(members: Members) -> None:
        config = json.loads(members[WEIGHTS])
        payload = config["config"]["conv.weight"]
        payload["tensor_meta"]["sizes"] = [{"as_int": value}, {"as_int": value}]
        payload["tensor_meta"]["strides"] = [{"as_int": 0}, {"as_int": 0}]
        members[WEIGHTS] = json.dumps(config).encode()
        if member:
            members[f"data/weights/{payload['path_name']}"] = b""

    return change


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9**9", "Pow(Integer(9), Pow(Integer(9), Integer(9)))", "9**999999999",
        "((9**60)**60)**60", "LShift(Integer(1), Integer(99999999999))", "1 << 99999999999",
        "PowByNatural(Integer(2), Integer(9999999999))", "s0**s0**s0", "2**-999999999",
        "(" * 500 + "s0" + ")" * 500 + "**2" * 9, "-" * 5000 + "s0", "Abs(" * 80 + "s0" + ")" * 80,
        "+".join(["s0"] * 9000), "Integer('" + "9" * 4000 + "')", "9" * 4000,
        "Float('1', precision=999999999)", "Pow(Integer(2), Add(Integer(60), Integer(60)))",
        "Pow(Integer(2), exp=Integer(9))", "[s0 for s0 in s0]", "s0.s0", "s0[0]", "lambda: s0",
    ],
)  # fmt: skip
def test_expressions_that_grow(program: Path, tmp_path: Path, text: str) -> None:
    path = rewritten(program, tmp_path / "x.pt2", expression(text.replace('"', "'")))
    assert "is not a shape expression" in refused(lambda: load_archive(path), ModelError)


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s0', positive=True, integer=True)", "Integer(1)", "s77*s27",
        "Add(Integer(1), FloorDiv(Add(Symbol('s0', integer=True), Integer(-1)), Integer(2)))",
        "Pow(Symbol('s0', positive=True, integer=True), Integer(2))", "s0**2", "Pow(s0, -1)",
        "Pow(Add(s0, s1), Rational(1, 2))", "Mul(Pow(s0, Integer(2)), Pow(s1, Integer(2)))",
    ],
)  # fmt: skip
def test_expressions_of_networks_pass(text: str) -> None:
    assert is_shape_expression(text)


@pytest.mark.parametrize("value", [10**6, 2**31, 2**62])
@pytest.mark.parametrize("member", ["", "emptied"])
def test_a_weight_that_claims_more_than_there_is(
    program: Path, tmp_path: Path, value: int, member: str
) -> None:
    path = rewritten(program, tmp_path / "x.pt2", sizes(value, member))
    said = refused(lambda: load_archive(path), ModelError)
    assert "the tensor 'conv.weight' claims" in said


def bombed(member: str) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        members[member] = bytes(300_000_000)

    return change


@pytest.mark.parametrize("member", ["version", MODEL, "data/weights/weight_0", "extra/note"])
def test_members_that_expand(program: Path, tmp_path: Path, member: str) -> None:
    path = rewritten(program, tmp_path / "x.pt2", bombed(member), zipfile.ZIP_DEFLATED)
    assert "torch writes archives without compression" in refused(lambda: load_archive(path))


def test_example_inputs_that_expand(program: Path, tmp_path: Path) -> None:
    def change(members: Members) -> None:
        nested: Any = (torch.rand(2, 1, 8, 8),)
        for _ in range(40):
            nested = (nested, nested)
        content = io.BytesIO()
        torch.save(nested, content)
        members["data/sample_inputs/model.pt"] = content.getvalue()

    path = rewritten(program, tmp_path / "x.pt2", change)
    assert "its example inputs are more than 1000" in refused(lambda: load_archive(path))


def test_thousands_of_members(program: Path, tmp_path: Path) -> None:
    def change(members: Members) -> None:
        members |= {f"extra/{'d/' * 20}{index}": b"" for index in range(25_000)}

    path = rewritten(program, tmp_path / "x.pt2", change)
    assert "members, and networks have fewer tensors" in refused(lambda: load_archive(path))


@pytest.mark.parametrize("text", ["[" * 200_000, "[" * 500 + "]" * 500, "{", "[]", "null"])
@pytest.mark.parametrize("member", [MODEL, WEIGHTS])
def test_json_that_is_nested_or_none(program: Path, tmp_path: Path, text: str, member: str) -> None:
    path = rewritten(program, tmp_path / "x.pt2", lambda m: m.update({member: text.encode()}))
    refused(lambda: load_archive(path), ModelError)


def test_an_input_of_terabytes(tmp_path: Path) -> None:
    """An honest program, of images that nobody has."""

    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))

    shape = torch.empty(2, 3, 10**6, 10**6, device="meta")
    exported = torch.export.export(Mean(), (shape,), dynamic_shapes=({0: Dim("batch")},))
    assert "has more than 67108864 numbers" in refused(lambda: from_module(exported), ModelError)


def test_a_shape_that_nobody_has() -> None:
    said = refused(lambda: teacher("digits_resnet8", input_shape=(1, 10**6, 10**6)))
    assert "has more than 67108864 numbers" in said


def test_a_checkpoint_of_dicts_within_dicts(tmp_path: Path) -> None:
    """A thousand names for the same dict, four times over: 10^12 places in 60 kB."""
    inner: Any = {"w": torch.zeros(1)}
    for _ in range(3):
        inner = {f"k{index}": inner for index in range(1000)}
    torch.save(inner, tmp_path / "x.pth")
    said = refused(lambda: load_weights(Tiny(), tmp_path / "x.pth"), ModelError)
    assert "does not fit the network" in said


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_that_claims_terabytes(tmp_path: Path, legacy: bool) -> None:
    state = {"conv.weight": torch.zeros(1).as_strided((10**6, 10**6), (0, 0))}
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    said = refused(lambda: load_weights(Tiny(), tmp_path / "x.pth"), ModelError)
    assert "does not fit the network" in said


def test_a_checkpoint_that_expands(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", b"\x80\x02}q\x00.")
        file.writestr("x/version", bytes(300_000_000))
    said = refused(lambda: read_weights(tmp_path / "x.pth"), ModelError)
    assert "torch writes archives without compression" in said


@pytest.mark.parametrize("name", ["x.pt2", "x.onnx", "x.pth", "x.safetensors"])
def test_a_device_that_never_ends(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/dev/zero")
    with within():
        refused(lambda: teacher(str(tmp_path / name), **NORMAL), ModelError)
        refused(lambda: read_weights(tmp_path / name), ModelError)
