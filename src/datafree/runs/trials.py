"""What stages of a run cost on this machine, measured by doing the first steps of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, fx

from datafree.config import Frozen, InputSpec
from datafree.evaluate import Predictor
from datafree.graph.integer import as_computed
from datafree.graph.normalisation import behind_normalisation
from datafree.graph.settle import settle
from datafree.images import SyntheticSet
from datafree.progress import Step
from datafree.reconstruction.base import Reconstructor
from datafree.runs.fine_tuning import tune
from datafree.runs.opening import Opened
from datafree.runs.plan import Plan
from datafree.runs.post_training import quantize_weights
from datafree.runs.record import Stopwatch
from datafree.synthesis.base import Synthesizer
from datafree.tensors import device_of, on_device
from datafree.training.base import Trainer

T = TypeVar("T", bound=Frozen)
_VALUES = 16 * 3 * 224 * 224  # input values of a trial: 16 ImageNet images
_MOST, _FEWEST = 64, 2  # images of a trial
_STEPS = 3  # that are timed at least, after the first
_SECONDS = 0.3  # and for so long, if there are more
_ENOUGH = 12
_SHORT = 2  # steps of the shorter of two learnings, whose difference tells what a step takes
_LONGER = (6, 24, 96)  # of the longer one, as many as make a difference
_TELLING = 0.5  # seconds that can be told from noise
_LEARNED = "reconstruction"
_REPEATS = 2


class Enough(Exception):  # noqa: N818 - no error: the trial is over
    """Ends work of which enough steps were timed."""


@dataclass
class Pace:
    """A `datafree.progress.Progress` that measures how long the steps of a task take.

    Attributes:
        stop: end the work, by an exception, as soon as enough steps were timed.
        tasks: finished or stopped, by description: seconds a step, and steps in all.
    """

    stop: bool
    tasks: dict[str, tuple[float, int]] = field(default_factory=dict)

    @contextmanager
    def __call__(self, description: str, total: int) -> Generator[Step]:
        """See `datafree.progress.Progress`."""
        times: list[tuple[float, int]] = []

        def step(done: int) -> None:
            if done:
                times.append((time.perf_counter(), done))
            if not self.stop or len(times) <= _STEPS:
                return
            if len(times) > _ENOUGH or times[-1][0] - times[0][0] >= _SECONDS:
                raise Enough

        try:
            yield step
        finally:
            units = sum(done for _, done in times[1:])
            if units:
                self.tasks[description] = ((times[-1][0] - times[0][0]) / units, total)


def few_images(spec: InputSpec) -> int:
    """Images of a trial: as many as 16 of ImageNet's size are large, 2 to 64."""
    channels, height, width = spec.shape
    return min(_MOST, max(_FEWEST, _VALUES // (channels * height * width)))


def random_images(spec: InputSpec, device: torch.device) -> Tensor:
    """Gaussian images of a trial."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(few_images(spec), *spec.shape, generator=generator).to(device)


def shortened(method: T, steps: int) -> T:
    """`method` with `steps` in every phase that has any, and one check at the end."""
    known = type(method).model_fields
    changes: dict[str, Any] = {
        name: steps for name in known
        if name.endswith("iterations") or (name == "warmup" and isinstance(method, Trainer))
    }  # fmt: skip
    changes = {n: min(steps, v) if (v := getattr(method, n)) else v for n in changes}
    if "checks" in known:
        changes["checks"] = 1
    return method.model_copy(update=changes)


def synthesis_seconds(
    synthesizer: Synthesizer, graph: fx.GraphModule, spec: InputSpec, count: int
) -> float:
    """Seconds to make `count` images, from the first steps.

    Args:
        synthesizer: the method.
        graph: canonical graph of the teacher.
        spec: its input.
        count: number of images.
    """
    inner, normalised = behind_normalisation(graph, spec)
    pace = Pace(stop=True)
    started = time.perf_counter()
    try:
        synthesizer.for_trial().generate(inner, normalised, count, progress=pace)
    except Enough:
        ((_, (each, steps)),) = pace.tasks.items()
        told = f"{synthesizer.name} images" in pace.tasks
        if told:
            # Of steps that end once the loss has settled, those that are to be expected.
            most = count * synthesizer.batch_iterations
            return each * steps * min(synthesizer.passes(count) / most, 1.0)
        # Of a method with several phases the first was timed; images per step tell the rest.
        per_pass = each / max(synthesizer.batch_images(graph, count), 1)
        return per_pass * synthesizer.passes(count)
    return time.perf_counter() - started


@dataclass(frozen=True)
class Quantized:
    """What quantizing the weights costs, from trials with few images and few steps.

    Attributes:
        fixed: seconds by stage that it takes with any number of images, and no step of a
            reconstruction.
        per_image: seconds by stage that every image adds to these.
        per_pass: seconds of the reconstruction for one image sent through the network and back.
        per_answer: seconds in which teacher and integer student answer for one image.
    """

    fixed: dict[str, float]
    per_image: dict[str, float]
    per_pass: float
    per_answer: float

    def seconds(self, images: int) -> dict[str, float]:
        """By stage, with so many images and no step of a reconstruction."""
        return {name: one + self.per_image[name] * images for name, one in self.fixed.items()}


def quantizing_seconds(begun: Opened) -> Quantized:
    """Quantize with a few random images and a few steps, as the run will with all of them."""
    graph, plan, spec = begun.graph, begun.plan, begun.spec
    images = random_images(spec, torch.device("cpu"))
    _quantized(begun, images[:_FEWEST], _SHORT)  # what is only done the first time
    _, fewest = _quantized(begun, images[:_FEWEST], _SHORT)
    student, short = _quantized(begun, images, _SHORT)
    more = max(len(images) - _FEWEST, 1)
    per_image = {name: max(short[name] - fewest[name], 0.0) / more for name in short}
    per_pass = 0.0
    if plan.reconstructor is not None:
        passes, learned = _steps_learned(begun, images, short[_LEARNED])
        per_pass = learned / passes if passes else 0.0
        # Every trial had some steps, and a step sends as many images as there are, up to a batch.
        taken = per_pass * _shorter(plan, _SHORT).passes(len(images))
        per_image[_LEARNED] = max(per_image[_LEARNED] - taken / len(images), 0.0)
        short[_LEARNED] = max(short[_LEARNED] - taken, 0.0)
    fixed = {name: max(short[name] - per_image[name] * len(images), 0.0) for name in short}
    answering = answer_seconds((graph, as_computed(settle(student))), spec, device_of(graph))
    return Quantized(fixed, per_image, per_pass, answering)


def _quantized(
    begun: Opened, images: Tensor, steps: int
) -> tuple[fx.GraphModule, dict[str, float]]:
    """A student of `images`, learned for `steps` where it learns; seconds by stage."""
    plan, watch = begun.plan, Stopwatch()
    if plan.reconstructor is not None:
        plan = replace(plan, reconstructor=_shorter(plan, steps))
    few = SyntheticSet(images, begun.spec)
    pace = Pace(stop=False)
    made = quantize_weights(begun.graph, begun.config, plan, few, None, watch, pace)
    return made.student, dict(watch.seconds)


def _steps_learned(begun: Opened, images: Tensor, short: float) -> tuple[float, float]:
    """Images sent through the network and back in some steps of learned rounding, and seconds.

    Args:
        begun: the run.
        images: to learn from.
        short: seconds of a reconstruction of `_SHORT` steps.
    """
    before = _shorter(begun.plan, _SHORT).passes(len(images))
    passes = seconds = 0.0
    for steps in _LONGER:
        _, watch = _quantized(begun, images, steps)
        seconds = max(watch[_LEARNED] - short, 0.0)
        passes = _shorter(begun.plan, steps).passes(len(images)) - before
        if seconds >= _TELLING:
            break
    return passes, seconds


def _shorter(plan: Plan, steps: int) -> Reconstructor:
    assert plan.reconstructor is not None  # noqa: S101 - asked for by the callers
    return shortened(plan.reconstructor, steps)


def answer_seconds(
    predictors: tuple[Predictor, ...], spec: InputSpec, device: torch.device
) -> float:
    """Seconds in which all `predictors` answer for one image: the better of two times."""
    images = on_device(random_images(spec, device), device)

    def answer() -> None:
        with torch.inference_mode():
            for predict in predictors:
                predict(images).sum().item()  # waits for the device

    return best_time(answer, _REPEATS + 1) / len(images)


def training_seconds(begun: Opened) -> dict[str, float]:
    """Seconds of the phases of a training, from their first steps, by description.

    Learned rounding and the checks on the way are not in them.

    Raises:
        DatafreeError: the method refuses so short a training.
    """
    trainer, rule = begun.plan.trainer, begun.plan.rule
    assert trainer is not None  # noqa: S101 - asked for by the caller
    tried = shortened(trainer, _STEPS + 1)
    pace = Pace(stop=False)
    images = None
    if trainer.from_images:
        images = SyntheticSet(random_images(begun.spec, torch.device("cpu")), begun.spec)
    tune(tried, begun.graph, begun.spec, begun.config, rule, images, begun.companion, progress=pace)  # pyright: ignore[reportArgumentType]
    steps = {True: trainer.warmup, False: trainer.iterations}
    return {
        name: each * steps[name.endswith(("warm-up", "distillation"))]
        for name, (each, _) in pace.tasks.items()
        if name.startswith(trainer.name)
    }


def best_time(work: Callable[[], object], repeats: int) -> float:
    """The least of the seconds that `work` takes, done so often."""
    return min(_timed(work) for _ in range(repeats))


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
