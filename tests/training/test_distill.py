"""Distillation into another architecture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from datafree.calibrators.mse import MSE
from datafree.config import InputSpec, Scheme
from datafree.errors import ConfigError
from datafree.generators import save_generator
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.quant.modules import QUANTIZED
from datafree.training import Task, train
from datafree.training.dfqf import DFQF, forgotten
from datafree.training.distill import Distill
from networks import SPEC, captured, images

pytestmark = pytest.mark.integration

METHOD = Distill(
    warmup=20, iterations=4, batch_size=16, calibration_images=16, holdout=32, checks=4, latent=10
)


def task(scheme: Scheme | None) -> Task:
    graph = captured("Tiny")
    other = forgotten(captured("Functional"), 0)
    return Task(graph, fold_batch_norms(graph), SPEC, scheme, MSE(), companion=other)


def test_a_float_student_of_another_architecture_learns() -> None:
    given = task(None)
    trained = train(METHOD, given)
    assert given.companion is not None
    assert set(trained.student.state_dict()) == set(given.companion.state_dict())
    assert not any(isinstance(m, QUANTIZED) for m in trained.student.modules())
    told = trained.summary["distillation"]
    assert told["steps"] == 20
    # Judged in the second half, when the generator is worth asking.
    judged = [check["step"] for check in told["history"] if "agreement" in check]
    assert judged == [10, 15, 20]
    assert told["best"] in told["history"]


def test_with_bits_the_distilled_student_is_quantized() -> None:
    trained = train(METHOD, task(Scheme(bits="W4A4")))
    assert any(isinstance(m, QUANTIZED) for m in trained.student.modules())
    assert set(trained.summary) == {"distillation", "fine-tuning"}


def test_the_best_float_student_is_the_one_that_is_kept() -> None:
    trained = train(METHOD, task(None))
    x = images(16, 3)
    assert trained.student(x).shape == trained.last(x).shape == (16, 5)
    assert not trained.student.training


def test_networks_without_batch_norms_are_enough() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(16, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x.flatten(1)).relu())

    spec = InputSpec(shape=(1, 4, 4), mean=(0.0,), std=(1.0,), classes=3)
    graph, other = capture(Bare().eval(), spec), capture(Bare().eval(), spec)
    given = Task(graph, graph, spec, None, MSE(), companion=other)
    trained = train(METHOD, given)
    assert "statistics" not in trained.summary["distillation"]["history"][0]
    assert trained.student(torch.randn(2, 1, 4, 4)).shape == (2, 3)


def test_a_float_student_needs_another_network() -> None:
    with pytest.raises(ConfigError, match="needs bits"):
        train(DFQF(), replace(task(None), companion=None))


def test_a_time_budget_is_spent_on_the_phases_that_there_are(tmp_path: Path) -> None:
    method = METHOD.model_copy(update={"warmup": 10**6, "iterations": 10**6})
    alone = train(method, task(None), max_seconds=1.0).summary
    assert 0.9 < alone["distillation"]["seconds"] < 2.0
    warm = train(METHOD, task(None)).warm
    assert warm is not None
    save_generator(warm, tmp_path / "g.safetensors")
    given = replace(task(Scheme(bits="W4A4")), generator=tmp_path / "g.safetensors")
    both = train(method, given, max_seconds=2.0).summary
    # The second has what the first and calibrating leave.
    assert 0.9 < both["distillation"]["seconds"] < 2.0
    assert 0.2 < both["fine-tuning"]["seconds"] < 1.2
