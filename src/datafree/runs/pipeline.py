"""The order of the stages: capture, synthesise, calibrate, reconstruct, evaluate, export."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from datafree.calibrators.base import Calibrator
from datafree.config import InputSpec, RunConfig
from datafree.errors import VerdictError
from datafree.files import sha256
from datafree.graph.integer import as_computed
from datafree.graph.outputs import rebuilt, structured, together
from datafree.images import SyntheticSet
from datafree.models import Teacher
from datafree.progress import Progress, silent, waiting
from datafree.progress.deadline import Deadline
from datafree.runs.accuracy import Metric
from datafree.runs.exporting import export_student
from datafree.runs.fine_tuning import dreamt, save_generators, tune
from datafree.runs.folder import (
    CONFIG,
    METRICS,
    ONNX,
    TRAINING,
    UNFINISHED,
    refuse,
    save_images,
    workplace,
    writing,
)
from datafree.runs.forecast import foretell, roughly
from datafree.runs.judging import held_out_of, holds_out, verdict_in
from datafree.runs.keeping import TEACHER, save_teacher
from datafree.runs.limits import Counted, Limits, check_limit, cut_short
from datafree.runs.measuring import Made, evaluated
from datafree.runs.opening import Opened, open_run
from datafree.runs.post_training import allocated, quantize_weights
from datafree.runs.record import Stopwatch, check_there, environment, write_metrics
from datafree.runs.reporting import Told, weights_of, write_report
from datafree.runs.runtime import facts_of_run
from datafree.runs.snippet import snippet
from datafree.runs.synthesizing import images_of_run
from datafree.runs.weak import weak_points
from datafree.tensors import fast_layout
from datafree.verdict.estimate import Verdict


@dataclass(frozen=True)
class Result:
    """What a run gives back.

    Attributes:
        student: the quantized network, an ordinary graph module on normalised images, which returns
            what the network returned.
        teacher: the canonical float graph it was made from, likewise.
        spec: input of both.
        images: the images it was calibrated with; none where no stage needed any.
        config: everything that was chosen, defaults included, with the methods that fit the network
            where several were named; bits of layers that were allocated stand in
            ``config.layer_bits``.
        metrics: accuracy or agreement, noise per layer, export parity, what the runtime made of the
            file; JSON values.
        seconds: by stage.
        folder: where the run was written, if it was.
    """

    student: fx.GraphModule
    teacher: fx.GraphModule
    spec: InputSpec
    images: SyntheticSet
    config: RunConfig
    metrics: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def integer_model(self) -> Callable[[Tensor], Any]:
        """The student as its target computes it: normalised images to what the network returns.

        To the last bit where the target's arithmetic is known (onnxruntime); the student elsewhere.
        """
        student = together(self.student)
        return rebuilt(student, as_computed(student))

    @property
    def verdict(self) -> Verdict | None:
        """What the student is worth; None where nothing was compared, or nothing has a scale."""
        return verdict_in(self.metrics)

    def snippet(self) -> str | None:
        """Python that classifies a picture with the run's ONNX file; None where there is no file.

        See `datafree.runs.snippet.snippet`.
        """
        path = None if self.folder is None else self.folder / ONNX
        if path is None or not path.exists():
            return None
        return snippet(path, self.spec, self.config)


def run(  # noqa: PLR0913 - one door, what a caller may bring
    config: RunConfig,
    *,
    teacher: Teacher | None = None,
    student: nn.Module | ExportedProgram | None = None,
    images: SyntheticSet | None = None,
    metric: Metric | None = None,
    folder: Path | str | None = None,
    force: bool = False,
    reserved: bool = False,
    progress: Progress = silent,
    tell: Callable[[str], None] | None = None,
) -> Result:
    """Quantize a teacher as `config` says: the whole way from network to integer model.

    Args:
        config: the run.
        teacher: a loaded teacher; None loads ``config.model``.
        student: a network in memory to distill into, instead of loading ``config.student``.
        images: calibration images; None takes those of ``config.image_file``, or synthesises some
            where a stage needs any.
        metric: measures on the labelled data of `config`, instead of top-1.
        folder: where configuration, images, pictures, student, ONNX and metrics are written. A run
            that was interrupted goes on in its folder.
        force: replace a finished run in `folder`, once this one is whole.
        reserved: the caller holds the lock of `folder`, see `datafree.runs.folder.locked`.
        progress: shown during long stages.
        tell: called with the time the run is expected to take, before the long stages.

    Raises:
        OutputExistsError: `folder` holds something else and `force` was not given.
        BusyError: another run is writing to `folder`.
        OutputError: `folder` cannot be written to; what was finished is kept where it can be.
        VerdictError: all was written, and the verdict is `config.fail_below` or worse; the error
            has the result.
        DatafreeError: whatever a stage refuses; see the stages.
    """
    folder = None if folder is None else Path(folder)
    if folder is not None:
        refuse(folder, config, force)
    watch, whole = Stopwatch(), Deadline.within(config.max_seconds)
    counted = Counted(progress)
    with watch.stage("capture"):
        kept = folder is not None
        begun = open_run(config, teacher, student, images, metric, keep=kept, progress=counted)
        watch.network = begun.graph
    written = folder is not None
    limits = _foretold(begun, watch, whole, tell, written=written, progress=counted)
    job = _Job(config, begun, folder, watch, counted, limits)
    if folder is None or begun.team.rank != 0:
        begun.team.wait()
        return _passed(_carried_out(job, None if folder is None else workplace(folder)))
    origin = f"{begun.teacher.digest} {_digest(begun.images)}{_files(begun.config)}"
    with writing(folder, config, origin, force=force, reserved=reserved) as place:
        begun.team.wait()
        result = _carried_out(job, place)
    return _passed(result)


@dataclass(frozen=True)
class _Job:
    """A run that has begun: as it was asked for, what is known, where it goes, its times."""

    asked: RunConfig
    begun: Opened
    folder: Path | None
    watch: Stopwatch
    progress: Counted
    limits: Limits


def _carried_out(job: _Job, place: Path | None) -> Result:
    """All stages behind the first; what they write goes to `place`."""
    begun, watch, progress, limits = job.begun, job.watch, job.progress, job.limits
    config, plan, team, metric = begun.config, begun.plan, begun.team, begun.metric
    graph, spec = begun.graph, begun.spec
    with watch.stage("synthesis"):
        until = limits.of("synthesis")
        images = images_of_run(graph, spec, config, begun.images, place, progress, until)
    held: SyntheticSet | None = None
    if holds_out(config) and team.rank == 0:
        # Before there is a student: beside one, they would take the most memory of a run.
        with watch.stage("holdout"):
            held = held_out_of(graph, spec, config, progress)
    metrics: dict[str, Any] = {
        "teacher": begun.teacher.digest, "input": spec.model_dump(mode="json"),
        "images": images.digest(), "task": spec.task,
        **({"protocol": config.protocol_told} if config.protocol_told else {}),
        **({"notes": begun.notes} if begun.notes else {}),
    }  # fmt: skip
    if "cosine" in images.metadata:
        metrics["gradient_cosine"] = images.metadata["cosine"]
    if config.mixed:
        with watch.stage("allocation"):
            folds = plan.trainer is None or plan.trainer.folds
            metrics["allocation"] = allocated(
                graph, config, images, place, progress, branches=folds
            )
        config = config.with_layer_bits(metrics["allocation"]["layer_bits"])
    if plan.trainer is None:
        until = limits.of("reconstruction")
        found = quantize_weights(graph, config, plan, images, place, watch, progress, until)
        made = Made(found.student, found.folded, found.metrics)
    else:
        with watch.stage("training"):
            shown = progress if team.rank == 0 else silent
            made, images = _train(begun, config, images, place, shown, limits.of("training"))
    if team.rank != 0:
        # The first process measures and writes.
        both = structured(made.student), structured(graph)
        return Result(*both, spec, images, config, made.metrics, watch.seconds)
    made.settle()
    metrics |= {"images": images.digest(), **made.metrics}
    batches = _sizes_of(images) | dict(made.metrics.get("batches", {}))
    if not limits.leaves("export"):
        config = config.model_copy(update={"isolate": False})
    cut = cut_short(progress.cut()) if limits.whole.limited else []
    metrics |= evaluated(graph, made, config, images, held, metric, watch, progress)
    metrics["batches"] = batches | metrics.get("batches", {})
    metrics |= _notes(metrics, cut, spec)
    if place is not None:
        metrics |= _files_written(
            place, begun, made, config, images, watch, progress, limits.expected.get("export")
        )
        told = Told(
            job.asked, config, spec, graph, made.student, images, metrics, watch.seconds,
            environment(), weights_of(made.folded if plan.trainer is None else None),
        )  # fmt: skip
        _recorded(place, job.folder or place, told, watch, metric)
    both = structured(made.student), structured(graph)
    return Result(*both, spec, images, config, metrics, watch.seconds, job.folder)


def _foretold(
    begun: Opened,
    watch: Stopwatch,
    whole: Deadline,
    tell: Callable[[str], None] | None,
    *,
    written: bool,
    progress: Progress,
) -> Limits:
    """Foretell the run where somebody asks or its time is limited; what each stage has of it."""
    if begun.team.rank != 0 or not (whole.limited or tell is not None):
        return Limits(whole)
    with watch.stage("forecast"), waiting(progress, "forecast"):
        forecast = roughly if whole.limited else foretell
        found = forecast(begun, watch.seconds["capture"], written=written)
    check_limit({**found.seconds, **watch.seconds}, begun.config.max_seconds)
    if tell is not None:
        tell(str(found))
    return Limits(whole, found.seconds)


def _sizes_of(images: SyntheticSet) -> dict[str, Any]:
    """``synthesis``: the batch size of the images that were made, or from which image on which."""
    told = images.metadata
    size = told.get("batch_sizes", told.get("batch_size"))
    return {} if size is None else {"synthesis": size}


def _notes(metrics: Mapping[str, Any], cut: list[str], spec: InputSpec) -> dict[str, Any]:
    """``notes`` with what is weak about a student, and what its time limit cut."""
    weak = weak_points(metrics, spec.answers if spec.labelled else None)
    notes = [*metrics.get("notes", ()), *weak, *cut]
    return {"notes": notes} if notes else {}


def _passed(result: Result) -> Result:
    """`result`, unless its verdict is what the run was to fail at, or worse."""
    verdict, limit = result.verdict, result.config.fail_below
    if limit is not None and verdict is not None and verdict.reaches(limit):
        raise VerdictError(f"the verdict is {verdict.word}: {verdict.why}", result)
    return result


def _digest(images: SyntheticSet | None) -> str:
    return "" if images is None else images.digest()


def _files_written(  # noqa: PLR0913 - what a run hands over
    folder: Path,
    begun: Opened,
    made: Made,
    config: RunConfig,
    images: SyntheticSet,
    watch: Stopwatch,
    progress: Progress,
    expected: float | None,
) -> dict[str, Any]:
    """Write the student's files; what is told of them and of what a runtime makes of them."""
    with watch.stage("export"), waiting(progress, "export", expected):
        told = export_student(
            folder, made.student, images.spec, config, images, begun.teacher.digest
        )
        if begun.program is not None:
            own = begun.program is not begun.teacher.model
            told["teacher_file"] = save_teacher(begun.program, folder / TEACHER, own=own)
    if config.export:
        with watch.stage("runtime"):
            told["runtime"] = facts_of_run(
                folder / ONNX, begun.graph, images.spec, config.target,
                latency=config.latency, progress=progress,
            )  # fmt: skip
    return told


def _recorded(
    place: Path, folder: Path, told: Told, watch: Stopwatch, metric: Metric | None
) -> None:
    """Write the page and the record of a run, which is finished then, for `folder`."""
    if told.config.report:
        with watch.stage("report"):
            write_report(place, told, metric, name=folder)
    check_there([place / CONFIG])
    write_metrics(place / METRICS, dict(told.metrics), watch.seconds)
    shutil.rmtree(place / UNFINISHED, ignore_errors=True)


def _files(config: RunConfig) -> str:
    """Digests of files a run starts from, which may change under the same name."""
    options = config.synthesis.options
    named = (config.generator, options.get("path"), options.get("pool"))
    paths = [Path(name) for name in named if name is not None]
    return "".join(f" {sha256(path)}" for path in paths if path.is_file())


def _train(
    begun: Opened,
    config: RunConfig,
    images: SyntheticSet,
    folder: Path | None,
    progress: Progress,
    deadline: Deadline,
) -> tuple[Made, SyntheticSet]:
    """Fine-tune a student; with it the images to check it on, the generator's if none are given."""
    plan, spec, team = begun.plan, images.spec, begun.team
    assert plan.trainer is not None  # noqa: S101 - asked for by the caller
    assert isinstance(plan.rule, Calibrator)  # noqa: S101 - `make_plan` refuses others
    tuned = tune(
        plan.trainer, begun.graph, spec, config, plan.rule, images if len(images) else None,
        begun.companion, plan.reconstructor,
        checkpoint=None if folder is None else folder / UNFINISHED / TRAINING, progress=progress,
        team=team, deadline=deadline,
    )  # fmt: skip
    trained = tuned.trained
    if trained.generator is not None and not len(images):
        images = dreamt(trained.generator, begun.graph, spec, config)
    if folder is not None and team.rank == 0:
        save_images(images, folder)
        save_generators(trained, folder, config)
    corrected = {"bias_not_corrected": list(trained.not_corrected)} if config.bias_rule else {}
    rounding = {"reconstruction": list(trained.rounding)} if config.rounding else {}
    made = Made(
        fast_layout(trained.student),
        tuned.folded,
        {"training": trained.summary} | corrected | rounding,
        fast_layout(trained.last),
    )
    return made, images
