"""Networks of other precision than float32: copies that compute the same, and what is said."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from datafree.config import InputSpec
from datafree.graph.capture import capture
from datafree.models import from_module
from datafree.models.precision import in_float32
from datafree.tensors import state_digest
from datafree.testing.networks import randomized
from teachers import HERE, NORMAL, Tiny, complaint, teacher

SHAPE = (1, 8, 8)
SPEC = InputSpec(shape=SHAPE, mean=(0.0,), std=(1.0,), classes=3)
LOWER = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float64: 1e-6}
"""Other precisions, with what rounding weights to them may change of logits around 1."""
IMAGES = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(1))


def trained() -> Tiny:
    net = randomized(Tiny(), torch.randn(16, *SHAPE))
    assert isinstance(net, Tiny)
    return net


def exported(net: nn.Module, dtype: torch.dtype = torch.float32) -> ExportedProgram:
    batch = torch.zeros(2, *SHAPE, dtype=dtype)
    return torch.export.export(net.eval(), (batch,), dynamic_shapes=({0: Dim("batch")},))


@pytest.mark.parametrize("kind", LOWER, ids=str)
@pytest.mark.parametrize("form", ["module", "program"])
def test_other_precisions_are_quantized_as_float32_copies(form: str, kind: torch.dtype) -> None:
    net = trained()
    lower = copy.deepcopy(net).to(kind)
    before = state_digest(lower.state_dict())
    given: Any = lower if form == "module" else exported(lower, kind)
    found = from_module(given, input_shape=SHAPE)
    name = "Tiny" if form == "module" else "ExportedProgram"
    short = str(kind).removeprefix("torch.")
    assert found.notes == (f"{name} holds {short} numbers: it is quantized as a float32 copy",)
    graph = capture(found.model, found.spec)
    floats = {t.dtype for t in graph.state_dict().values() if t.is_floating_point()}
    assert floats == {torch.float32}
    with torch.no_grad():
        assert (graph(IMAGES) - net(IMAGES)).abs().max() < LOWER[kind]
    assert state_digest(lower.state_dict()) == before


def test_float32_networks_are_not_copied_again_and_nothing_is_said() -> None:
    net = trained()
    assert in_float32(net, (SHAPE,), "Tiny") == (net, None)
    program = exported(net)
    assert in_float32(program, (SHAPE,), "Tiny") == (program, None)


class Mixed(Tiny):
    """A double buffer, as NumPy makes them, which turns images to double; a head in bfloat16."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.full((1, 1), 0.5, dtype=torch.float64))
        self.head.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv((x - self.shift).to(self.conv.weight.dtype))).relu().mean((2, 3))
        return self.head(x.to(self.head.weight.dtype))


def test_mixed_precisions_are_counted() -> None:
    (note,) = from_module(Mixed(), input_shape=SHAPE).notes
    assert note == (
        "Mixed holds float32 (6 tensors) and bfloat16 (2 tensors) and float64 (1 tensor) numbers:"
        " it is quantized as a float32 copy"
    )


class CastsItself(Tiny):
    """Half precision inside `forward`, whatever its weights are."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.half()).float()


def test_casts_inside_forward_are_changed_with_the_weights() -> None:
    net, plain = CastsItself(), Tiny()
    plain.load_state_dict(net.state_dict())
    found = from_module(net.half().eval(), input_shape=SHAPE)
    graph = capture(found.model, found.spec)
    assert [node.name for node in graph.graph.nodes if "to" in node.name] == []
    assert {"conv", "bn", "head"} <= {name for name, _ in graph.named_children()}
    with torch.no_grad():
        assert (graph(IMAGES) - plain.eval()(IMAGES)).abs().max() < LOWER[torch.float16]


class Complex(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.ones(3, dtype=torch.complex64))


class Integer(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (Complex(), "its parameter phase is complex64: split it into two real ones"),
        (Integer(), "its parameter codes is int8: a buffer may hold integers"),
    ],
)
def test_parameters_that_are_no_numbers_of_a_network(net: nn.Module, said: str) -> None:
    message = complaint(lambda: from_module(net, input_shape=SHAPE))
    assert message.startswith(f"{type(net).__name__} cannot be quantized: {said}")


def test_a_half_program_from_a_file_and_a_half_factory(tmp_path: Path) -> None:
    path = tmp_path / "half.pt2"
    torch.export.save(exported(trained().half(), torch.float16), path)
    found = teacher(str(path), **NORMAL)
    assert found.notes == (f"{path} holds float16 numbers: it is quantized as a float32 copy",)
    assert isinstance(found.model, nn.Module)
    factory = tmp_path / "nets.py"
    factory.write_text(
        "from torch import nn\n"
        "def half():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).half()\n"
    )
    (note,) = teacher(f"{factory}:half", input_shape=SHAPE, **NORMAL).notes
    assert "half holds float16 numbers" in note


def test_weights_beyond_float32_are_named() -> None:
    net = Tiny().double()
    with torch.no_grad():
        net.head.bias[0] = 1e300
    message = complaint(lambda: from_module(net, input_shape=SHAPE))
    assert "head.bias holds 1 NaN or infinite values" in message


def test_teachers_in_float32_have_no_notes() -> None:
    assert teacher(HERE + "tiny", input_shape=SHAPE, **NORMAL).notes == ()
