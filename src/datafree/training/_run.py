"""The way of one training: warm-up, ranges, generator and student together."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.optim import SGD, Adam, Optimizer

from datafree.errors import ConfigError
from datafree.evaluate import Comparison, compare
from datafree.generators import Generator
from datafree.graph.taps import tap_batch_norms
from datafree.progress import Progress, silent
from datafree.progress.deadline import NEVER, Deadline
from datafree.quant.preparation import finish_training, prepare_training
from datafree.quant.trained import PACT
from datafree.tensors import (
    fast_copy,
    kept_memory,
    load_tensors,
    on_device,
    random_numbers,
    save_tensors,
    state_digest,
)
from datafree.tensors.memory import Portion
from datafree.training._game import Game, Move
from datafree.training._loop import Phase, run_phase
from datafree.training._rates import learn_as_before_folding
from datafree.training._sources import Dreamer, given_generator, source_of
from datafree.training._start import Keeper, start_from
from datafree.training._state import Saved, State
from datafree.training._task import Task, Trained
from datafree.training._team import Team
from datafree.training.base import Trainer

_CHUNK = 64
_FEWEST = 2  # images that a student can learn from
_ROUNDING_SHARE = 0.4  # of the time that is left, where rounding is learned first
_REMEDY = (
    "choose a narrower generator (--training-option width=32), leave the training out, or use a"
    " machine that has more"
)
_JUDGED_FROM = 0.5  # of a phase whose generator starts from nothing


def train(  # noqa: PLR0913 - all but two have defaults
    trainer: Trainer,
    task: Task,
    *,
    progress: Progress = silent,
    checkpoint: Path | None = None,
    max_seconds: float | None = None,
    deadline: Deadline = NEVER,
    team: Team | None = None,
) -> Trained:
    """Fine-tune a student of ``task.teacher`` as `trainer` says.

    Args:
        trainer: the method: hyper-parameters and losses.
        task: networks, input, scheme, seed.
        progress: shown while it runs, in steps, with losses.
        checkpoint: folder that keeps generator, student, optimizers and random numbers every few
            minutes, so that a call with the same arguments goes on there and ends with the same
            student as one that was never interrupted.
        max_seconds: time from now on: both phases end early and cleanly. The same seed then gives
            the same student only where the time does.
        deadline: likewise, a point in time; the earlier of the two counts.
        team: the processes that train together; None is this one, in float32.

    Raises:
        ModelError: the method cannot work on this network.
        ConfigError: there are no bits, or too few images for every process.
        DataError: the losses diverged.
    """
    team = team or Team()
    deadline = Deadline(min(deadline.at, Deadline.within(max_seconds).at))
    _check(trainer, task, team)
    teacher = fast_copy(task.teacher).requires_grad_(False).eval()
    given = None if task.generator is None else given_generator(trainer, task)
    source = source_of(trainer, task, given)
    memory = trainer.remember(teacher, task.spec, random_numbers(task.seed, "memory"))
    with ExitStack() as stack:
        taps = stack.enter_context(tap_batch_norms(teacher))
        game = Game(teacher, source, memory, taps, team, task.spec.outputs)
        warms = not trainer.from_images and (given is None or task.companion is not None)
        tunes = task.scheme is not None
        steps = trainer.warmup * warms + trainer.iterations * tunes
        run = _Run(
            trainer,
            task,
            game,
            progress,
            checkpoint,
            deadline,
            _request(trainer, task, given),
        )
        learned = run.warm_up(trainer.warmup / max(steps, 1)) if warms else None
        generator = source.generator if isinstance(source, Dreamer) else None
        warm = copy.deepcopy(generator) if given is None else None
        if task.scheme is None:
            assert learned is not None  # noqa: S101 - `_check` refuses a task without
            best, last = learned
        else:
            best, last = run.fine_tune(None if learned is None else learned[0])
    return Trained(best, last, generator, warm, run.summary, run.not_corrected, run.rounding)


def _check(trainer: Trainer, task: Task, team: Team) -> None:
    """Refuse what cannot work before anything long begins."""
    trainer.check(task.teacher)
    if task.reconstructor is not None:
        trainer.check_rounding()
    if trainer.from_images:
        _check_images(trainer, task)
    if task.scheme is None and task.companion is None:
        raise ConfigError(f"{trainer.name} needs bits for its student")
    if trainer.batch_size < 2 * team.size:
        raise ConfigError(
            f"batches of {trainer.batch_size} leave {team.size} processes less than two images"
            " each: raise batch_size"
        )


def _check_images(trainer: Trainer, task: Task) -> None:
    if task.images is None or len(task.images) < _FEWEST:
        count = 0 if task.images is None else len(task.images)
        raise ConfigError(
            f"{trainer.name} learns from a fixed set of images, and there are {count}: give two at"
            " least (images)"
        )
    if task.generator is not None:
        raise ConfigError(
            f"{trainer.name} learns from a fixed set of images, not from a generator: leave"
            f" {task.generator} out, or make the images with it (images)"
        )


@dataclass
class _Run:
    trainer: Trainer
    task: Task
    game: Game
    progress: Progress
    folder: Path | None
    deadline: Deadline
    request: dict[str, object]
    summary: dict[str, Any] = field(default_factory=dict)
    not_corrected: tuple[str, ...] = ()
    rounding: tuple[dict[str, Any], ...] = ()

    def warm_up(self, share: float) -> tuple[fx.GraphModule, fx.GraphModule] | None:
        """Let the generator learn, alone or with a float network; that one, best and last.

        `share` is that of all steps, and of the time where there is a limit.
        """
        trainer, game = self.trainer, self.game
        learner = trainer.learner(self.task)
        kept = self.task.companion is not None
        modules: dict[str, nn.Module] = dict(game.source.modules)
        optimizers: dict[str, Optimizer] = {"generator": self._generator_steps()}
        if learner is not None:
            modules["student"] = learner.requires_grad_().train()
            optimizers["student"] = trainer.learner_optimizer(learner)
        state = State(modules, optimizers)
        name = "distillation" if kept else "warm-up"
        judge = self._judge("distilled") if kept else None
        advance = Move(trainer, game, learner, optimizers, (self.task.seed, name), tuning=False)
        if self.task.reconstructor is not None:
            share *= 1 - _ROUNDING_SHARE
        phase = Phase(
            f"{trainer.name} {name}", trainer.warmup, advance, learner, judge, trainer.checks,
            _JUDGED_FROM, self.deadline.share(share), portion=self._portion(),
            lessen=lambda size: self._lessened(advance, size),
        )  # fmt: skip
        self._run(phase, state, name)
        return _best_and_last(learner, state) if kept and learner is not None else None

    def fine_tune(self, float_student: fx.GraphModule | None) -> tuple[fx.GraphModule, ...]:
        """Quantize, and let generator and student learn together; the student, best and last."""
        trainer, task, game = self.trainer, self.task, self.game
        student = self._student(float_student)
        handles = prepare_training(student, trainer.weights, trainer.activations)
        student.requires_grad_().train(trainer.batch_norm == "train")
        if trainer.batch_norm == "scaled":
            learn_as_before_folding(student, float_student or task.teacher)
        steps = {id(parameter) for parameter in handles.steps}
        others = [p for p in student.parameters() if id(p) not in steps]
        optimizers: dict[str, Optimizer] = {"student": self._student_steps(others)}
        modules: dict[str, nn.Module] = {"student": student, **game.source.modules}
        if handles.steps:
            optimizers["steps"] = self._range_steps(student, handles.steps)
        if trainer.update_generator:
            optimizers["generator"] = self._generator_steps()
        state = State(modules, optimizers)
        advance = Move(trainer, game, student, optimizers, (task.seed, "tuning"), tuning=True)
        phase = Phase(
            f"{trainer.name} fine-tuning", trainer.iterations, advance, student,
            self._judge("tuned"), trainer.checks, 0.0, self.deadline, trainer.rates,
            portion=self._portion(), lessen=lambda size: self._lessened(advance, size),
        )  # fmt: skip
        self._run(phase, state, "fine-tuning")
        best, last = _best_and_last(student, state)
        # Two networks, and plain quantizers for each.
        finish_training(last, copy.deepcopy(handles))
        finish_training(best, handles)
        return best, last

    def _student(self, float_student: fx.GraphModule | None) -> fx.GraphModule:
        """The quantized student before its first step."""
        images = self.task.images
        if images is None:
            random = random_numbers(self.task.seed, "ranges")
            images = self.game.source.kept(self.trainer.calibration_images, random)
        limit = self.deadline.share(_ROUNDING_SHARE)
        keeper = Keeper(self.folder, self.request, self.progress, self.game.team, limit)
        start = start_from(self.trainer, self.task, float_student, images, keeper)
        self.not_corrected = start.not_corrected
        self.rounding = start.rounding
        return start.student

    def _judge(self, name: str) -> Callable[[nn.Module], Comparison]:
        """Says how near a student is to the teacher, on images kept from the first question on."""
        kept: list[tuple[Tensor, Tensor]] = []

        def judge(student: nn.Module) -> Comparison:
            if not kept:
                kept.append(self._held_out(name))
            images, expected = kept[0]
            mode = student.training
            student.eval()
            try:
                actual = self._answers(student, images)
            finally:
                student.train(mode)
            return compare(lambda _: expected, lambda _: actual, [images], self.task.spec.outputs)

        return judge

    def _held_out(self, name: str) -> tuple[Tensor, Tensor]:
        path = None if self.folder is None else self.folder / f"{name}_holdout.safetensors"
        found = None if path is None else load_tensors(path, self.request)
        if found is not None:
            images = found[0]["images"]
        else:
            random = random_numbers(self.task.seed, "holdout")
            images = self.game.source.kept(self.trainer.holdout, random)
            if path is not None:
                save_tensors(path, {"images": images}, self.request)
        return images, self._answers(self.game.teacher, images)

    def _answers(self, network: nn.Module, images: Tensor) -> Tensor:
        """What `network` returns for all images."""

        @torch.no_grad()
        def work(size: int) -> Tensor:
            chunks = (on_device(chunk, self.task.device) for chunk in images.split(size))
            return torch.cat([network(chunk) for chunk in chunks])

        return Portion("judging the student", _CHUNK).fit(work)

    def _run(self, phase: Phase, state: State, name: str) -> None:
        path = None if self.folder is None else self.folder / f"{name}.safetensors"
        saved = Saved(path, {**self.request, "phase": name}, self.trainer.checkpoint_minutes * 60)
        with kept_memory():
            run_phase(phase, state, saved, self.progress, self.game.team)
        told: dict[str, Any] = {
            "steps": state.step, "seconds": round(state.seconds, 1),
            "batch": self.trainer.batch_size,
        }  # fmt: skip
        judged = [check for check in state.history if "agreement" in check]
        if state.agreement is not None:
            best = next(check for check in judged if check["step"] == state.kept)
            told |= {"best": best, "last": judged[-1]}
        if self.trainer.from_images and self.task.images is not None:
            told["learned_from"] = {"images": len(self.task.images), "method": self.task.made_by}
        self.summary[name] = {**told, "history": state.history}

    def _portion(self) -> Portion:
        """Images per step; what was halved in one phase stays so in the next."""
        return Portion(f"{self.trainer.name} training", self.trainer.batch_size, 2, _REMEDY)

    def _lessened(self, advance: Move, size: int) -> Move:
        """`advance` with `size` images per step, as all that comes later."""
        self.trainer = self.trainer.model_copy(update={"batch_size": size})
        return replace(advance, trainer=self.trainer)

    def _generator_steps(self) -> Optimizer:
        trainer = self.trainer
        return Adam(
            self.game.source.modules["generator"].parameters(),
            trainer.generator_lr,
            betas=(0.5, 0.999),
            fused=True,
        )

    def _range_steps(self, student: nn.Module, steps: list[nn.Parameter]) -> Optimizer:
        """Steps and clips without decay, PACT's clips with it: its L2 term."""
        trainer = self.trainer
        decayed = {id(m.alpha) for m in student.modules() if isinstance(m, PACT)}
        groups = [
            {"params": [p for p in steps if id(p) not in decayed]},
            {
                "params": [p for p in steps if id(p) in decayed],
                "weight_decay": trainer.weight_decay,
            },
        ]
        kept = [group for group in groups if group["params"]]
        return SGD(kept, trainer.student_lr * trainer.steps_lr, fused=True)

    def _student_steps(self, parameters: list[nn.Parameter]) -> Optimizer:
        trainer = self.trainer
        return SGD(
            parameters, trainer.student_lr, momentum=trainer.momentum, nesterov=trainer.nesterov,
            weight_decay=trainer.weight_decay, fused=True,
        )  # fmt: skip


def _request(trainer: Trainer, task: Task, given: Generator | None) -> dict[str, object]:
    """All that a training depends on, as JSON values."""
    own = {
        "teacher": task.teacher, "folded": task.folded, "companion": task.companion,
        "generator": given,
    }  # fmt: skip
    return {
        **trainer.describe(),
        "seed": task.seed,
        "spec": task.spec.model_dump(mode="json"),
        "scheme": None if task.scheme is None else task.scheme.model_dump(mode="json"),
        "rule": f"{type(task.rule).__name__} {task.rule.model_dump_json()}",
        "images": "" if task.images is None else state_digest({"images": task.images}),
        **_classes(trainer, task),
        "corrected": task.statistics is not None,
        "rounding": None if task.reconstructor is None else task.reconstructor.describe(),
        **{k: "" if v is None else state_digest(v.state_dict()) for k, v in own.items()},
    }


def _classes(trainer: Trainer, task: Task) -> dict[str, str]:
    """Of the images a student learns from."""
    if not trainer.from_images or task.targets is None:
        return {}
    return {"targets": state_digest({"targets": task.targets})}


def _best_and_last(student: fx.GraphModule, state: State) -> tuple[fx.GraphModule, fx.GraphModule]:
    last = copy.deepcopy(student).eval().requires_grad_(False)
    if state.best is not None:
        student.load_state_dict(state.best)
    return student.eval().requires_grad_(False), last
