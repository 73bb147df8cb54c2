"""Networks that were never trained are known by their norms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree.errors import ModelError
from datafree.graph.capture import capture
from datafree.graph.untrained import require_statistics, untrained
from networks import NETWORKS, SPEC, captured, images, randomized


def fresh(name: str) -> Any:
    return capture(NETWORKS[name]().eval(), SPEC)


def test_networks_that_saw_data_have_no_sign() -> None:
    for name in ("Tiny", "Branched", "Dense", "SamePadding"):
        assert untrained(captured(name)) is None
        require_statistics(captured(name), "zeroq", "noise")


@pytest.mark.parametrize(("name", "count"), [("Tiny", 2), ("Dense", 3), ("SamePadding", 2)])
def test_of_a_network_as_created_all_batch_norms_are_counted(name: str, count: int) -> None:
    told = untrained(fresh(name))
    assert told is not None
    assert told.startswith(f"none of the {count} batch norms ever saw data (mean 0, variance 1")
    assert "load the trained weights first (weights_file, or load_state_dict)" in told
    with pytest.raises(
        ModelError, match=rf"zeroq uses .* none of the {count} .*; noise needs none"
    ):
        require_statistics(fresh(name), "zeroq", "noise")


def test_batch_norms_that_were_left_out_are_named() -> None:
    model = randomized(NETWORKS["Tiny"](), images(8))
    norm: Any = model.get_submodule("bn2")
    norm.reset_running_stats()
    graph = capture(model, SPEC)
    assert untrained(graph) == (
        "1 of 2 batch norms never saw data (mean 0, variance 1): bn2; were all of the trained"
        " weights loaded?"
    )
    require_statistics(graph, "zeroq", "noise")


def test_weights_alone_do_not_make_a_network_trained() -> None:
    """Parameters that were loaded without buffers leave the statistics as they were."""
    model, trained = NETWORKS["Tiny"](), randomized(NETWORKS["Tiny"](), images(8))
    model.load_state_dict(dict(trained.named_parameters()), strict=False)
    assert untrained(capture(model.eval(), SPEC)) is not None


def test_one_batch_is_enough() -> None:
    model = NETWORKS["Tiny"]()
    with torch.no_grad():
        model.train()(images(2))
    assert untrained(capture(model.eval(), SPEC)) is None


class Attention(nn.Module):
    """Norms without statistics."""

    def __init__(self, affine: bool = True) -> None:
        super().__init__()
        self.patch, self.group = nn.Conv2d(3, 8, 4, 4), nn.GroupNorm(2, 8, affine=affine)
        self.norm, self.head = nn.LayerNorm(8, elementwise_affine=affine), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.group(self.patch(x))).flatten(2).transpose(1, 2)
        return self.head(self.norm(x).mean(1))


def test_norms_without_statistics_show_it_by_slope_and_offset() -> None:
    model = Attention().eval()
    told = untrained(capture(model, SPEC))
    assert told is not None
    assert told.startswith("all 2 norms scale by 1 and shift by 0, as they were created")
    require_statistics(capture(model, SPEC), "zeroq", "noise")  # there are none to be wrong
    for weight in (model.norm.bias, model.group.weight):
        with torch.no_grad():
            before = weight.clone()
            weight[3] += 0.01
            assert untrained(capture(model, SPEC)) is None
            weight.copy_(before)


def test_where_there_is_no_sign_nothing_is_said() -> None:
    assert untrained(capture(Attention(affine=False).eval(), SPEC)) is None
    assert untrained(fresh("NoNorm")) is None
