"""Working with what is on disk: finished runs."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datafree.config import Method, RunConfig, build
from datafree.errors import ConfigError, DatafreeError, ModelError, OutputError
from datafree.export.base import Exporter
from datafree.files import make_folder, refuse_existing
from datafree.graph.capture import capture, to_device
from datafree.graph.inputs import fed
from datafree.graph.integer import as_computed
from datafree.graph.outputs import structured, together
from datafree.images import SyntheticSet
from datafree.models import Teacher, load_teacher
from datafree.progress import Progress, silent
from datafree.runs.accuracy import Metric, accuracy, measure
from datafree.runs.choices import settled
from datafree.runs.exporting import about, summarize
from datafree.runs.fine_tuning import blank_student
from datafree.runs.folder import CONFIG, IMAGES, ONNX, STUDENT
from datafree.runs.keeping import TEACHER, kept_teacher
from datafree.runs.pipeline import Result
from datafree.runs.plan import exporter_for, make_method, resolve_device
from datafree.runs.stored import Stored, add_evaluation, check_hash, read_run
from datafree.runs.taking import take_state
from datafree.runs.trust import check_trusted
from datafree.tensors import fast_layout
from datafree.training.base import Trainer

_AGAIN = "bring that one back, or quantize again"


def restored(folder: Path, *, trust_code: bool = False) -> Result:
    """A finished run: teacher and student as they were.

    The teacher is the one the run kept, if it kept it, and else comes from its source.

    Args:
        folder: written by `datafree.runs.pipeline.run`; it may have been moved.
        trust_code: Python code that its configuration names may run.

    Raises:
        UntrustedCodeError: it names code, and `trust_code` is not set.
        ConfigError: `folder` holds no finished run, or its teacher has changed since.
        ModelError: its teacher can no longer be loaded from where it came.
    """
    return _loaded(folder, trust_code)[0]


def _loaded(folder: Path, trust_code: bool, given: Container[str] = ()) -> tuple[Result, Teacher]:
    """A finished run, and its teacher as it was loaded; `given` fields are not its own."""
    stored = read_run(folder)
    config, metrics = stored.config, stored.metrics
    typed = (*(name for name in ("metric", "decode") if name in given), *_not_run(folder))
    check_trusted(config, folder / CONFIG, trust_code=trust_code, given=typed)
    if config.mixed:
        config = config.with_layer_bits(metrics["allocation"]["layer_bits"])
    teacher = _teacher_of(stored)
    graph = capture(teacher.model, teacher.spec)
    config = settled(config, graph, given=config.image_file is not None).config
    trainer: Trainer | None = None
    if config.tuning is not None:
        trainer = make_method(config.tuning, "training", Trainer)
    student = blank_student(graph, teacher.spec, config, trainer)
    check_hash(folder, STUDENT, stored.record, _AGAIN)
    take_state(student, folder / STUDENT)
    # Sums are rounded by their order, which the layout of the weights decides.
    student = fast_layout(student)
    check_hash(folder, IMAGES, stored.record, _AGAIN)
    made = (folder / IMAGES).exists()
    images = SyntheticSet.load(folder / IMAGES) if made else SyntheticSet.none(teacher.spec)
    both = structured(student), structured(graph)
    seconds = dict(stored.record.get("seconds", {}))
    return Result(*both, teacher.spec, images, config, metrics, seconds, folder), teacher


def _not_run(folder: Path) -> tuple[str, ...]:
    """Fields whose code is not needed, since the run kept what it made."""
    return ("model",) if (folder / TEACHER).is_file() else ()


def _teacher_of(stored: Stored) -> Teacher:
    """The float network a run was made from.

    Raises:
        ConfigError: what is there is another one.
        ModelError: there is none any more.
    """
    folder, config = stored.folder, stored.config
    kept = kept_teacher(folder, config, stored.record)
    if kept is not None:
        return kept
    if config.in_memory:
        raise ModelError(
            f"{folder} was made from a network in memory and holds no {TEACHER}: quantize again,"
            " with keep_teacher=True"
        )
    try:
        teacher = load_teacher(config.teacher)
    except DatafreeError as error:
        raise ModelError(
            f"the network of {folder}, {config.model}, cannot be loaded, and no {TEACHER} was kept"
            f" ({error}); bring it back, or quantize again with --keep-teacher"
        ) from error
    if teacher.digest != stored.metrics["teacher"]:
        raise ConfigError(
            f"{config.model} has changed since {folder} was written: quantize it again"
        )
    return teacher


def evaluate_run(
    folder: Path,
    changes: Mapping[str, Any],
    *,
    onnx: bool = False,
    metric: Metric | None = None,
    trust_code: bool = False,
    progress: Progress = silent,
) -> Evaluation:
    """Measure a finished run's teacher and student on labelled images, and write it into the run.

    Args:
        folder: the run.
        changes: fields of `RunConfig` that replace the run's own (data, limit, device); None keeps.
        onnx: also run the exported file in onnxruntime.
        metric: a measure in memory, instead of that of the run.
        trust_code: Python code that the run's configuration names may run.
        progress: shown during the evaluation.

    Raises:
        DataError: neither the run nor `changes` name labelled data, or data that do not fit.
        ConfigError: `folder` holds no finished run.
        UntrustedCodeError: it names code, and `trust_code` is not set.
        ModelError: its teacher can no longer be loaded.
    """
    kept = {key: value for key, value in changes.items() if value is not None}
    typed = {*kept, *(() if metric is None else ("metric", "decode"))}
    try:
        result, teacher = _loaded(folder, trust_code, typed)
    except ModelError as error:
        if not (folder / ONNX).is_file():
            raise
        raise ModelError(
            f"{error}; datafree evaluate {folder / ONNX} --data ... measures its file alone"
        ) from error
    config = build(RunConfig, result.config.model_dump() | kept, "options")
    device = resolve_device(config.device)
    graph = to_device(together(result.teacher), device)
    predictors: dict[str, Any] = {
        "teacher": graph,
        "student": as_computed(to_device(together(result.student), device)),
    }
    if onnx:
        exporter: Exporter = make_method(Method(name="onnx"), "export", Exporter)
        predictors[ONNX] = fed(exporter.run(folder / ONNX), result.spec.inputs)
    metric = measure(config, teacher.boxes, metric)
    measured = accuracy(predictors, graph, result.spec, config, metric, progress)
    told = {
        "data": str(config.data), "limit": config.limit,
        "measure": config.metric if metric is None else getattr(metric, "__name__", "a function"),
        "networks": list(predictors), "device": str(device),
    }  # fmt: skip
    try:
        add_evaluation(folder, {**told, **measured})
    except OutputError as error:
        return Evaluation(config, measured, str(error))
    return Evaluation(config, measured)


@dataclass(frozen=True)
class Evaluation:
    """What a run reached on labelled images.

    Attributes:
        config: the configuration used.
        measured: as `datafree.runs.accuracy.accuracy` returns it.
        note: why it was not written into the run; empty where it was.
    """

    config: RunConfig
    measured: dict[str, Any]
    note: str = ""


def export_run(
    folder: Path,
    path: Path,
    *,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    force: bool = False,
    trust_code: bool = False,
) -> dict[str, Any]:
    """Write the student of a finished run to `path` and check it.

    Args:
        folder: of the run.
        path: file to write.
        format: name of the export format; None is the suffix of `path`.
        options: of the format, such as ``{"weight_type": "uint8"}`` of ONNX.
        force: replace a file that exists.
        trust_code: Python code that the run's configuration names may run.

    Raises:
        UntrustedCodeError: it names code, and `trust_code` is not set.
        OutputError: `path` is no regular file, or cannot be written.
        OutputExistsError: `path` exists and `force` was not given.
        ConfigError: an unknown format or option.
        ParityError: the file does not compute what the student computes.
    """
    exporter = exporter_for(path, format, options)
    refuse_existing(path, force=force)
    make_folder(path.parent, parents=True)
    result = restored(folder, trust_code=trust_code)
    config, notes = result.config, []
    if config.class_names is not None and not config.class_names.exists():
        notes = [f"Class names are left out: {config.class_names} is no longer there."]
        config = config.model_copy(update={"class_names": None})
    report = exporter.export(
        result.student,
        result.spec,
        path,
        check=result.images.images if len(result.images) else None,
        about=about(config, str(result.metrics["teacher"]), result.spec, result.images),
        force=force,
    )
    told = summarize(report)
    return {**told, "notes": [*told["notes"], *notes]}
