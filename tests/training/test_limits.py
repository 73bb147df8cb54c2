"""A training that diverges is a failure by phase and loss; one whose time is over is judged."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from datafree.calibrators.mse import MSE
from datafree.config import Scheme
from datafree.errors import DataError
from datafree.graph.fold import fold_batch_norms
from datafree.progress.deadline import Deadline
from datafree.reconstruction.adaround import AdaRound
from datafree.testing.networks import SPEC
from datafree.training import Task, train
from datafree.training.base import Dream
from datafree.training.dfqf import DFQF
from networks import captured

QUICK: dict[str, Any] = {
    "warmup": 3, "iterations": 4, "batch_size": 4, "width": 4, "latent": 3, "holdout": 8,
    "calibration_images": 8, "checks": 2,
}  # fmt: skip


def task(**changes: Any) -> Task:
    graph = captured("Tiny")
    given: dict[str, Any] = {"scheme": Scheme(bits="W4A4"), **changes}
    return Task(graph, fold_batch_norms(graph), SPEC, rule=MSE(), **given)


class Broken(DFQF):
    """A loss becomes something else than a number at one step."""

    value: str
    where: str

    @property
    def name(self) -> str:
        return "broken"

    def generator_terms(
        self, dream: Dream, student: nn.Module | None, memory: Any
    ) -> dict[str, Tensor]:
        terms = super().generator_terms(dream, student, memory)
        wrong = {"odd": dream.images.sum() * float(self.value)}
        return terms | (wrong if self.where == "generator" else {})

    def student_terms(self, logits: Tensor, dream: Dream) -> dict[str, Tensor]:
        terms = super().student_terms(logits, dream)
        return terms | (
            {"odd": logits.sum() * float(self.value)} if self.where == "student" else {}
        )


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("where", ["generator", "student"])
def test_a_loss_that_is_no_number_names_method_phase_and_loss(value: str, where: str) -> None:
    method = Broken(**QUICK, value=value, where=where)
    message = r"^broken (warm-up|fine-tuning): the loss \S+.* is not a number after step \d+: lower"
    with pytest.raises(DataError, match=message):
        train(method, task())


class Lost(DFQF):
    """The losses are fine and the student is not."""

    @property
    def name(self) -> str:
        return "lost"

    def student_terms(self, logits: Tensor, dream: Dream) -> Mapping[str, Tensor]:  # pyright: ignore
        del dream
        return {"fine": logits.nan_to_num().sum() * 0.0 + logits.sum() * 1e-30}


def test_a_student_that_answers_nan_is_no_student(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Lost(**QUICK)
    step = torch.optim.SGD.step

    def spoil(self: torch.optim.SGD, *given: Any) -> Any:
        found = step(self, *given)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.fill_(float("nan"))
        return found

    monkeypatch.setattr(torch.optim.SGD, "step", spoil)
    with pytest.raises(DataError, match=r"the loss .* is not a number after step"):
        train(method, task())


@pytest.mark.parametrize("rounded", [False, True])
def test_a_deadline_is_kept_by_all_phases(*, rounded: bool) -> None:
    many = {**QUICK, "warmup": 10**6, "iterations": 10**6}
    extra: dict[str, Any] = {"reconstructor": AdaRound(iterations=10**6)} if rounded else {}
    options: dict[str, Any] = {"weights": "clip"} if rounded else {}
    until, started = Deadline.within(4.0), time.monotonic()
    found = train(DFQF(**many, **options), task(**extra), deadline=until)
    assert 3.5 < time.monotonic() - started < 7.0
    steps = [phase["steps"] for phase in found.summary.values()]
    assert len(steps) == 2
    assert all(0 < n < 10**5 for n in steps)
    assert isinstance(found.student, fx.GraphModule)


def test_a_deadline_that_has_passed_leaves_one_step_of_each() -> None:
    found = train(DFQF(**QUICK), task(), deadline=Deadline.within(-1.0))
    assert [phase["steps"] for phase in found.summary.values()] == [1, 1]
    assert "best" in found.summary["fine-tuning"]
