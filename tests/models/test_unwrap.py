"""Networks are taken out of what trainings wrap around them, and copied whatever hangs on them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from datafree.errors import ModelError
from datafree.models import from_module
from datafree.models.unwrap import copied, lacks_forward, unwrapped
from datafree.tensors import state_digest
from teachers import Tiny, complaint

BLACK = torch.zeros(2, 1, 8, 8)


def _distributed(net: nn.Module, folder: Path) -> nn.Module:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=0, world_size=1
    )
    return DistributedDataParallel(net)


def _compiled(net: nn.Module) -> nn.Module:
    made: Any = torch.compile(net, backend="eager")
    return made


def _averaged(net: nn.Module, _: Path) -> nn.Module:
    return AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))


class LikeEma(nn.Module):
    """An average that is called by way of its module, as timm's."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class LikeFabric(nn.Module):
    """Two names for one module, and a `forward` that prepares inputs, as Lightning's Fabric."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._forward_module, self._original_module = module, module

    def forward(self, *args: Any) -> Any:
        return self._forward_module(*args)


WRAPPERS: dict[str, Callable[[nn.Module, Path], nn.Module]] = {
    "data parallel": lambda net, _: nn.DataParallel(net),
    "distributed": _distributed,
    "compiled": lambda net, _: _compiled(net),
    "twice": lambda net, _: nn.DataParallel(_compiled(net)),
    "averaged": _averaged,
    "average without a forward": lambda net, _: LikeEma(net),
    "fabric": lambda net, _: LikeFabric(net),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrappers_are_looked_through(kind: str, tmp_path: Path) -> None:
    net = Tiny().eval()
    wrapped = WRAPPERS[kind](net, tmp_path)
    try:
        inner = unwrapped(wrapped)
        found = from_module(wrapped, input_shape=(1, 8, 8))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert type(inner) is Tiny
    assert found.name == "Tiny"
    assert found.digest == state_digest(net.state_dict())
    assert isinstance(found.model, nn.Module)
    assert [name for name, _ in found.model.named_children()] == ["conv", "bn", "head"]


def test_a_bare_network_and_ordinary_containers_are_left_alone() -> None:
    class Module(nn.Module):
        """Its only child happens to be called as in a wrapper, but it computes more than that."""

        def __init__(self) -> None:
            super().__init__()
            self.module = Tiny()

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.module(x)

    for net in (Tiny(), Module(), nn.Sequential(Tiny())):
        assert unwrapped(net) is net
    copy = copied(Module())
    assert torch.equal(copy(BLACK), 2 * copy.module(BLACK))


def test_what_has_no_forward_is_known() -> None:
    assert lacks_forward(nn.ModuleList([Tiny()]))
    assert lacks_forward(LikeEma(Tiny()))
    assert not lacks_forward(Tiny())


class Wrapping(nn.Module):
    """Layers wrapped one by one, as old ImageNet recipes do, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.features: nn.Module = nn.DataParallel(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()))
        self.again = self.features
        self.blocks: Any = nn.ModuleList([_compiled(nn.Conv2d(4, 4, 1)), nn.Linear(4, 3)])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[1](self.blocks[0](self.features(x)).mean((2, 3)))


def test_layers_are_unwrapped_in_the_copy_alone() -> None:
    net = Wrapping().eval()
    copy = copied(net)
    names = ["again.0.bias", "blocks.0.weight", "features.0.weight"]
    assert set(names) <= set(copy.state_dict())
    assert not any("module" in name or "_orig" in name for name in copy.state_dict())
    assert copy.features is copy.again
    assert isinstance(net.features, nn.DataParallel)
    expected = net.blocks[1](net.blocks[0]._orig_mod(net.features(BLACK)).mean((2, 3)))
    assert torch.equal(copy(BLACK), expected)


class LightningModule(nn.Module):
    """What Lightning's class of this name does where copies are concerned."""

    def __init__(self) -> None:
        super().__init__()
        self._trainer: Any = None

    @property
    def trainer(self) -> Any:
        if self._trainer is None:
            raise RuntimeError("Lit is not attached to a `Trainer`.")
        return self._trainer


class Trainer:
    """Knows its module, and cannot be copied: it has a running thread, data and a lock."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.lock = module, threading.Lock()


class Lit(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.loss = Tiny(), nn.CrossEntropyLoss(weight=torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_a_trainer_stays_behind() -> None:
    net = Lit()
    net._trainer = Trainer(net)
    found = from_module(net, input_shape=(1, 8, 8))
    assert isinstance(found.model, Lit)
    assert found.model._trainer is None
    assert net._trainer.module is net
    assert torch.equal(found.model(BLACK), net.eval()(BLACK))


class Hung(Tiny):
    """Attributes that cannot be copied, beside a list of layers that must be."""

    def __init__(self) -> None:
        super().__init__()
        self.lock, self.layers = threading.Lock(), [self.conv, self.head]
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            self.seen = super().forward(x)
        return self.seen


def test_what_cannot_be_copied_is_shared_and_layers_are_not() -> None:
    net = Hung()
    net(BLACK)  # leaves a tensor that knows where it comes from
    copy = copied(net)
    assert copy.lock is net.lock
    assert copy.layers == [copy.conv, copy.head]
    assert copy.conv is not net.conv
    assert copy.seen is not None and net.seen is not None
    assert copy.seen is not net.seen and torch.equal(copy.seen, net.seen)
    assert copy.seen.is_leaf and not net.seen.is_leaf
    with torch.no_grad():
        net.head.bias.fill_(9)
    assert not torch.equal(copy(BLACK), net.eval()(BLACK))


def test_weights_normalised_by_hooks_can_be_copied() -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        net = nn.utils.weight_norm(nn.Conv2d(1, 2, 3))
    expected = net(BLACK)
    assert torch.equal(copied(net)(BLACK), expected)


def test_what_accelerate_put_in_place_of_forward_is_taken_away() -> None:
    net = Accelerator(cpu=True, mixed_precision="bf16").prepare(Tiny())
    assert "forward" in vars(net)
    copy = copied(net)
    with torch.no_grad():
        net.head.bias.fill_(9)
        assert copy(BLACK).max() < 5
    assert "forward" in vars(net)


def test_what_holds_no_values_is_named() -> None:
    with torch.device("meta"):
        empty = Tiny()
    assert "Tiny holds no weights: conv.weight is on the device meta" in complaint(
        lambda: copied(empty)
    )
    lazy = nn.Sequential(nn.LazyConv2d(4, 3))
    assert "0.weight gets its shape from the first batch" in complaint(lambda: copied(lazy))
    net = Tiny()
    net.register_parameter("links", nn.Parameter(torch.eye(3).to_sparse()))
    assert "Tiny cannot be quantized: links is sparse" in complaint(lambda: copied(net))


def test_scripted_layers_are_named() -> None:
    with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
        net = nn.Sequential(torch.jit.trace(nn.Conv2d(1, 4, 3), BLACK), nn.Flatten())  # pyright: ignore
    message = complaint(lambda: copied(net))
    assert message.startswith("Sequential holds TorchScript, 0, which torch.export does not take")


def test_a_network_that_cannot_be_copied_at_all() -> None:
    class Single(Tiny):
        def __deepcopy__(self, memo: object) -> Single:
            raise RuntimeError("there can be only one\nof these")

    message = complaint(lambda: copied(Single()), ModelError)
    assert message.startswith("Single cannot be copied (there can be only one)")
