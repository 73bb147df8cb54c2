"""Why a network does not take a batch of images: the shape is blamed when it is the shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree.models import from_module
from teachers import Tiny, complaint

SHAPE = (1, 8, 8)
ADVICE = "give the right input_shape, as C,H,W"


def network(forward: Callable[[Any, Any], Any], *layers: nn.Module) -> nn.Module:
    """A module with this `forward`, which gets the layers in a list as its first argument."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(layers)

    def bound(self: Net, x: Any) -> Any:
        return forward(self.layers, x)

    Net.forward = bound
    return Net()


class Sized(nn.Module):
    """Checks its input as people do."""

    def __init__(self, check: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.check = check

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        return x.flatten(1)


def _asserted(x: Tensor) -> None:
    assert x.shape[1] == 3


def _told(x: Tensor) -> None:
    assert x.shape[1] == 3, "expected 3 channels"


def _raised(x: Tensor) -> None:
    raise ValueError(f"image height {x.shape[2]} must be 224")


SHAPES: dict[str, nn.Module] = {
    "channels": nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()),
    "small": nn.Sequential(nn.Conv2d(1, 4, 9), nn.Flatten()),
    "features": nn.Sequential(nn.Flatten(), nn.Linear(100, 3)),
    "view": network(lambda _, x: x.view(2, 100)),
    "added": network(lambda _, x: (x + torch.zeros(9)).flatten(1)),
    "joined": network(lambda _, x: torch.cat([x, x[:, :, :3]], 1).flatten(1)),
    "axes": network(lambda _, x: x.permute(0, 1, 2).flatten(1)),
    "dimension": network(lambda _, x: x.mean(5)),
    "asserted": Sized(_asserted),
    "asserted in words": Sized(_told),
    "raised": Sized(_raised),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_shapes_are_blamed_where_they_are_the_cause(kind: str) -> None:
    message = complaint(lambda: from_module(SHAPES[kind], input_shape=SHAPE))
    assert "does not take images of 1, 8, 8 (channels, height, width): " in message
    assert message.endswith(ADVICE)


class Two(Tiny):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # pyright: ignore
        return super().forward(x) * mask


class Three(Tiny):
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, *, scale: float, shift: float, bias: float = 0.0
    ) -> Tensor:
        return super().forward(x) * scale + shift + bias


class Nothing(Tiny):
    def forward(self) -> Tensor:  # pyright: ignore
        return self.head.weight


class Missing(nn.Module):
    """Lightning's modules say this where nobody wrote a `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Tiny()

    def forward(self, *args: Any) -> Any:
        raise NotImplementedError(f'Module [{type(self).__name__}] is missing "forward"')


def _key(_: Any, x: Tensor) -> Tensor:
    batch = {"label": x}
    return batch["image"]


def _absent(layers: nn.ModuleList, x: Tensor) -> Tensor:
    return layers.norm(x)  # pyright: ignore


OTHERS: dict[str, tuple[nn.Module, str]] = {
    "no input": (Nothing(), "Nothing takes no image: give its forward one argument"),
    "no forward": (Missing(), "Missing has no forward of its own: pass the network inside it"),
    "key": (network(_key), "Net fails on a batch of images: KeyError: 'image' (test_trial.py"),
    "attribute": (network(_absent), "AttributeError: 'ModuleList' object has no attribute 'norm'"),
    "dict wanted": (network(lambda _, x: x["image"]), "Net fails on a batch of images: "),
    "tokens": (nn.Embedding(5, 3), "Embedding fails on a batch of images: "),
    "silent": (Sized(lambda x: (_ for _ in ()).throw(StopIteration())), "fails on a batch"),
    "device": (
        network(lambda _, x: (x + torch.zeros(8, device="meta")).flatten(1)),
        "Net asks for another device than the CPU",
    ),
    "precision": (
        network(lambda layers, x: layers[0](x.half()), nn.Conv2d(1, 3, 3)),
        "Net mixes precisions inside forward: ",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_causes_have_lines_of_their_own(kind: str) -> None:
    net, said = OTHERS[kind]
    message = complaint(lambda: from_module(net, input_shape=SHAPE))
    assert said in message
    assert "input_shape" not in message


def test_networks_for_a_single_image() -> None:
    net = network(lambda layers, x: layers[0](x.view(1, -1)), nn.Linear(64, 3))
    message = complaint(lambda: from_module(net, input_shape=SHAPE))
    assert message.startswith("Net takes one image of 1, 8, 8 and no batch: ")
    assert "x.flatten(1) for x.view(1, -1)" in message


def test_the_line_of_the_user_is_named_not_that_of_torch() -> None:
    message = complaint(lambda: from_module(network(_key), input_shape=SHAPE))
    line = _key.__code__.co_firstlineno + 2
    assert f"(test_trial.py, line {line})" in message


@pytest.mark.parametrize(
    ("network", "names"), [(Two(), "2 inputs (x, mask)"), (Three(), "3 inputs (x, scale, shift)")]
)
def test_shapes_of_all_inputs_are_asked_for(network: nn.Module, names: str) -> None:
    said = complaint(lambda: from_module(network, input_shape=(3, 8, 8)))
    assert names in said and "give input_shape of each" in said and "\n" not in said
