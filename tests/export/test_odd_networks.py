"""Operators that are easily taken for others: the file still computes what the model does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.calibrators.base import calibrate
from datafree.calibrators.minmax import MinMax
from datafree.config import InputSpec, Scheme
from datafree.export.base import predict
from datafree.export.onnx import Onnx
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.graph.integer import float_operators, integer_model
from datafree.graph.settle import settle

pytestmark = pytest.mark.integration

SPEC = InputSpec(shape=(3, 12, 12), mean=(0.5,) * 3, std=(0.5,) * 3, classes=5)


class _Stem(nn.Module):
    def __init__(self, wide: int, pooled: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, wide, 3, padding=1), nn.Linear(pooled, 5)


class MaximumOfRegions(_Stem):
    """`adaptive_max_pool2d` gives a pair, of which one tensor is read."""

    def __init__(self) -> None:
        super().__init__(6, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_max_pool2d(torch.relu(self.stem(x)), 2).flatten(1))


class Recurrent(_Stem):
    """So does a recurrent layer."""

    def __init__(self) -> None:
        super().__init__(6, 8)
        self.rows = nn.LSTM(6 * 12, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.relu(self.stem(x)).permute(0, 2, 1, 3).flatten(2)
        return self.head(self.rows(rows)[0][:, -1])


class Weighted(_Stem):
    """A sum that counts one side twice, which no integer kernel adds."""

    def __init__(self) -> None:
        super().__init__(6, 6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.add(x, self.second(x), alpha=2).mean((2, 3)))


class MeanOfTokens(_Stem):
    """A mean over the last two of three dimensions, which is no pooling of maps."""

    def __init__(self) -> None:
        super().__init__(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.relu(self.stem(x))
        return self.head(maps.mean((2, 3))) + maps.flatten(2).mean((-1, -2))[:, None]


class Doubled(_Stem):
    """A tensor added to, and multiplied with, itself."""

    def __init__(self) -> None:
        super().__init__(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.stem(x)
        maps = maps + maps
        return self.head(F.avg_pool2d(maps * maps, 3, 2, 1).mean((2, 3)))


class Halves(_Stem):
    """Halves on grids of their own, put together, cut, shuffled and enlarged."""

    def __init__(self) -> None:
        super().__init__(8, 1)
        self.left, self.shuffle = nn.Conv2d(4, 4, 1), nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.relu(self.stem(x)).chunk(2, 1)
        both = torch.cat([self.left(left), right], 1)[:, :4]
        larger = F.interpolate(self.shuffle(both), scale_factor=2.0, mode="nearest")
        return self.head(larger.mean((2, 3)))


class Transposed(_Stem):
    """A transposed convolution, and padding with another value than zero."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.clamp(self.stem(F.pad(x, (1, 1, 1, 1), value=1.0)), 0, 6)
        return self.head(self.up(maps).amax((2, 3)))


@pytest.mark.parametrize("bits", ("W8A8", "W4A4"))
@pytest.mark.parametrize(
    "network",
    (MaximumOfRegions, Recurrent, Weighted, MeanOfTokens, Doubled, Halves, Transposed),
)
def test_odd_networks(tmp_path: Path, network: type[nn.Module], bits: str) -> None:
    torch.manual_seed(0)
    folded = fold_batch_norms(capture(network().eval(), SPEC))
    made = insert_quantizers(folded, Scheme(target="onnxruntime", bits=bits), SPEC)
    images = torch.rand(32, 3, 12, 12)
    calibrate(made, [images], MinMax())
    path = tmp_path / "student.onnx"
    Onnx().export(settle(made), SPEC, path, check=images)
    expected = predict(integer_model(made), images)
    found = predict(Onnx().run(path), images)
    difference = float((expected - found).abs().max() / (expected.max() - expected.min()))
    # What is computed in float between two quantizers may round to the other side of a tie.
    assert difference < (0.05 if float_operators(made) else 1e-6)
