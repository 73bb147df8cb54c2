"""The quantized student that fine-tuning starts from."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from datafree.calibrators.base import calibrate
from datafree.corrections.analytic_bias import correct_biases_analytically
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.progress import Progress
from datafree.progress.deadline import NEVER, Deadline
from datafree.tensors import fast_copy, load_tensors, on_device, save_tensors
from datafree.tensors.memory import Portion
from datafree.training._task import Task
from datafree.training._team import Team
from datafree.training.base import Trainer

_RANGES_CHUNK = 128  # some rules average over batches, ten of 128 in DFQF


@dataclass(frozen=True)
class Start:
    """A student before its first step.

    Attributes:
        student: calibrated; its rounding learned and its biases corrected, where that was asked.
        rounding: what learning the rounding did to every unit, JSON values.
        not_corrected: layers whose biases could not be corrected.
    """

    student: fx.GraphModule
    rounding: tuple[dict[str, Any], ...] = ()
    not_corrected: tuple[str, ...] = ()


@dataclass(frozen=True)
class Keeper:
    """Where learned rounding is kept: learning it takes minutes.

    Attributes:
        folder: None keeps nothing.
        request: all that a training depends on.
        progress: shown while the rounding is learned.
        team: its first process writes.
        deadline: when learning it ends.
    """

    folder: Path | None
    request: dict[str, object]
    progress: Progress
    team: Team
    deadline: Deadline = NEVER


def start_from(
    trainer: Trainer,
    task: Task,
    float_student: fx.GraphModule | None,
    images: Tensor,
    keeper: Keeper,
) -> Start:
    """The student on its grids, with the ranges training starts from.

    Args:
        trainer: the method.
        task: what is to be trained; it has a scheme.
        float_student: network it is made from, with its batch norms; None is the teacher.
        images: (N, C, H, W) that ranges are set and rounding is learned on.
        keeper: of learned rounding.
    """
    assert task.scheme is not None  # noqa: S101 - asked by the caller
    if trainer.folds:
        base = task.folded if float_student is None else fold_batch_norms(float_student)
    else:
        base = task.teacher if float_student is None else float_student
    student = fast_copy(insert_quantizers(base, task.scheme, task.spec))
    trainer.first_ranges(student)
    observe = trainer.observe if task.reconstructor is None else "float"

    def ranges(size: int) -> None:
        batches = (on_device(chunk, task.device) for chunk in images.split(size))
        calibrate(student, batches, trainer.calibrator(task.rule), observe=observe)

    Portion("calibration", _RANGES_CHUNK).fit(ranges)
    rounding: tuple[dict[str, Any], ...] = ()
    if task.reconstructor is not None:
        unfolded = task.teacher if float_student is None else float_student
        rounding = _rounded(base, student, task, unfolded, images, keeper)
    if task.statistics is None or float_student is not None:
        return Start(student, rounding)
    found = correct_biases_analytically(base, student, task.statistics, task.spec)
    return Start(student, rounding, found.skipped)


def _rounded(
    base: fx.GraphModule,
    student: fx.GraphModule,
    task: Task,
    unfolded: fx.GraphModule,
    images: Tensor,
    keeper: Keeper,
) -> tuple[dict[str, Any], ...]:
    """Learn the rounding of `student` in place, or take up what an earlier call learned."""
    folder = keeper.folder if keeper.team.rank == 0 else None
    path = None if folder is None else folder / "rounding.safetensors"
    found = None if path is None else load_tensors(path, keeper.request)
    if found is not None:
        state, outcomes = found[0], json.loads(found[1]["outcomes"])
    else:
        learned = copy.deepcopy(student)
        unfinished = None if folder is None else folder / "rounding_unfinished.safetensors"
        assert task.reconstructor is not None  # noqa: S101 - asked by the caller
        units = task.reconstructor.reconstruct(
            base, learned, images, unfolded=unfolded, seed=task.seed, progress=keeper.progress,
            checkpoint=unfinished, deadline=keeper.deadline,
        )  # fmt: skip
        outcomes = [asdict(outcome) for outcome in units]
        state = learned.state_dict()
        if path is not None:
            save_tensors(path, state, keeper.request, outcomes=json.dumps(outcomes))
    # Learned here or read, the student is the same to the memory layout of its weights.
    student.load_state_dict(state)
    keeper.team.share(list(student.state_dict().values()))
    return tuple(outcomes)
