from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from datafree.config import InputSpec
from datafree.graph.capture import capture
from datafree.graph.swing import Swing, shifted, swing_convolutions
from datafree.graph.taps import tap_outputs
from datafree.testing.watching import fingerprint
from networks import captured, images

OFFSETS = [(rows, columns) for rows in (-1, 0, 1) for columns in (-1, 0, 1)]


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def padded_and_cropped(x: Tensor, rows: int, columns: int) -> Tensor:
    """The definition: reflection pad of one, crop at offset 1 + (rows, columns)."""
    height, width = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    return padded[:, :, 1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]


@pytest.mark.parametrize("size", [(2, 2), (2, 7), (5, 3), (8, 8)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_shift_is_a_reflection_pad_and_a_crop(
    size: tuple[int, int], layout: torch.memory_format
) -> None:
    x = images(3, 1, (4, *size)).to(memory_format=layout)
    for rows, columns in OFFSETS:
        actual = shifted(shifted(x, rows, 2), columns, 3)
        assert torch.equal(actual, padded_and_cropped(x, rows, columns))
        assert actual.is_contiguous(memory_format=layout)


def test_dimensions_of_size_one_stay() -> None:
    x = images(2, 0, (3, 1, 5))
    assert shifted(x, 1, 2) is x
    for seed in range(10):
        assert torch.equal(Swing(source(seed))(x[..., :1]), x[..., :1])
        assert Swing(source(seed))(x).shape == x.shape


def test_offsets_are_uniform_and_shared_by_the_batch() -> None:
    x = images(1, 2, (1, 4, 4)).expand(3, -1, -1, -1)
    swing, counts = Swing(source()), Counter[tuple[int, int]]()
    known = {offset: padded_and_cropped(x, *offset) for offset in OFFSETS}
    for _ in range(900):
        moved = swing(x)
        counts[next(offset for offset, wanted in known.items() if torch.equal(moved, wanted))] += 1
    assert set(counts) == set(OFFSETS)
    assert min(counts.values()) > 65, "nine binomials of mean 100 and deviation 9.4"
    assert max(counts.values()) < 135


def test_the_generator_given_decides_and_no_other() -> None:
    x, state = images(1), torch.random.get_rng_state()

    def run(seed: int) -> list[Tensor]:
        swing = Swing(source(seed))
        return [swing(x) for _ in range(8)]

    one = run(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    two, other = run(1), run(2)
    torch.random.set_rng_state(state)
    assert all(map(torch.equal, one, two))
    assert not all(map(torch.equal, one, other))


def strided(conv: nn.Module, shape: tuple[int, int, int]) -> fx.GraphModule:
    """`conv` as the first layer of a classifier."""
    spec = InputSpec(shape=shape, mean=(0.5,) * shape[0], std=(0.5,) * shape[0], classes=2)
    width = conv(images(1, 0, shape)).flatten(1).shape[1]
    return capture(nn.Sequential(conv, nn.Flatten(), nn.Linear(width, 2)), spec)


def convolutions() -> list[nn.Conv2d]:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return [
            nn.Conv2d(4, 6, 3, stride=2, padding=1),
            nn.Conv2d(4, 6, 1, stride=2, bias=False),
            nn.Conv2d(4, 4, 3, stride=(1, 2), groups=4, padding=(0, 1)),
            nn.Conv2d(4, 6, 4, stride=4),
        ]


@pytest.mark.parametrize("conv", convolutions(), ids=str)
@torch.no_grad()
def test_the_mean_over_all_offsets_is_that_of_blurred_images(conv: nn.Conv2d) -> None:
    """Shifts are averaged by a 3x3 box, and convolution is linear: A.6.1 in closed form."""
    shape = (4, 9, 8)
    graph, x = strided(conv, shape), images(2, 3, shape)
    swung, outputs = swing_convolutions(graph, source()), dict[str, Tensor]()
    known = [conv(padded_and_cropped(x, *offset)) for offset in OFFSETS]
    seen: dict[int, Tensor] = {}
    with tap_outputs({"y": swung.get_submodule("0")}, outputs.__setitem__):
        for _ in range(200):
            assert swung(x).shape == (2, 2)
            y = outputs["y"]
            gaps = [(y - wanted).abs().max().item() for wanted in known]
            assert min(gaps) < 1e-5, "always the convolution of a shifted input"
            seen[gaps.index(min(gaps))] = y
    assert len(seen) == len(OFFSETS)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    torch.testing.assert_close(torch.stack(list(seen.values())).mean(0), conv(blurred))


@pytest.mark.parametrize(
    ("name", "layers"),
    [("Tiny", {"conv2"}), ("Grouped", {"stem"}), ("Dense", {"conv"}), ("InPlaceResidual", set())],
)
def test_strided_convolutions_swing_and_no_others(name: str, layers: set[str]) -> None:
    graph, x = captured(name), images(3)
    before, code = fingerprint(graph), graph.code
    with torch.no_grad():
        expected = graph(x)
        swung = swing_convolutions(graph, source(1))
        moved = {
            str(user.target)
            for node in swung.graph.nodes
            for user in node.users
            if node.op == "call_module" and isinstance(swung.get_submodule(node.target), Swing)
        }
        assert moved == layers
        outputs = [swung(x) for _ in range(8)]
    assert any(not torch.equal(output, expected) for output in outputs) == bool(layers)
    assert all(output.shape == expected.shape for output in outputs)
    assert (fingerprint(graph), graph.code) == (before, code)
    assert torch.equal(graph(x), expected)


def test_two_readers_of_one_tensor_swing_by_themselves() -> None:
    """The residual block with a strided shortcut: two convolutions, two offsets."""

    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.skip = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(3, 4, 1, 2)
            self.linear = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear((self.main(x) + self.skip(x)).mean((2, 3)))

    spec = InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, classes=5)
    swung = swing_convolutions(capture(Shortcut(), spec), source())
    swings = {name: swung.get_submodule(f"{name}_swing") for name in ("main", "skip")}
    moved: dict[str, Tensor] = {}
    equal: list[bool] = []
    with tap_outputs(swings, moved.__setitem__):
        for _ in range(20):
            swung(images(1))
            equal.append(torch.equal(moved["main"], moved["skip"]))
    assert not all(equal)


def test_gradients_flow_to_every_pixel() -> None:
    """A 1x1 convolution of stride 2 sees a quarter of the pixels; swung, all of them in time."""
    conv = nn.Conv2d(1, 1, 1, stride=2, bias=False)
    nn.init.ones_(conv.weight)
    x = images(1, 0, (1, 6, 6)).requires_grad_()
    plain = strided(conv, (1, 6, 6))
    (gradient,) = torch.autograd.grad(plain.get_submodule("0")(x).sum(), x)
    assert (gradient != 0).float().mean() == 0.25
    swing, total = Swing(source()), torch.zeros_like(x)
    for _ in range(40):
        (gradient,) = torch.autograd.grad(conv(swing(x)).sum(), x)
        total += gradient
    assert (total > 0).all()
