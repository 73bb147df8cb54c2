"""Attention is found however it is written, and shown as torch computes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.graph.attention import attending, attention_weights, find_attention
from datafree.testing.networks import Attending, images, ready
from networks import captured


def by_hand(model: Attending, x: Tensor) -> tuple[Tensor, Tensor]:
    """Attention's weights (B, 2, 17, 17) and outputs (B, 2, 17, 4) of `model`."""
    patches = model.patches(x).flatten(2).transpose(1, 2)
    tokens = torch.cat([model.token.expand(len(x), -1, -1), patches], 1)
    parts = model.qkv(model.norm(tokens)).chunk(3, -1)
    query, key, value = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in parts)
    weights = torch.exp(query @ key.mT / 2)
    weights = weights / weights.sum(-1, keepdim=True)
    return weights, weights @ value


@pytest.mark.parametrize("fused", [True, False])
def test_what_is_shown_is_what_the_network_computes(fused: bool) -> None:
    torch.manual_seed(0)
    model = Attending(fused=fused).eval()
    graph, x = ready(model), images(3)
    assert len(find_attention(graph)) == 1
    expected = by_hand(model, x)
    for what, wanted in (("weights", expected[0]), ("outputs", expected[1])):
        logits, (shown,) = attending(graph, what)(x)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(shown, wanted, rtol=1e-4, atol=1e-5)
        assert torch.equal(logits, graph(x))


def test_parameters_are_shared_and_the_graph_is_left_alone() -> None:
    graph = ready(Attending())
    code = graph.code
    watched = attending(graph, "outputs")
    assert graph.code == code
    assert watched.get_parameter("linear.weight") is graph.get_parameter("linear.weight")


class PooledBySoftmax(nn.Module):
    """One query for all positions: the product returns a vector for each image, no tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.values = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(3, 8, 2, 2)
        self.query, self.linear = nn.Parameter(torch.randn(8)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.matmul(self.keys(x).flatten(2).mT, self.query)
        values = self.values(x).flatten(2)
        pooled = torch.matmul(scores.softmax(-1).unsqueeze(1), values.mT)
        return self.linear(torch.matmul(scores.softmax(-1), values[0].mT) + pooled.squeeze(1))


def test_a_pooling_by_softmax_shows_no_tokens() -> None:
    graph = ready(PooledBySoftmax())
    _, shown = attending(graph, "outputs")(images(3))
    assert [values.ndim for values in shown] == [3] * len(shown)


class Gated(nn.Module):
    """A softmax that weighs, but not by a product of queries and keys; and a plain product."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.score, self.linear = (
            nn.Conv2d(3, 4, 3), nn.Conv2d(3, 1, 3), nn.Linear(4, 5)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.score(x).flatten(2).softmax(-1) @ self.conv(x).flatten(2).mT
        return self.linear(pooled[:, 0])


def test_networks_without_attention() -> None:
    assert find_attention(captured("Tiny")) == []
    assert find_attention(ready(Gated())) == []


@pytest.mark.parametrize("case", ["plain", "mask", "hidden", "causal", "scale", "groups"])
def test_weights_are_those_of_torch(case: str) -> None:
    """Of an identity in place of values, attention returns its weights."""
    random = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 4, 6, 8, generator=random) for _ in range(2))
    value = torch.eye(6).expand(2, 4, 6, 6)
    cases: dict[str, dict[str, Any]] = {
        "plain": {},
        "mask": {"attn_mask": torch.randn(6, 6, generator=random)},
        "hidden": {"attn_mask": torch.rand(2, 1, 6, 6, generator=random) + torch.eye(6) > 0.5},
        "causal": {"is_causal": True},
        "scale": {"scale": 0.7},
        "groups": {"enable_gqa": True},
    }
    options = cases[case]
    if case == "groups":
        key, value = key[:, :2], value[:, :2]
    expected = F.scaled_dot_product_attention(query, key, value, **options)
    torch.testing.assert_close(attention_weights(query, key, value, **options), expected)
