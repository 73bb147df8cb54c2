"""Networks whose numbers are extreme: a right student, or one line with the layer's own name."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import datafree
from datafree.errors import ConfigError, DatafreeError

pytestmark = pytest.mark.integration


class Net(nn.Module):
    def __init__(self, norms: bool = False) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if norms else nn.Identity()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(torch.relu(self.body(x)).mean((2, 3)))


def network(*, norms: bool = False) -> Net:
    torch.manual_seed(0)
    net = Net(norms).train()
    with torch.no_grad():
        for _ in range(4):
            net(torch.randn(16, 3, 8, 8))
    return net.eval()


def quantized(net: nn.Module, **changes: Any) -> datafree.Result:
    options: dict[str, Any] = {
        "bits": "W8A8", "method": "noise", "images": 8, "holdout": 32, "isolate": False,
        "input_shape": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3,
    }  # fmt: skip
    return datafree.quantize(net, **{**options, **changes})


def scaled(first: float, second: float, last: float = 1.0) -> Callable[[Net], None]:
    def change(net: Net) -> None:
        for layer, factor in ((net.stem, first), (net.body, second), (net.head, last)):
            layer.weight.data.mul_(factor)
        net.stem.bias.data.mul_(first)  # pyright: ignore
        net.body.bias.data.mul_(first * second)  # pyright: ignore
        net.head.bias.data.mul_(first * second * last)  # pyright: ignore

    return change


@pytest.mark.parametrize(
    "change",
    [scaled(1e8, 1e-8), scaled(1e-8, 1e8), scaled(1e-12, 1e12), scaled(1, 1, 1e-20),
     scaled(1, 1, 1e20), scaled(1e-9, 1e-9, 1e20), scaled(1e15, 1e15)],
)  # fmt: skip
@pytest.mark.parametrize("calibrator", ["minmax", "mse"])
def test_layers_of_any_size_lose_no_more_than_ordinary_ones(
    change: Callable[[Net], None], calibrator: str
) -> None:
    net = network()
    change(net)
    made = quantized(net, calibrator=calibrator)
    assert min(made.metrics["sqnr_db"].values()) > 25
    x = made.images.images
    with torch.no_grad():
        expected, found = net(x).double(), made.student(x).double()
    assert (expected - found).norm() < 0.05 * expected.norm()
    assert "notes" not in made.metrics or not any("dB" in n for n in made.metrics["notes"])


def test_a_channel_that_outshouts_the_others_is_told() -> None:
    """One scale for all channels of an activation leaves the small ones no code."""
    net = network()
    net.stem.weight.data[0].mul_(1e8)
    net.body.weight.data[:, 0].mul_(1e-8)
    (told,) = (n for n in quantized(net).metrics["notes"] if "dB" in n)
    assert "body (" in told
    assert "--keep-float body" in told


def test_how_often_two_would_agree_by_chance_is_known() -> None:
    held = quantized(network(norms=True)).metrics["held_out"]
    assert 0 < held["chance"] < held["agreement"] <= 100


def broken(name: str) -> Net:
    net = network(norms=True)
    assert isinstance(net.norm, nn.BatchNorm2d)
    assert net.norm.running_var is not None
    if name == "variance":
        net.norm.running_var[2] = -1.0
    elif name == "eps":
        net.norm.running_var.zero_()
        net.norm.eps = 0.0
    elif name == "weights":
        net.body.weight.data.fill_(3e38)
        net.body.weight.data[::2] = -3e38
    elif name == "bias":
        net.stem.bias.data.fill_(3e38)  # pyright: ignore
        net.norm.weight.data.fill_(1e20)
    return net


@pytest.mark.parametrize(
    ("name", "layer"),
    [("variance", "norm"), ("eps", "norm"), ("weights", "body"), ("bias", "norm")],
)
def test_what_overflows_is_refused_in_one_line_by_its_layer(name: str, layer: str) -> None:
    with pytest.raises(DatafreeError, match=rf"\b{layer}\b") as caught:
        quantized(broken(name))
    assert "\n" not in str(caught.value)


def test_dead_layers_are_quantized(tmp_path: Path) -> None:
    net = network()
    for layer in (net.body, net.head):
        nn.init.zeros_(layer.weight)
    made = quantized(net, output=tmp_path / "run")
    with torch.no_grad():
        torch.testing.assert_close(
            made.student(made.images.images), net(made.images.images), atol=0.02, rtol=0
        )
    text = (tmp_path / "run" / "metrics.json").read_text(encoding="utf-8")
    record = json.loads(text, parse_constant=pytest.fail)
    assert "Infinity" in record["results"]["sqnr_db"].values()


LEARNED: dict[str, Any] = {
    "method": "zeroq", "method_options": {"iterations": 10**6}, "reconstruction": "adaround",
    "reconstruction_options": {"iterations": 10**6}, "bits": "W4A4",
}  # fmt: skip


def test_a_run_without_training_keeps_its_time_limit_too() -> None:
    started = time.monotonic()
    made = quantized(network(norms=True), **LEARNED, protocol="paper", max_time=8)
    assert time.monotonic() - started < 12
    (told,) = (n for n in made.metrics["notes"] if n.startswith("max_time ended early"))
    assert "zeroq images after" in told
    assert "adaround reconstruction after" in told
    assert made.seconds["synthesis"] > 0.3
    assert made.seconds["reconstruction"] > 0.3


def test_nothing_is_told_where_the_limit_was_wide_enough() -> None:
    made = quantized(network(norms=True), max_time=500)
    assert not any("max_time" in note for note in made.metrics.get("notes", ()))


def test_a_limit_below_what_must_be_done_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^max_time of .* is too short: .* give \d+s or more$"):
        quantized(network(norms=True), **LEARNED, max_time=0.2, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
