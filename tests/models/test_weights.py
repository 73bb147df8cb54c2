"""Weight files that fit, and what is said of those that do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from datafree.tensors import state_digest
from teachers import HERE, NORMAL, Evil, Tiny, complaint, teacher


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_are_loaded_and_module_prefix_is_stripped(tmp_path: Path, suffix: str) -> None:
    net, path = Tiny(), tmp_path / f"weights{suffix}"
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    found = teacher(HERE + "tiny", weights_file=path, input_shape=(1, 8, 8), **NORMAL)
    assert found.digest == state_digest(net.state_dict())
    assert found.spec.classes == 3


def test_missing_batch_counters_are_forgiven(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    state = Tiny().state_dict()
    save_file({key: value for key, value in state.items() if "num_batches" not in key}, path)
    assert (
        teacher(HERE + "tiny", weights_file=path, input_shape=(1, 8, 8), **NORMAL).spec.classes == 3
    )


def _foreign(tmp_path: Path, change: Callable[[dict[str, Tensor]], object]) -> str:
    state = Tiny().state_dict()
    change(state)
    path = tmp_path / "foreign.safetensors"
    save_file(state, path)
    return complaint(
        lambda: teacher(HERE + "tiny", weights_file=path, input_shape=(1, 8, 8), **NORMAL)
    )


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
        lambda: teacher("digits_resnet8", weights_file=path)
    )
    path.write_bytes(b"this is not a weight file")
    assert str(path) in complaint(lambda: teacher("digits_resnet8", weights_file=path))


def test_weights_of_unknown_format(tmp_path: Path) -> None:
    path = tmp_path / "w.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(32))
    message = complaint(lambda: teacher("digits_resnet8", weights_file=path))
    assert message.startswith(f"cannot read weights from {path}: it is damaged, or not written by")
    assert "use .safetensors, or save model.state_dict() with torch.save" in message
    assert "it is a folder" in complaint(lambda: teacher("digits_resnet8", weights_file=tmp_path))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("script", "is TorchScript: save torch.jit.load(path).state_dict() with torch.save"),
        ("program", "is a network with its weights: pass it as the model"),
        ("network", "holds a whole network (tests.teachers.Tiny), not only tensors"),
    ],
)
def test_files_that_hold_more_than_weights(tmp_path: Path, kind: str, said: str) -> None:
    path, net = tmp_path / "w.pt", Tiny().eval()
    if kind == "script":
        with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
            torch.jit.save(torch.jit.trace(net, torch.zeros(2, 1, 8, 8)), path)
    elif kind == "program":
        torch.export.save(torch.export.export(net, (torch.zeros(2, 1, 8, 8),)), tmp_path / "w.pt2")
        path = (tmp_path / "w.pt2").rename(path)
    else:
        torch.save(net, path)
    message = complaint(lambda: teacher("digits_resnet8", weights_file=path))
    assert f"{path} {said.replace('tests.teachers', Tiny.__module__)}" in message


def test_a_weight_file_that_would_run_code_does_not(tmp_path: Path) -> None:
    path, witness = tmp_path / "evil.pth", tmp_path / "witness"
    torch.save({"conv.weight": Evil(witness)}, path)
    message = complaint(lambda: teacher("digits_resnet8", weights_file=path))
    assert "mkdir" in message and "never unpickled" in message
    assert not witness.exists()


def test_a_weight_file_without_a_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "list.pth"
    torch.save([torch.ones(1)], path)
    message = complaint(lambda: teacher("digits_resnet8", weights_file=path))
    assert "does not hold a state dict" in message
