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
_SHORT, _LONGER = 2, 6  # steps of two learnings whose difference tells what a step takes
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
        synthesizer.generate(inner, normalised, count, progress=pace)
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
    """What quantizing the weights cost for a few images.

    Attributes:
        images: their number.
        seconds: by stage, a reconstruction of no steps among them.
        per_pass: seconds of the reconstruction for one image sent through the network and back.
        per_answer: seconds in which teacher and integer student answer for one image.
    """

    images: int
    seconds: dict[str, float]
    per_pass: float
    per_answer: float


def quantizing_seconds(begun: Opened) -> Quantized:
    """Quantize with a few random images and a few steps, as the run will with all of them."""
    graph, config, plan, spec = begun.graph, begun.config, begun.plan, begun.spec
    device = device_of(graph)
    images = SyntheticSet(random_images(spec, torch.device("cpu")), spec)
    runs = (_SHORT, _LONGER) if plan.reconstructor is not None else (_SHORT,)
    watches: list[Stopwatch] = []
    students: list[fx.GraphModule] = []
    for steps in runs:
        watch = Stopwatch()
        tried = plan if plan.reconstructor is None else _shorter(plan, steps)
        made = quantize_weights(graph, config, tried, images, None, watch, Pace(stop=False))
        students.append(made.student)
        watches.append(watch)
    seconds, per_pass = dict(watches[0].seconds), 0.0
    if plan.reconstructor is not None:
        short, longer = (watch.seconds["reconstruction"] for watch in watches)
        passes = [_shorter(plan, n).reconstructor.passes(len(images)) for n in runs]  # pyright: ignore[reportOptionalMemberAccess]
        steps = passes[1] - passes[0]  # none where it learns for two steps at most
        per_pass = max(longer - short, 0.0) / steps if steps else 0.0
        seconds["reconstruction"] = max(0.0, short - per_pass * passes[0])
    answering = answer_seconds((graph, as_computed(settle(students[0]))), spec, device)
    return Quantized(len(images), seconds, per_pass, answering)


def _shorter(plan: Plan, steps: int) -> Plan:
    assert plan.reconstructor is not None  # noqa: S101 - asked for by the callers
    return replace(plan, reconstructor=shortened(plan.reconstructor, steps))


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
    tune(tried, begun.graph, begun.spec, begun.config, rule, None, begun.companion, progress=pace)  # pyright: ignore[reportArgumentType]
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
