"""The beginning of a run: its network captured, everything settled, every mistake told."""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import fx, nn
from torch.export import ExportedProgram

from datafree.config import InputSpec, RunConfig
from datafree.data.photos import check_photos
from datafree.errors import ConfigError
from datafree.graph.capture import capture, to_device
from datafree.images import SyntheticSet
from datafree.models import Teacher, load_teacher
from datafree.models.weights import named_tensors
from datafree.progress import Progress, silent, waiting
from datafree.runs.accuracy import Metric, labelled_images, measure
from datafree.runs.choices import settled
from datafree.runs.exporting import check_export
from datafree.runs.fine_tuning import find_companion
from datafree.runs.judging import check_verdict
from datafree.runs.keeping import to_keep
from datafree.runs.notes import noted
from datafree.runs.plan import Plan, make_plan, resolve_device
from datafree.training import Team, gather_team

_FIRST, _EACH = 0.7, 0.015  # seconds of the first network, and of each of its tensors


@dataclass(frozen=True)
class Opened:
    """All that is known before the long stages.

    Attributes:
        config: of the run, with the methods that fit the network.
        teacher: as it was loaded.
        graph: as it was captured, on the device of the run.
        plan: the methods.
        images: those that are given, or none where no stage needs any; None where they are made.
        companion: network to distill into, if there is one.
        team: the processes that train together.
        notes: what a user should know of the network.
        program: of the teacher, where the run is to keep it.
        metric: measures on labelled images, where it is no measure of classes.
        test_images: number of those with labels.
        traced: seconds in which the network was captured.
    """

    config: RunConfig
    teacher: Teacher
    graph: fx.GraphModule
    plan: Plan
    images: SyntheticSet | None
    companion: fx.GraphModule | None
    team: Team
    notes: list[str]
    program: ExportedProgram | None
    metric: Metric | None = None
    test_images: int = 0
    traced: float = 0.0

    @property
    def spec(self) -> InputSpec:
        """What the network takes and returns."""
        return self.teacher.spec


def open_run(  # noqa: PLR0913 - what a caller may bring
    config: RunConfig,
    teacher: Teacher | None = None,
    student: nn.Module | ExportedProgram | None = None,
    images: SyntheticSet | None = None,
    metric: Metric | None = None,
    *,
    keep: bool = False,
    progress: Progress = silent,
) -> Opened:
    """Load, capture and check whatever a run is about.

    Args:
        config: of the run.
        teacher: a loaded teacher; None loads ``config.model``.
        student: a network in memory to distill into.
        images: those that are given.
        metric: measures on the labelled data of `config`.
        keep: the run is written, and its teacher with it where `config` says so.
        progress: shown while the network is loaded and captured.

    Raises:
        DatafreeError: whatever is wrong with the network, the data or the options.
    """
    with waiting(progress, "loading the network"):
        teacher = teacher or load_teacher(config.teacher)
    spec, device = teacher.spec, resolve_device(config.device)
    started = time.perf_counter()
    with waiting(progress, "capture", _capture_seconds(teacher)):
        program = to_keep(teacher, config) if keep else None
        graph = to_device(capture(program or teacher.model, spec), device)
    traced = time.perf_counter() - started
    metric = measure(config, teacher.boxes, metric)
    check_export(graph, spec, config)
    check_verdict(config, own_measure=metric is not None or config.metric is not None)
    tested = 0 if config.data is None else len(labelled_images(config, spec, metric)[0])
    if images is None and config.image_file is not None:
        images = SyntheticSet.load(config.image_file).fitted(spec, config.images)
    if images is not None and config.photos is not None:
        raise ConfigError("photos stand among images that are made, and images are given")
    choices = settled(config, graph, given=images is not None)
    config = choices.config
    plan = make_plan(config, graph, spec, given=images is not None)
    if config.photos is not None:
        check_photos(config.photos, spec, config.photo_count)
    if images is None and plan.synthesizer is None:
        images = SyntheticSet.none(spec)
    companion = find_companion(student, config, spec)
    team = gather_team(device, config.precision) if plan.trainer is not None else Team()
    notes = noted(teacher, graph, choices.text) if team.rank == 0 else []
    notes += _of_photos(config)
    return Opened(
        config, teacher, graph, plan, images, companion, team, notes, program, metric, tested,
        traced,
    )  # fmt: skip


def _of_photos(config: RunConfig) -> list[str]:
    """A note that the run is not strictly data-free; none where it is."""
    if not config.photo_count:
        return []
    told = f"{config.photo_count} of {config.images} images are photos of {config.photos}"
    return [f"{told}: the run is not strictly data-free"]


def _capture_seconds(teacher: Teacher) -> float:
    """About how long `capture` takes: tracing, by the number of tensors that layers have."""
    return _FIRST + _EACH * len(list(named_tensors(teacher.model)))
