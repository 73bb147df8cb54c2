"""Trials: paces are those of the steps, and nothing of a trial stays."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from datafree.reconstruction.brecq import BRECQ
from datafree.runs.trials import Enough, Pace, few_images, shortened, synthesis_seconds
from datafree.synthesis.dsg import DSG
from datafree.synthesis.noise import Noise
from datafree.synthesis.zeroq import ZeroQ
from datafree.tensors import state_digest
from datafree.training.dfqf import DFQF
from networks import SPEC, captured


def test_a_pace_leaves_out_what_is_before_the_first_step() -> None:
    pace = Pace(stop=False)
    with pace("work", 100) as step:
        time.sleep(0.2)
        for _ in range(4):
            step(1)
            time.sleep(0.02)
    each, total = pace.tasks["work"]
    assert total == 100
    assert 0.019 < each < 0.1


def test_a_pace_stops_work_that_would_go_on() -> None:
    pace = Pace(stop=True)
    done = 0
    with pytest.raises(Enough), pace("work", 10**9) as step:
        while done < 10**6:
            done += 1
            step(1)
    assert done < 100
    assert pace.tasks["work"][1] == 10**9


def test_a_trial_leaves_the_teacher_as_it_was() -> None:
    teacher = captured("Tiny")
    before = state_digest(teacher.state_dict())
    assert synthesis_seconds(ZeroQ(iterations=10_000, least_fall=0), teacher, SPEC, 4) > 1
    assert state_digest(teacher.state_dict()) == before
    assert not any(module._forward_hooks for module in teacher.modules())


def test_what_has_no_steps_is_done() -> None:
    torch.manual_seed(0)
    assert 0 < synthesis_seconds(Noise(), captured("Tiny"), SPEC, 4) < 5


def test_a_trial_measures_margins_on_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    prepare = DSG.prepare

    def noted(self: DSG, *given: Any) -> Any:
        seen.append(self.margin_images)
        return prepare(self, *given)

    monkeypatch.setattr(DSG, "prepare", noted)
    method = DSG(iterations=10_000, least_fall=0)
    assert synthesis_seconds(method, captured("Tiny"), SPEC, 4) > 1
    assert seen == [32]
    assert method.margin_images == 1024
    assert DSG(margin_images=8).for_trial().margin_images == 8
    assert ZeroQ().for_trial() == ZeroQ()


def test_methods_are_shortened_in_all_their_phases() -> None:
    assert shortened(BRECQ(), 2).stages()[0].iterations == 2
    # of its second pass a quarter, which is at least one
    assert [stage.iterations for stage in shortened(BRECQ(), 2).stages()] == [2, 1]
    short = shortened(DFQF(warmup=0), 3)
    assert (short.warmup, short.iterations, short.checks) == (0, 3, 1)


def test_images_of_a_trial_are_fewer_where_they_are_large() -> None:
    large = SPEC.model_copy(update={"shape": (3, 448, 448)})
    assert few_images(SPEC) == 64
    assert few_images(large) == 4
