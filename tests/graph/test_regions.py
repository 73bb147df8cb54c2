"""Parts of a network under another setting are parts of the network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datafree.config import InputSpec
from datafree.graph.capture import capture
from datafree.graph.taps import batch_norms

SPEC = InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, classes=5)


class Plain(nn.Module):
    """Convolution, batch norm, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class Mixed(Plain):
    """Autocast, switched off again within it for the classifier; two results leave the region."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            maps = torch.relu(self.norm(self.conv(x)))
            twice = 2 * maps
            with torch.autocast("cpu", enabled=False):
                logits = self.head((twice - maps).float().mean((2, 3)))
        return logits + 0 * twice.float().mean((1, 2, 3))[:, None]


class Frozen(Plain):
    """A backbone without gradients."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            maps = torch.relu(self.norm(self.conv(x)))
        return self.head(maps.mean((2, 3)))


def check(network: Plain) -> None:
    plain = Plain().eval()
    plain.load_state_dict(network.state_dict())
    graph = capture(network.eval(), SPEC)
    assert set(batch_norms(graph)) == {"norm"}
    assert isinstance(graph.get_submodule("conv"), nn.Conv2d)
    images = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(graph(images), plain(images))


def test_autocast_is_looked_through() -> None:
    check(Mixed())


def test_no_grad_is_looked_through() -> None:
    check(Frozen())
