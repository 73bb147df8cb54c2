"""Checkpoints of trainings: whatever wrappers did to names, the network gets its own weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from datafree.models import load_teacher
from datafree.models.weights import load_weights
from datafree.tensors import state_digest
from datafree.testing.networks import randomized
from teachers import HERE, NORMAL, Tiny, complaint, teacher

State = dict[str, Tensor]


def state(seed: int = 0) -> State:
    torch.manual_seed(seed)
    return randomized(Tiny(), torch.randn(8, 1, 8, 8)).state_dict()


OWN, OTHER = state(0), state(1)


def under(prefix: str, tensors: State) -> State:
    return {prefix + name: value for name, value in tensors.items()}


def _averaged() -> State:
    net = Tiny()
    net.load_state_dict(OWN)
    return AveragedModel(net).state_dict()


def _data_parallel_inside() -> State:
    """Layers wrapped one by one."""
    renamed = (name.replace("conv.", "conv.module.") for name in OWN)
    return dict(zip(renamed, OWN.values(), strict=True))


SILENT: dict[str, Any] = {
    "plain": OWN,
    "data parallel": under("module.", OWN),
    "compiled": under("_orig_mod.", OWN),
    "both": under("module._orig_mod.", OWN),
    "fully sharded": under("_fsdp_wrapped_module.", OWN),
    "parts in parallel": _data_parallel_inside(),
    "nested": {"epoch": 3, "state_dict": OWN, "optimizer": {"state": {0: {"step": 1}}}},
    "timm": {"model": under("module.", OWN), "arch": "tiny", "metric": np.float64(93.1)},
    "lightning": {
        "state_dict": under("model.", OWN),
        "hyper_parameters": {"lr": 1e-3},
        "pytorch-lightning_version": "2.5.0",
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9)}},
        "optimizer_states": [{"state": {}, "param_groups": []}],
    },
    "lightning compiled": {"state_dict": under("model._orig_mod.", OWN)},
    "student": under("student.", OWN),
    "deep": {"ckpt": {"net": {"weights": under("module.encoder.", OWN)}}},
    "arguments": {"model": OWN, "args": argparse.Namespace(lr=0.1, name="tiny")},
    "without counters": {k: v for k, v in OWN.items() if "num_batches" not in k},
    "parameters": {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in OWN.items()},
}


def loaded(content: Any, folder: Path, net: nn.Module | None = None) -> tuple[nn.Module, list[str]]:
    path = folder / "checkpoint.pth"
    torch.save(content, path)
    net = net or Tiny()
    notes = load_weights(net, path)
    assert all(note.startswith(f"{path}: ") for note in notes)
    return net, [note.removeprefix(f"{path}: ") for note in notes]


def without_counters(tensors: State) -> str:
    return state_digest({k: v for k, v in tensors.items() if "num_batches" not in k})


def has(net: nn.Module, tensors: State) -> bool:
    return without_counters(net.state_dict()) == without_counters(tensors)


@pytest.mark.parametrize("kind", SILENT)
def test_names_are_made_to_fit(kind: str, tmp_path: Path) -> None:
    net, notes = loaded(SILENT[kind], tmp_path)
    assert has(net, OWN)
    assert notes == []


CHOICES: dict[str, tuple[Any, str]] = {
    "timm": (
        {"model": OTHER, "model_ema": OWN},
        "the averaged weights model_ema were taken, not model",
    ),
    "timm, newer": (
        {"state_dict": OTHER, "state_dict_ema": under("module.", OWN)},
        "the averaged weights state_dict_ema were taken, not state_dict",
    ),
    "yolo": (
        {"ema": {"module": OWN}, "model": OTHER},
        "the averaged weights ema.module were taken, not model",
    ),
    "super-resolution": (
        {"params": OTHER, "params_ema": OWN},
        "the averaged weights params_ema were taken, not params",
    ),
    "lightning": (
        {"state_dict": under("model.", OTHER) | under("ema_model.", OWN)},
        "the averaged weights state_dict.ema_model were taken, not state_dict.model",
    ),
    "only averages": ({"ema": OWN}, "the averaged weights ema were taken"),
    "distillation": (
        under("teacher.", OTHER) | under("student.", OWN),
        "the weights student were taken, not teacher",
    ),
    "loss": (
        {"state_dict": under("model.", OWN) | {"criterion.weight": torch.ones(3)}},
        "what is not of the network was left out: criterion.weight (1 in all)",
    ),
    "half": (
        {k: v.half() if v.is_floating_point() else v for k, v in OWN.items()},
        "its float16 numbers became float32, as in the network",
    ),
}


@pytest.mark.parametrize("kind", CHOICES)
def test_which_weights_were_taken_is_said(kind: str, tmp_path: Path) -> None:
    content, said = CHOICES[kind]
    net, notes = loaded(content, tmp_path)
    assert notes == [said]
    if kind == "half":
        assert net.state_dict()["conv.weight"].dtype == torch.float32
        assert torch.equal(net.state_dict()["conv.weight"], OWN["conv.weight"].half().float())
    else:
        assert has(net, OWN)


def test_an_average_of_weights_by_torch(tmp_path: Path) -> None:
    net, _ = loaded(_averaged(), tmp_path)
    assert has(net, OWN)


def test_names_that_the_file_lacks_a_prefix_of(tmp_path: Path) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Tiny()

    net, notes = loaded(OWN, tmp_path, Outer())
    assert has(net, under("net.", OWN))
    assert notes == []


def test_a_network_that_has_a_part_called_module_keeps_it(tmp_path: Path) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = Tiny()

    for content in (under("module.", OWN), under("module.module.", OWN), OWN):
        net, _ = loaded(content, tmp_path, Outer())
        assert has(net, under("module.", OWN))


def _changed(change: Callable[[State], object]) -> State:
    tensors = dict(OWN)
    change(tensors)
    return tensors


MISFITS: dict[str, tuple[Any, str]] = {
    "missing": (
        {"state_dict": under("model.", _changed(lambda t: t.pop("bn.bias")))},
        "(its state_dict.model) does not fit the network: 1 tensors of the network are missing"
        " (bn.bias)",
    ),
    "foreign": (
        under("module.", OWN | {"aux.weight": torch.ones(1)}),
        "1 tensors are not of this network (aux.weight)",
    ),
    "foreign behind the prefix": (
        {"model": under("net.", OWN | {"aux.weight": torch.ones(1)})},
        "(its model.net) does not fit the network: 1 tensors are not of this network (aux.weight)",
    ),
    "shape": (
        {"model_ema": OWN | {"head.bias": torch.ones(7)}},
        "1 shapes differ (head.bias is (7,) in the file, (3,) in the network)",
    ),
    "integers": (
        OWN | {"conv.weight": torch.ones_like(OWN["conv.weight"], dtype=torch.int8)},
        "1 kinds of numbers differ (conv.weight is int8 in the file, float32 in the network)",
    ),
    "another network": (
        {"model": nn.Linear(2, 3).state_dict()},
        "(its model) does not fit the network: 8 tensors of the network are missing"
        " (conv.weight, conv.bias, bn.weight, …); 2 tensors are not of this network"
        " (weight, bias)",
    ),
    "no tensors": ({"epoch": 3, "metrics": [1.0]}, "does not hold a state dict (tensors by name)"),
    "numbers as names": ({0: torch.ones(1)}, "does not hold a state dict (tensors by name)"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(kind: str, tmp_path: Path) -> None:
    content, said = MISFITS[kind]
    net = Tiny()
    before = state_digest(net.state_dict())
    message = complaint(lambda: loaded(content, tmp_path, net))
    assert message.startswith(str(tmp_path / "checkpoint.pth"))
    assert said in message
    assert state_digest(net.state_dict()) == before


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".bin", ".tar", ".pth.tar"])
def test_a_teacher_tells_what_its_checkpoint_was(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    torch.save({"model": OTHER, "model_ema": OWN}, path)
    found = teacher(HERE + "tiny", weights_file=path, input_shape=(1, 8, 8), **NORMAL)
    assert found.notes == (f"{path}: the averaged weights model_ema were taken, not model",)
    assert found.digest == state_digest(OWN)
    assert load_teacher.__doc__


def test_weights_reach_a_network_whose_factory_wraps_it(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    body = nn.DataParallel(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)))\n"
        "    return nn.DataParallel(nn.Sequential(body, nn.Flatten()))\n"
    )
    inner = nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), nn.Flatten())
    wrapped = {name.replace("0.", "0.module.", 1): v for name, v in inner.state_dict().items()}
    for content in (inner.state_dict(), under("module.", wrapped)):
        torch.save(content, tmp_path / "w.pth")
        found = teacher(
            f"{tmp_path / 'nets.py'}:net", weights_file=tmp_path / "w.pth",
            input_shape=(1, 8, 8), **NORMAL,
        )  # fmt: skip
        assert found.digest == state_digest(inner.state_dict())
