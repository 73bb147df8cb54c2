"""The way of one training: warm-up, ranges, generator and student together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.optim import SGD, Adam, Optimizer

from datafree.calibrators.base import calibrate
from datafree.errors import DataError
from datafree.evaluate import Comparison, compare
from datafree.generators import Generator, generate, load_generator
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.graph.taps import BatchNorm, tap_batch_norms, tap_outputs
from datafree.progress import Progress
from datafree.quant.trained import finish_training, prepare_training
from datafree.tensors import fast_copy, load_tensors, save_tensors, state_digest
from datafree.training._loop import Phase, run_phase
from datafree.training._state import Saved, State
from datafree.training._task import Dream, Task, Trained

if TYPE_CHECKING:
    from datafree.training.base import Trainer

_CHUNK = 64
# Added to the seed.
_HOLDOUT_SEED, _RANGES_SEED, _TUNING_SEED, _MEMORY_SEED = 2**32, 2**33, 2**34, 2**37
_JUDGED_FROM = 0.5  # of a phase whose generator starts from nothing


@dataclass
class Game:
    """Who dreams and who looks on.

    Attributes:
        teacher: frozen.
        generator: in train mode.
        memory: what `Trainer.remember` returned.
        taps: filled by the teacher's forward pass.
        blocks: filled by the generator's.
    """

    teacher: nn.Module
    generator: Generator
    memory: Any
    taps: list[tuple[BatchNorm, Tensor]]
    blocks: list[Tensor] = field(default_factory=list)

    def dream(self, count: int, start: int, random: torch.Generator) -> Dream:
        """A new batch, with the graph that leads to the generator."""
        self.blocks.clear()
        latents, labels = self.generator.draw(count, random)
        images = self.generator(latents, labels)
        logits = self.teacher(images)
        return Dream(images, labels, logits, list(self.taps), list(self.blocks), start, random)


def train(
    trainer: Trainer,
    task: Task,
    progress: Progress,
    folder: Path | None,
    max_seconds: float | None,
) -> Trained:
    """What `Trainer.train` does, after its checks."""
    teacher = fast_copy(task.teacher).requires_grad_(False).eval()
    random = torch.Generator().manual_seed(task.seed)
    given = None if task.generator is None else _given(trainer, task)
    fresh = given or Generator(trainer.generator_config(task.spec), random)
    measuring = torch.Generator().manual_seed(task.seed + _MEMORY_SEED)
    memory = trainer.remember(teacher, task.spec, measuring)
    with ExitStack() as stack:
        taps = stack.enter_context(tap_batch_norms(teacher))
        game = Game(teacher, fresh.to(task.device).train(), memory, taps)
        blocks = game.generator.blocks
        stack.enter_context(tap_outputs(blocks, lambda _, output: game.blocks.append(output)))
        run = _Run(
            trainer,
            task,
            game,
            progress,
            folder,
            _Budget(trainer, given, max_seconds),
            _request(trainer, task, given, max_seconds),
        )
        learned = None if given is not None and task.companion is None else run.warm_up(random)
        warm = copy.deepcopy(game.generator) if given is None else None
        if task.scheme is None:
            assert learned is not None  # noqa: S101 - `Trainer.train` refuses a task without
            best, last = learned
        else:
            best, last = run.fine_tune(None if learned is None else learned[0])
    return Trained(best, last, game.generator, warm, run.summary)


@dataclass(frozen=True)
class _Budget:
    """How the time is shared: by steps."""

    trainer: Trainer
    given: Generator | None
    seconds: float | None

    def share(self, iterations: int) -> float | None:
        if self.seconds is None:
            return None
        warmup = 0 if self.given is not None else self.trainer.warmup
        return self.seconds * iterations / (warmup + self.trainer.iterations)


@dataclass
class _Run:
    trainer: Trainer
    task: Task
    game: Game
    progress: Progress
    folder: Path | None
    budget: _Budget
    request: dict[str, object]
    summary: dict[str, Any] = field(default_factory=dict)

    def warm_up(self, random: torch.Generator) -> tuple[fx.GraphModule, fx.GraphModule] | None:
        """Let the generator learn, alone or with a float network; that one, best and last."""
        trainer, game = self.trainer, self.game
        learner = trainer.learner(self.task)
        kept = self.task.companion is not None
        modules: dict[str, nn.Module] = {"generator": game.generator}
        optimizers: dict[str, Optimizer] = {"generator": self._generator_steps()}
        if learner is not None:
            modules["student"] = learner.requires_grad_().train()
            optimizers["student"] = trainer.learner_optimizer(learner)
        state = State(modules, optimizers, random)
        advance = self._advance(learner, optimizers, random, dreaming=True, tuning=False)
        judge = self._judge("distilled") if kept else None
        name = "distillation" if kept else "warm-up"
        seconds = self.budget.share(trainer.warmup)
        phase = Phase(
            f"{trainer.name} {name}", trainer.warmup, advance, learner, judge, trainer.checks,
            _JUDGED_FROM, seconds,
        )  # fmt: skip
        self._run(phase, state, name)
        return _best_and_last(learner, state) if kept and learner is not None else None

    def fine_tune(self, float_student: fx.GraphModule | None) -> tuple[fx.GraphModule, ...]:
        """Quantize, and let generator and student learn together; the student, best and last."""
        trainer, task, game = self.trainer, self.task, self.game
        random = torch.Generator().manual_seed(task.seed + _TUNING_SEED)
        student = self._student(float_student)
        handles = prepare_training(student, trainer.weights, trainer.activations)
        student.requires_grad_().train(trainer.batch_norm == "train")
        steps = {id(parameter) for parameter in handles.steps}
        others = [p for p in student.parameters() if id(p) not in steps]
        optimizers: dict[str, Optimizer] = {"student": self._student_steps(others)}
        modules: dict[str, nn.Module] = {"student": student}
        if handles.steps:
            optimizers["steps"] = SGD(handles.steps, trainer.student_lr * trainer.steps_lr)
        if trainer.update_generator:
            modules["generator"] = game.generator
            optimizers["generator"] = self._generator_steps()
        state = State(modules, optimizers, random)
        advance = self._advance(
            student, optimizers, random, dreaming=trainer.update_generator, tuning=True
        )
        phase = Phase(
            f"{trainer.name} fine-tuning", trainer.iterations, advance, student,
            self._judge("tuned"), trainer.checks, 0.0, self.budget.share(trainer.iterations),
        )  # fmt: skip
        self._run(phase, state, "fine-tuning")
        best, last = _best_and_last(student, state)
        # Two networks, and plain quantizers for each.
        finish_training(last, copy.deepcopy(handles))
        finish_training(best, handles)
        return best, last

    def _student(self, float_student: fx.GraphModule | None) -> fx.GraphModule:
        """The student on its grids, with the ranges training starts from."""
        trainer, task = self.trainer, self.task
        assert task.scheme is not None  # noqa: S101 - asked by the caller
        if trainer.batch_norm != "folded":
            base = task.teacher if float_student is None else float_student
        else:
            base = task.folded if float_student is None else fold_batch_norms(float_student)
        student = fast_copy(insert_quantizers(base, task.scheme))
        trainer.first_ranges(student)
        images = task.images
        if images is None:
            random = torch.Generator().manual_seed(task.seed + _RANGES_SEED)
            images, _ = generate(self.game.generator, trainer.calibration_images, random)
        calibrate(student, self._chunks(images), trainer.calibrator(task.rule))
        return student

    def _advance(
        self,
        student: nn.Module | None,
        optimizers: Mapping[str, Optimizer],
        random: torch.Generator,
        *,
        dreaming: bool,
        tuning: bool,
    ) -> Callable[[int, float], Mapping[str, Tensor]]:
        """One step of all that learns."""
        trainer, game = self.trainer, self.game
        first = {name: [g["lr"] for g in o.param_groups] for name, o in optimizers.items()}

        def advance(step: int, fraction: float) -> Mapping[str, Tensor]:
            for name, optimizer in optimizers.items():
                for group, rate in zip(optimizer.param_groups, first[name], strict=True):
                    group["lr"] = rate * trainer.rate(name, fraction, tuning=tuning)
            start, count = step * trainer.batch_size, trainer.batch_size
            losses: dict[str, Tensor] = {}
            dream = None
            if dreaming:
                dream = game.dream(count, start, random)
                losses = trainer.generator_terms(dream, student, game.memory)
                _descend(losses, optimizers["generator"])
            if student is not None:
                if dream is None or trainer.fresh:
                    with torch.no_grad():
                        dream = game.dream(count, start, random)
                dream = dream.detached()
                own = trainer.student_terms(student(dream.images), dream)
                _descend(own, *(o for name, o in optimizers.items() if name != "generator"))
                losses |= {f"student {name}": value for name, value in own.items()}
            return {name: value.detach() for name, value in losses.items()}

        return advance

    def _judge(self, name: str) -> Callable[[nn.Module], Comparison]:
        """Says how near a student is to the teacher, on images kept from the first question on."""
        kept: list[tuple[Tensor, Tensor]] = []

        def judge(student: nn.Module) -> Comparison:
            if not kept:
                kept.append(self._held_out(name))
            images, expected = kept[0]
            mode = student.training
            student.eval()
            with torch.no_grad():
                actual = torch.cat([student(chunk) for chunk in self._chunks(images)])
            student.train(mode)
            return compare(lambda _: expected, lambda _: actual, [images])

        return judge

    def _held_out(self, name: str) -> tuple[Tensor, Tensor]:
        path = None if self.folder is None else self.folder / f"{name}_holdout.safetensors"
        found = None if path is None else load_tensors(path, self.request)
        if found is not None:
            images = found[0]["images"]
        else:
            random = torch.Generator().manual_seed(self.task.seed + _HOLDOUT_SEED)
            images, _ = generate(self.game.generator, self.trainer.holdout, random)
            if path is not None:
                save_tensors(path, {"images": images}, self.request)
        with torch.no_grad():
            chunks = [self.game.teacher(chunk) for chunk in self._chunks(images)]
        return images, torch.cat(chunks)

    def _chunks(self, images: Tensor) -> list[Tensor]:
        device = self.task.device
        chunks = images.split(_CHUNK)
        return [chunk.to(device, memory_format=torch.channels_last) for chunk in chunks]

    def _run(self, phase: Phase, state: State, name: str) -> None:
        path = None if self.folder is None else self.folder / f"{name}.safetensors"
        saved = Saved(path, {**self.request, "phase": name}, self.trainer.checkpoint_minutes * 60)
        run_phase(phase, state, saved, self.progress)
        told: dict[str, Any] = {"steps": state.step, "seconds": round(state.seconds, 1)}
        judged = [check for check in state.history if "agreement" in check]
        if state.score is not None:
            best = max(judged, key=lambda check: (check["agreement"], -check["kl"]))
            told |= {"best": best, "last": judged[-1]}
        self.summary[name] = {**told, "history": state.history}

    def _generator_steps(self) -> Optimizer:
        trainer = self.trainer
        return Adam(self.game.generator.parameters(), trainer.generator_lr, betas=(0.5, 0.999))

    def _student_steps(self, parameters: list[nn.Parameter]) -> Optimizer:
        trainer = self.trainer
        return SGD(
            parameters, trainer.student_lr, momentum=trainer.momentum, nesterov=trainer.nesterov,
            weight_decay=trainer.weight_decay,
        )  # fmt: skip


def _request(
    trainer: Trainer, task: Task, given: Generator | None, seconds: float | None
) -> dict[str, object]:
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
        "max_seconds": seconds,
        **{k: "" if v is None else state_digest(v.state_dict()) for k, v in own.items()},
    }


def _given(trainer: Trainer, task: Task) -> Generator:
    """The generator of ``task.generator``, which must fit.

    Raises:
        DataError: it makes other images, or takes no classes where the method asks for some.
    """
    assert task.generator is not None  # noqa: S101 - asked by the caller
    generator, _ = load_generator(task.generator)
    made, wanted = generator.config, trainer.generator_config(task.spec)
    same = made.shape == wanted.shape and (
        made.condition == "none" or made.classes == wanted.classes
    )
    if not same or (trainer.conditional and made.condition == "none"):
        raise DataError(
            f"{task.generator} makes images of {made.shape} with condition {made.condition}, and"
            f" {trainer.name} needs {wanted.shape} with {wanted.condition}: warm one up by"
            f" {trainer.name}"
        )
    return generator


def _descend(terms: Mapping[str, Tensor], *optimizers: Optimizer) -> None:
    """One step of all `optimizers` down the sum of `terms`; nothing else receives gradients."""
    parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    total = torch.stack(list(terms.values())).sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    for optimizer in optimizers:
        optimizer.step()


def _best_and_last(student: fx.GraphModule, state: State) -> tuple[fx.GraphModule, fx.GraphModule]:
    last = copy.deepcopy(student).eval().requires_grad_(False)
    if state.best is not None:
        student.load_state_dict(state.best)
    return student.eval().requires_grad_(False), last
