"""One phase of training: steps, checks, time budget, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from datafree.errors import DataError
from datafree.evaluate import Comparison
from datafree.progress import Progress, note
from datafree.progress.deadline import NEVER, Deadline
from datafree.progress.meter import Meter
from datafree.tensors.memory import Portion, out_of_memory
from datafree.training._state import Saved, State
from datafree.training._team import Team

_SHOWN_EVERY = 1.0  # seconds
_SHORTEST = 1e-3

Advance = Callable[[int, float], Mapping[str, Tensor]]
"""One step, the how manieth and at which fraction of the phase; its losses by name, detached."""


@dataclass(frozen=True)
class Phase:
    """A part of training.

    Attributes:
        name: for people.
        iterations: steps.
        advance: takes one.
        student: network that is judged, or None.
        judge: says how near the student is to its teacher on images it does not learn from.
        checks: how many times it is asked, evenly spread, the last time at the end; before the
            first step, too, where `judged_from` is 0.
        judged_from: fraction of the phase before which it is not asked.
        deadline: when the phase ends early; fractions then follow the time if it runs ahead of the
            steps, so that rates fall as they would have.
        rates: options to lower where the losses diverge.
        seconds: it may take in all, those of earlier calls included; follows from the deadline when
            the phase begins. None has no limit.
        portion: images per step.
        lessen: `advance` with other images per step.
    """

    name: str
    iterations: int
    advance: Advance
    student: nn.Module | None = None
    judge: Callable[[nn.Module], Comparison] | None = None
    checks: int = 20
    judged_from: float = 0.0
    deadline: Deadline = NEVER
    rates: tuple[str, ...] = ("generator_lr", "student_lr")
    seconds: float | None = None
    portion: Portion | None = None
    lessen: Callable[[int], Advance] | None = None


def run_phase(phase: Phase, state: State, saved: Saved, progress: Progress, team: Team) -> None:
    """Take the steps that are left; `state` holds the result.

    Where memory runs out the phase goes back to what was kept last, its checkpoint or else its
    beginning, and on with half the images per step.

    Raises:
        DataError: a loss, or what the student answers, is not a number any more.
        NoRoomError: not even two images per step fit.
    """
    phase = _begun(phase, state, saved, team)
    before, started, shown = state.seconds, time.monotonic(), 0.0
    losses: Mapping[str, Tensor] = {}
    with progress(phase.name, phase.iterations) as step:
        step(state.step)
        meter = Meter(step, phase.iterations - state.step)
        if not state.step and not phase.judged_from:
            # What training starts from is a candidate too: it may be the best.
            _check(phase, state, losses, team)
        while state.step < phase.iterations and not _over(phase, state):
            checked = _checks(phase, state)
            found, told = _advanced(phase, state, team)
            if told is not None:
                phase = _lessened(phase, state, saved, told)
                meter.expect(phase.iterations - state.step)
                continue
            losses = found
            state.step += 1
            meter(1)
            state.seconds = before + time.monotonic() - started
            if phase.seconds is not None:
                state.seconds = team.first_says(state.seconds)
            last = state.step == phase.iterations or _over(phase, state)
            if time.monotonic() - shown > _SHOWN_EVERY:
                note(step, _told(phase, state, losses))
                shown = time.monotonic()
            if _checks(phase, state) > checked or last:
                _check(phase, state, losses, team)
            if team.rank == 0:
                saved.save_if_due(state)
    if team.rank == 0:
        saved.save(state)
    state.share(team)


def _begun(phase: Phase, state: State, saved: Saved, team: Team) -> Phase:
    """`phase` with its time, and the images per step that `state` was trained with so far."""
    saved.load(state)
    if team.size == 1:
        saved.begin(state)
    if phase.deadline.limited:
        left = team.first_says(max(phase.deadline.left, _SHORTEST))
        phase = replace(phase, seconds=state.seconds + left)
    if phase.portion is None or phase.lessen is None or state.batch in (0, phase.portion.size):
        return phase
    phase.portion.size = state.batch
    return replace(phase, advance=phase.lessen(state.batch))


def _lessened(phase: Phase, state: State, saved: Saved, told: str) -> Phase:
    """`phase` with half the images per step, and `state` as it was kept last."""
    assert phase.portion is not None and phase.lessen is not None  # noqa: S101 - given together
    phase.portion.halve(told)
    spent = state.seconds
    saved.back(state)
    state.seconds, state.batch = spent, phase.portion.size
    return replace(phase, advance=phase.lessen(state.batch))


def _advanced(phase: Phase, state: State, team: Team) -> tuple[Mapping[str, Tensor], str | None]:
    """The losses of one step, and of what memory ran out in it, if it did."""
    try:
        return phase.advance(state.step, _fraction(phase, state)), None
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        raise _diverged(phase, state, "of correlations") from None
    except (RuntimeError, MemoryError) as error:
        # Other processes wait for this one, and would not take a smaller batch.
        if phase.portion is None or team.size > 1 or not out_of_memory(error):
            raise
        return {}, str(error)


def _diverged(phase: Phase, state: State, loss: str) -> DataError:
    named = ", ".join(f"{name}=…" for name in phase.rates)
    return DataError(
        f"{phase.name}: the loss {loss} is not a number after step {state.step}: lower the"
        f" learning rates (--training-option {named})"
    )


def _over(phase: Phase, state: State) -> bool:
    return phase.seconds is not None and state.seconds >= phase.seconds


def _fraction(phase: Phase, state: State) -> float:
    steps = state.step / phase.iterations
    return steps if phase.seconds is None else max(steps, state.seconds / phase.seconds)


def _checks(phase: Phase, state: State) -> int:
    """Checks that are due by now; the small number is for fractions that are not exact."""
    return int(_fraction(phase, state) * phase.checks + 1e-9)


def _check(phase: Phase, state: State, losses: Mapping[str, Tensor], team: Team) -> None:
    measured = {name: float(value) for name, value in losses.items()}
    if wrong := [name for name, value in measured.items() if not math.isfinite(value)]:
        raise _diverged(phase, state, wrong[0])
    due = _fraction(phase, state) >= phase.judged_from and team.rank == 0
    if phase.judge is not None and phase.student is not None and due:
        found = phase.judge(phase.student)
        if not all(math.isfinite(value or 0.0) for value in (found.kl, found.error)):
            raise _diverged(phase, state, "of the student's answers")
        state.consider(found.likeness, found.images, phase.student)
        told = {"agreement": found.likeness, "kl": found.kl, "error": found.error}
        measured |= {name: value for name, value in told.items() if value is not None}
    if measured:
        state.history.append({"step": state.step, **measured})


def _told(phase: Phase, state: State, losses: Mapping[str, Tensor]) -> str:
    parts = [f"{name} {float(value):.3g}" for name, value in losses.items()]
    if state.agreement is not None:
        parts.append(f"agreement {state.agreement:.1f} %")
    if phase.seconds is not None:
        parts.append(f"{max(0.0, phase.seconds - state.seconds):.0f} s of budget left")
    return ", ".join(parts)
