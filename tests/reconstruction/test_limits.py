"""Learned rounding that diverges is a failure by name; one whose time is over keeps what it has."""

from __future__ import annotations

import time

import pytest
import torch

from datafree.errors import DataError
from datafree.progress.deadline import Deadline
from datafree.quant.modules import QUANTIZED
from datafree.reconstruction.adaround import AdaRound
from datafree.reconstruction.base import Reconstructor
from datafree.reconstruction.genie_m import GenieM
from datafree.reconstruction.qdrop import QDrop
from datafree.testing.networks import Tiny
from datafree.testing.reconstruction import content, prepared
from datafree.testing.watching import Counter


@pytest.mark.parametrize("method", [AdaRound, GenieM, QDrop])
def test_a_loss_that_is_no_number_names_the_method_and_the_layers(
    method: type[Reconstructor],
) -> None:
    folded, student, x = prepared(Tiny)
    broken = next(m for m in folded.modules() if isinstance(m, torch.nn.Linear))
    broken.weight.data[0, 0] = float("nan")
    name = method.__name__.lower().replace("geniem", "genie_m")
    with pytest.raises(DataError, match=rf"^{name} reconstruction: the loss of \S+ is not a n"):
        method(iterations=3).reconstruct(folded, student, x)


def test_a_deadline_is_shared_out_and_roundings_are_decided_all_the_same() -> None:
    folded, student, x = prepared(Tiny)
    counter, started = Counter(), time.monotonic()
    method = AdaRound(iterations=10**6, lr_factor=50)
    outcomes = method.reconstruct(
        folded, student, x, progress=counter, deadline=Deadline.within(3.0)
    )
    assert time.monotonic() - started < 4.5
    assert 20 < counter.done < 10**5
    assert sum(o.undecided for o in outcomes) < 0.5 * sum(o.rounded for o in outcomes)
    assert sum(o.after for o in outcomes) < sum(o.before for o in outcomes)
    for layer in student.modules():
        if isinstance(layer, QUANTIZED):
            torch.testing.assert_close(layer.weight_quantizer(layer.weight), layer.weight)


def test_without_time_weights_are_rounded_to_the_nearest() -> None:
    folded, student, x = prepared(Tiny)
    nearest = {
        name: layer.weight_quantizer(layer.weight)
        for name, layer in student.named_modules()
        if isinstance(layer, QUANTIZED)
    }
    counter = Counter()
    AdaRound(iterations=9).reconstruct(
        folded, student, x, progress=counter, deadline=Deadline.within(-1.0)
    )
    assert counter.done == 0
    for name, weight in nearest.items():
        torch.testing.assert_close(student.get_submodule(name).weight, weight)


def test_a_deadline_that_is_far_away_changes_no_bit() -> None:
    found: list[dict[str, bytes]] = []
    for until in (Deadline(), Deadline.within(1e9)):
        folded, student, x = prepared(Tiny)
        QDrop(iterations=8).reconstruct(folded, student, x, deadline=until)
        found.append(content(student))
    assert found[0] == found[1]
