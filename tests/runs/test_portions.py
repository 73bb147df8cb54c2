"""Images that pass together in a run: what is asked for, what fits, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import datafree
from datafree.config import RunConfig
from datafree.errors import MemoryWarning
from datafree.graph.footprint import footprint
from datafree.images import batch_size, blank
from datafree.runs import portions
from datafree.runs.portions import passing
from datafree.tensors import state_digest
from datafree.testing.watching import ShortOfMemory
from networks import SPEC, build, captured

CPU = torch.device("cpu")


def free(count: int | None) -> Callable[[torch.device], int | None]:
    """A machine with so many bytes left."""

    def told(device: torch.device) -> int | None:
        del device
        return count

    return told


def student(network: nn.Module, **options: Any) -> datafree.Result:
    """Calibrated by a rule that averages over batches, so that their size shows."""
    chosen: dict[str, Any] = {
        "images": 16, "method": "zeroq", "method_options": {"iterations": 2}, **options
    }  # fmt: skip
    return datafree.quantize(
        network, input_shape=SPEC.shape, mean=SPEC.mean, std=SPEC.std, holdout=16,
        isolate=False, calibrator="ema",
        **chosen,
    )  # fmt: skip


@pytest.mark.integration
def test_a_run_that_memory_ran_out_in_is_that_of_the_smaller_batch() -> None:
    network = build("Tiny")
    with pytest.warns(MemoryWarning) as told, ShortOfMemory(4):
        short = student(network, images_per_batch=16)
    lines = [str(one.message) for one in told]
    assert any(line.startswith("calibration: 16 at a time did not fit") for line in lines)
    assert any(line.startswith("zeroq images: 16 at a time did not fit") for line in lines)
    smaller = student(network, images_per_batch=4)
    assert short.metrics["batches"] == {"synthesis": 32, "calibration": 4, "evaluation": 4}
    assert smaller.metrics["batches"] == short.metrics["batches"]
    torch.testing.assert_close(short.images.images, smaller.images.images, rtol=1e-3, atol=1e-3)
    given: dict[str, Any] = {"images": short.images, "method_options": {}}
    whole = student(network, images_per_batch=16, **given)
    again = student(network, images_per_batch=4, **given)
    assert state_digest(short.student.state_dict()) == state_digest(again.student.state_dict())
    assert state_digest(whole.student.state_dict()) != state_digest(again.student.state_dict())


def test_what_was_asked_for_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portions, "free_bytes", free(1000))
    config = RunConfig(model="Tiny", images_per_batch=77)
    assert passing("evaluation", captured("Tiny"), SPEC, config).size == 77


def test_free_memory_decides_where_nothing_was(monkeypatch: pytest.MonkeyPatch) -> None:
    network, config = captured("Tiny"), RunConfig(model="Tiny")
    each = footprint(network, blank(SPEC, CPU)).peak
    monkeypatch.setattr(portions, "free_bytes", free(3 * 20 * each))
    with pytest.warns(MemoryWarning, match="evaluation: 16 at a time instead of 256"):
        assert passing("evaluation", network, SPEC, config).size == 16
    for enough in (None, 10**12):
        monkeypatch.setattr(portions, "free_bytes", free(enough))
        assert passing("evaluation", network, SPEC, config).size == batch_size(SPEC)
