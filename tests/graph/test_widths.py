from __future__ import annotations

from typing import Any

import pytest
from torch import fx

from datafree.config import Scheme
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.graph.widths import activation_widths
from datafree.quant.modules import ActivationQuantizer
from networks import captured


def student(name: str, **scheme: Any) -> fx.GraphModule:
    return insert_quantizers(fold_batch_norms(captured(name)), Scheme(**scheme))


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ({"bits": "W8A4"}, [{8}, {4}, {4}]),
        ({"bits": "W8A4", "policy": "brecq"}, [set(), {8}, {8}]),
        ({"bits": "W8A32"}, [set(), set(), set()]),
        ({"bits": "W8A5", "placement": "after_activation"}, [set(), {5}, {5}]),
    ],
)
def test_by_hand(scheme: dict[str, Any], expected: list[set[int]]) -> None:
    assert list(activation_widths(student("Tiny", **scheme)).items()) == list(
        zip(["conv1", "conv2", "linear"], expected, strict=True)
    )


def test_all_calls_of_a_layer_count_and_disabled_quantizers_do_not() -> None:
    graph = student("InPlaceResidual", bits="W8A4")
    first = next(m for m in graph.modules() if isinstance(m, ActivationQuantizer))
    assert activation_widths(graph) == {"conv1": {8}, "conv2": {4}, "linear": {4}}
    first.enabled = False
    assert activation_widths(graph)["conv1"] == set()
