"""Working with what is on disk: finished runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from datafree.config import Method, RunConfig, build, load_config
from datafree.errors import ConfigError, OutputExistsError
from datafree.export.base import Exporter
from datafree.graph.capture import capture, to_device
from datafree.graph.inputs import fed
from datafree.graph.outputs import structured, together
from datafree.images import SyntheticSet
from datafree.models import Teacher, load_teacher
from datafree.progress import Progress, silent
from datafree.quant.modules import QUANTIZED
from datafree.runs.accuracy import accuracy, measure
from datafree.runs.choices import settled
from datafree.runs.exporting import about, summarize
from datafree.runs.fine_tuning import blank_student
from datafree.runs.folder import IMAGES, ONNX, STUDENT
from datafree.runs.pipeline import Result
from datafree.runs.plan import exporter_for, make_method, resolve_device
from datafree.tensors import fast_layout
from datafree.training.base import Trainer


def load_run(folder: Path) -> Result:
    """A finished run: teacher and student as they were.

    Args:
        folder: written by `datafree.runs.pipeline.run`.

    Returns:
        The result without metrics.

    Raises:
        ConfigError: `folder` holds no finished run, or its teacher has changed since.
        ModelError: its teacher can no longer be loaded from where it came.
    """
    return _loaded(folder)[0]


def _loaded(folder: Path) -> tuple[Result, Teacher]:
    """A finished run, and its teacher as it was loaded."""
    config = load_config(folder / "config.yaml")
    digest, layer_bits = _measured(folder)
    if config.mixed:
        config = config.with_layer_bits(layer_bits)
    teacher = load_teacher(config.teacher)
    if teacher.digest != digest:
        raise ConfigError(
            f"{config.model} has changed since {folder} was written: quantize it again"
        )
    graph = capture(teacher.model, teacher.spec)
    config = settled(config, graph, given=config.image_file is not None).config
    trainer: Trainer | None = None
    if config.tuning is not None:
        trainer = make_method(config.tuning, "training", Trainer)
    student = blank_student(graph, teacher.spec, config, trainer)
    try:
        state = load_file(folder / STUDENT)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{folder} holds no finished student: {error}") from None
    for path, layer in student.named_modules():
        # Bias correction gives a bias to layers that had none.
        if isinstance(layer, QUANTIZED) and layer.bias is None and f"{path}.bias" in state:
            layer.bias = nn.Parameter(state[f"{path}.bias"], requires_grad=False)
    if set(student.state_dict()) != set(state):
        raise ConfigError(f"{folder / STUDENT} does not fit the teacher {config.model}")
    for name, value in state.items():
        owner, _, leaf = name.rpartition(".")
        # A range's shape is the calibrator's choice: such buffers are replaced, not copied into.
        if leaf in ("scale", "zero_point"):
            setattr(student.get_submodule(owner), leaf, value)
    student.load_state_dict(state)
    # Sums are rounded by their order, which the layout of the weights decides.
    student = fast_layout(student)
    made = (folder / IMAGES).exists()
    images = SyntheticSet.load(folder / IMAGES) if made else SyntheticSet.none(teacher.spec)
    both = structured(student), structured(graph)
    return Result(*both, teacher.spec, images, config, metrics={}, folder=folder), teacher


def evaluate_run(
    folder: Path, changes: dict[str, Any], *, onnx: bool = False, progress: Progress = silent
) -> tuple[RunConfig, dict[str, Any]]:
    """What a finished run's teacher and student reach on labelled images.

    Args:
        folder: the run.
        changes: fields of `RunConfig` that replace the run's own (data, limit, device); None keeps.
        onnx: also run the exported file in onnxruntime.
        progress: shown during the evaluation.

    Returns:
        The configuration used, and what `datafree.runs.accuracy.accuracy` found.

    Raises:
        DataError: neither the run nor `changes` name labelled data, or data that do not fit.
        ConfigError: `folder` holds no finished run.
    """
    result, teacher = _loaded(folder)
    kept = {key: value for key, value in changes.items() if value is not None}
    config = build(RunConfig, result.config.model_dump() | kept, "options")
    device = resolve_device(config.device)
    graph = to_device(together(result.teacher), device)
    predictors: dict[str, Any] = {
        "teacher": graph,
        "student": to_device(together(result.student), device),
    }
    if onnx:
        exporter: Exporter = make_method(Method(name="onnx"), "export", Exporter)
        predictors[ONNX] = fed(exporter.run(folder / ONNX), result.spec.inputs)
    metric = measure(config, teacher.boxes)
    return config, accuracy(predictors, graph, result.spec, config, metric, progress)


def export_run(
    folder: Path,
    path: Path,
    *,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write the student of a finished run to `path` and check it.

    Args:
        folder: of the run.
        path: file to write.
        format: name of the export format; None is the suffix of `path`.
        options: of the format, such as ``{"weight_type": "uint8"}`` of ONNX.
        force: replace a file that exists.

    Raises:
        OutputExistsError: `path` exists and `force` was not given.
        ConfigError: an unknown format or option.
        ParityError: the file does not compute what the student computes.
    """
    exporter = exporter_for(path, format, options)
    _refuse_existing(path, force)
    result = load_run(folder)
    report = exporter.export(
        result.student,
        result.spec,
        path,
        check=result.images.images if len(result.images) else None,
        about=about(result.config, _measured(folder)[0], result.spec),
        force=force,
    )
    return summarize(report)


def _measured(folder: Path) -> tuple[str, dict[str, int]]:
    """Digest of a finished run's teacher, and the bits that were allocated to its layers."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        allocation = metrics["results"].get("allocation", {"layer_bits": {}})
        return str(metrics["results"]["teacher"]), dict(allocation["layer_bits"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"{folder} holds no finished run: quantize with the same options goes on with it"
        ) from None


def _refuse_existing(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise OutputExistsError(
            f"{path} exists: choose another output, or pass --force to replace it"
        )
