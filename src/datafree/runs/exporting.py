"""What a run writes of its student, and what is told of every file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import fx

from datafree.calibrators.base import RangeRule
from datafree.config import InputSpec, Method, RunConfig
from datafree.errors import ConfigError, ExportError
from datafree.export.base import Exporter, ExportReport, check_any_size
from datafree.graph.capture import to_device
from datafree.images import SyntheticSet
from datafree.reconstruction.base import Reconstructor
from datafree.runs.folder import save_student
from datafree.runs.plan import make_method
from datafree.synthesis.base import Synthesizer
from datafree.targets import load_target
from datafree.training.base import Trainer

METHODS: dict[str, tuple[str, type[Any]]] = {
    "images": ("synthesis", Synthesizer), "calibrator": ("calibrators", RangeRule),
    "rounding": ("reconstruction", Reconstructor), "training": ("training", Trainer),
}  # fmt: skip
"""Package and base of the methods of a run, by what they do."""


def export_student(
    folder: Path,
    student: fx.GraphModule,
    spec: InputSpec,
    config: RunConfig,
    images: SyntheticSet,
    digest: str,
) -> dict[str, Any]:
    """Write the student of a run and, unless it wants no export, ONNX and `.pt2` of it.

    Args:
        folder: of the run.
        student: quantized.
        spec: its input.
        config: of the run.
        images: the files are checked on.
        digest: of the teacher.

    Returns:
        What is told of the files, by format; of that of the target, why there is none.
    """
    save_student(student, folder)
    if not config.export:
        return {}
    student = to_device(student, torch.device("cpu"))
    check = images.images if len(images) else None
    told = about(config, digest, spec, images)

    def written(name: str, **options: Any) -> dict[str, Any]:
        exporter: Exporter = make_method(Method(name=name, options=options), "export", Exporter)
        path = folder / f"student.{name}"
        report = exporter.export(student, spec, path, check=check, about=told, force=True)
        return summarize(report)

    found = {"onnx": written("onnx", **onnx_options(config)), "pt2": written("pt2")}
    own = load_target(config.target).suffix.removeprefix(".")
    if own not in found:
        try:
            found[own] = written(own)
        except ExportError as error:  # the run has its other files
            found[own] = {"line": str(error), "notes": []}
    return found


def onnx_options(config: RunConfig) -> dict[str, Any]:
    """Hyper-parameters of the ONNX file of a run."""
    return {name: getattr(config, name) for name in ("weight_type", "input_uint8", "any_size")}


def check_export(graph: fx.GraphModule, spec: InputSpec, config: RunConfig) -> None:
    """Refuse what can be known of a run's files before there is a student.

    Args:
        graph: the float network.
        spec: its input.
        config: of the run.

    Raises:
        ConfigError: the class names cannot be read, or are too many or too few.
        ExportError: the network cannot take images of any size.
    """
    class_names(config, spec)
    for option in ("any_size", "input_uint8"):
        if spec.inputs and getattr(config, option):
            names = ", ".join(one.name for one in spec.inputs)
            raise ConfigError(
                f"{option} is for networks of one image, and this one takes {names}: leave it out"
            )
    if config.any_size and config.export:
        check_any_size(to_device(graph, torch.device("cpu")), torch.zeros(1, *spec.shape))


def about(
    config: RunConfig, digest: str, spec: InputSpec, images: SyntheticSet | None = None
) -> dict[str, str]:
    """What the files of a run say of its student, by name.

    Args:
        config: of the run. Of its paths only the last part is told.
        digest: SHA-256 of the teacher's parameters and buffers.
        spec: the student's input.
        images: of the run; real ones are called so, whatever method was to make some.

    Raises:
        ConfigError: the file of class names cannot be read, or has another number of them.
    """
    real = images is not None and images.metadata.get("method") == "real"
    chosen = {
        "images": None if real else config.synthesis, "calibrator": config.calibration,
        "rounding": config.rounding, "training": config.tuning,
    }  # fmt: skip
    methods = {kind: method for kind, method in chosen.items() if method is not None}
    cited = (_citation(kind, method) for kind, method in methods.items())
    names = class_names(config, spec)
    return {
        "scheme": "float" if config.float_student else config.scheme.label,
        "target": config.target,
        "policy": str(config.policy),
        **({"protocol": config.protocol_told} if config.protocol_told else {}),
        **({"images": "real"} if real else {}),
        **{kind: method.name for kind, method in methods.items()},
        "seed": str(config.seed),
        "teacher": PurePath(config.model).name,
        "teacher_sha256": digest,
        **({} if names is None else {"class_names": json.dumps(names, ensure_ascii=False)}),
        "citation": " ".join(dict.fromkeys(text for text in cited if text)),
    }  # fmt: skip


def class_names(config: RunConfig, spec: InputSpec) -> list[str] | None:
    """Names of the classes, a line for each in their file; None where there is no file.

    Raises:
        ConfigError: it cannot be read, or has another number of lines than there are classes.
    """
    if config.class_names is None:
        return None
    try:
        text = config.class_names.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read class names from {config.class_names}: {error}") from None
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if len(names) != spec.answers:
        raise ConfigError(
            f"{config.class_names} has {len(names)} names, the network {spec.answers} classes:"
            " give one name per line"
        )
    return names


def _citation(kind: str, method: Method) -> str:
    """The paper of a method; nothing of those without one."""
    package, base = METHODS[kind]
    said = str(make_method(method, package, base).citation)
    return "" if said.startswith("Common practice") else said


def summarize(report: ExportReport) -> dict[str, Any]:
    """An export report as JSON values: one line for people, the numbers behind it, notes."""
    weights = "weights in float"  # of a student that was distilled and not quantized
    if report.float_weight_bytes > report.unquantized_bytes:
        share = report.weight_bytes / report.float_weight_bytes
        weights = f"weights {100 * share:.1f} % of float"
    return {
        "line": f"{report.bytes / 1000:.0f} kB, {weights}; {report.parity}",
        "bytes": report.bytes,
        "weight_bytes": report.weight_bytes,
        "float_weight_bytes": report.float_weight_bytes,
        "unquantized_bytes": report.unquantized_bytes,
        "opset": report.opset,
        "parity": asdict(report.parity),
        "saturates": report.saturates,
        "notes": list(report.notes),
    }
