"""A student's ONNX file by itself, without the run it comes from: measured on labelled images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datafree.config import InputSpec, Method, RunConfig, build
from datafree.config.inputs import Input, packed_fields
from datafree.config.outputs import Output, Task
from datafree.errors import ConfigError, ModelError
from datafree.export.base import Exporter
from datafree.graph.inputs import fed
from datafree.models.outputs import described
from datafree.progress import Progress, silent
from datafree.runs.accuracy import Metric, accuracy, measure
from datafree.runs.plan import make_method

_SHOWN = 2  # black images that tell what the file returns
_TASKS: dict[str, Task] = {
    "classes": "classes", "one logit": "classes", "dense classes": "dense",
    "detection heads": "values", "regression or embedding": "values",
}  # fmt: skip
"""What a user would say of a network, by `InputSpec.task`."""


def evaluate_file(
    path: Path,
    changes: Mapping[str, Any],
    *,
    metric: Metric | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """What a student's file reaches on labelled images, in onnxruntime with exact products.

    Args:
        path: ONNX file. One that datafree wrote tells its input itself; of another `changes` have
            ``mean`` and ``std``, and ``input_shape`` where the file leaves it open.
        changes: fields of `RunConfig`: data, limit, metric, and what is said of the input.
        metric: a measure in memory.
        progress: shown meanwhile.

    Returns:
        As `datafree.runs.accuracy.accuracy`, of the file under its name.

    Raises:
        ConfigError: the file does not say what it takes, and neither do `changes`.
        DataError: no labelled data, or data that do not fit.
        ExportError: onnxruntime cannot load or run the file.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    config = build(RunConfig, {**given, "model": path.name}, "options")
    if not path.is_file():
        raise ConfigError(f"there is no file {path}: give a student's ONNX file, or a run's folder")
    exporter: Exporter = make_method(Method(name="onnx"), "export", Exporter)
    call = exporter.run(path)
    file = _opened(path)
    inputs, fields = _input(file, config)
    spec = build(InputSpec, {**fields, "classes": 1}, f"input of {path}")
    heads, plain = _returned(file, spec, config)
    first = next((head for head in heads if head.kind != "values"), heads[0])
    labelled = plain and first.kind in ("classes", "one_logit")
    spec = spec.model_copy(
        update={
            "classes": 1 if first.kind == "values" else first.shape[0],
            "outputs": () if labelled else heads,
        }
    )

    whole = fed(call, inputs)

    def predict(images: Tensor) -> Tensor:
        return whole(images.cpu())

    if file.batch is not None:
        config = config.model_copy(update={"images_per_batch": file.batch})
    metric = measure(config, None, metric)
    return accuracy({path.name: predict}, None, spec, config, metric, progress)


@dataclass(frozen=True)
class _File:
    """What an ONNX file says of itself.

    `shape` is that of one image, None where it is left open; `batch` the one it is made for, None
    for any; `outputs` the shapes of one image's tensors by name.
    """

    path: Path
    told: Mapping[str, str]
    shape: tuple[int, ...] | None
    batch: int | None
    outputs: Mapping[str, tuple[int, ...]]


def _opened(path: Path) -> _File:
    import onnx

    model = onnx.load(path, load_external_data=False)
    told = {entry.key: entry.value for entry in model.metadata_props}
    weights = {tensor.name for tensor in model.graph.initializer}
    batch, *shape = _sizes(next(v for v in model.graph.input if v.name not in weights))
    fixed = tuple(size for size in shape if size is not None)
    outputs: dict[str, tuple[int, ...]] = {}
    for value in model.graph.output:
        _, *sizes = _sizes(value)
        outputs[value.name] = tuple(size for size in sizes if size is not None)
        if len(outputs[value.name]) < len(sizes):
            raise ConfigError(
                f"{path} leaves the size of what it returns open: evaluate the run it comes from"
            )
    return _File(path, told, fixed if len(fixed) == len(shape) else None, batch, outputs)


def _sizes(value: Any) -> list[int | None]:
    """Sizes of a tensor, None where they are open."""
    dims = value.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") else None for d in dims] or [None]


def _input(file: _File, config: RunConfig) -> tuple[tuple[Input, ...], dict[str, Any]]:
    """Inputs where it takes something else than an image, and fields of an `InputSpec`."""
    told, path = file.told, file.path
    if "inputs" in told:
        inputs = tuple(build(Input, one, f"input of {path}") for one in json.loads(told["inputs"]))
        return inputs, packed_fields(inputs)
    own = {name: json.loads(told.get(f"input_{name}", "null")) for name in ("shape", "mean", "std")}
    mean, std = config.mean or own["mean"], config.std or own["std"]
    shape = config.input_shape or own["shape"] or file.shape
    missing = [name for name, value in (("--mean", mean), ("--std", std)) if value is None]
    if missing:
        raise ConfigError(
            f"{path} does not say how its images are normalised: give {' and '.join(missing)}"
            " (0 and 1 if they are not)"
        )
    if shape is None:
        raise ConfigError(
            f"{path} does not say what size its images have: give it with --input-shape C,H,W"
        )
    return (), {"shape": shape, "mean": mean, "std": std}


def _returned(file: _File, spec: InputSpec, config: RunConfig) -> tuple[tuple[Output, ...], bool]:
    """What the file returns, as `datafree.models.outputs.described` tells it."""
    tensors = {name: torch.zeros(_SHOWN, *shape) for name, shape in file.outputs.items()}
    returned = tensors if len(tensors) > 1 else next(iter(tensors.values()))
    task = config.task or _TASKS.get(file.told.get("task", ""))
    try:
        image = () if spec.inputs else spec.shape
        return described(returned, _SHOWN, image, task, str(file.path))
    except ModelError as error:
        raise ConfigError(str(error)) from None
