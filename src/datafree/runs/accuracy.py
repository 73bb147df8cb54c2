"""What networks reach on labelled data: top-1, mean IoU, mean average precision, or the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map

from datafree.config import InputSpec, RunConfig
from datafree.data import LabelledImages, Labels, open_labelled
from datafree.detection.boxes import Boxes, boxes_of
from datafree.detection.precision import MeanAveragePrecision, average_precision
from datafree.errors import ConfigError, DataError, UnknownNameError
from datafree.evaluate import Predictor, mean_iou, top1
from datafree.graph.outputs import rebuilt
from datafree.images import batch_size
from datafree.losses import parts
from datafree.progress import Progress, Step, silent
from datafree.runs.plan import resolve_device
from datafree.tensors import on_device
from datafree.user_code import module_at

Metric = Callable[[Any, Any], float]
"""What a network returned for all images, and their labels, to a number."""
NAMED = ("top1", "miou", "map")
"""Measures that come with the package."""


def accuracy(
    predictors: Mapping[str, Predictor],
    graph: fx.GraphModule | None,
    spec: InputSpec,
    config: RunConfig,
    metric: Metric | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """How right `predictors` are on the labelled data of `config`.

    Args:
        predictors: by name, of all that the network returns side by side.
        graph: one of them, which knows how that is put together; without one a measure of the
            user's gets the tensor, or a tuple of several.
        spec: of the network.
        config: names the data and perhaps a measure.
        metric: a measure in memory, instead of that of `config`, see `measure`.
        progress: shown meanwhile.

    Returns:
        ``top1``, ``miou``, ``map`` (percent) or ``metric`` by predictor, and ``test_images``.

    Raises:
        DataError: `config` names no data, or data that cannot be read or do not fit; or the network
            returns numbers and there is no measure for them.
        ConfigError: the measure cannot be found, or fails.
    """
    data, name, metric = labelled_images(config, spec, metric)
    device = resolve_device(config.device)
    size = config.images_per_batch or batch_size(spec)
    batches = ((on_device(x, device), y) for x, y in data.batches(size))
    own = dict(predictors)
    with progress("evaluation", len(data)) as step:
        calls = {key: _rebuilt(graph, predict, spec) for key, predict in own.items()}
        if isinstance(metric, MeanAveragePrecision):
            found = _by_boxes(calls, data, batches, metric, step)
        elif metric is not None:
            found = _by_metric(calls, data, size, device, metric)
            step(len(data))
        elif name == "miou":
            found = mean_iou(own, batches, spec.outputs, step).top1
        else:
            found = top1(own, batches, step, spec.outputs).top1
    return {name: found, "test_images": len(data)}


def labelled_images(
    config: RunConfig, spec: InputSpec, metric: Metric | None = None
) -> tuple[LabelledImages, str, Metric | None]:
    """The labelled images of a run, what is measured on them, and the measure of the user's.

    Raises:
        DataError: there are none, or they do not fit the network and what is measured.
        ConfigError: the measure cannot be found.
    """
    if config.data is None:
        raise DataError(
            "no labelled data given: pass --data with a .npz, an image folder or CIFAR batches"
        )
    metric = measure(config, None, metric)
    name, labelled = _measured(spec, config.metric, metric)
    stretch = isinstance(metric, MeanAveragePrecision) and metric.stretch
    data = open_labelled(config.data, spec, config.limit, labelled, stretch=stretch)
    return data, name, metric


def measure(
    config: RunConfig, boxes: MeanAveragePrecision | None, metric: Metric | None = None
) -> Metric | None:
    """What is measured, where it is no measure of classes.

    Args:
        config: names a measure, a way to boxes, or neither.
        boxes: what measures the teacher's boxes, where it is a detector that knows them.
        metric: a measure in memory, which comes before all others.

    Raises:
        ConfigError: a function cannot be found, or goes with another measure.
    """
    if metric is not None:
        return metric
    if config.decode is not None and config.metric not in (None, "map"):
        raise ConfigError(
            f"decode makes boxes, which {config.metric} does not take: use metric map"
        )
    if config.decode is not None:
        return MeanAveragePrecision(
            _function_at(config.decode, "what makes boxes", "what the network returns for a batch")
        )
    if config.metric == "map" or (config.metric is None and boxes is not None):
        return boxes or MeanAveragePrecision()
    if config.metric is None or config.metric in NAMED:
        return None
    if ":" not in config.metric:
        raise UnknownNameError("measure", config.metric, [*NAMED, "file.py:function"])
    return _function_at(config.metric, "a measure", "what the network returns and the labels")


def _function_at(source: str, what: str, takes: str) -> Callable[..., Any]:
    """The function ``file.py:function`` or ``module:function``.

    Raises:
        ConfigError: there is none.
    """
    place, _, name = source.rpartition(":")
    try:
        found: Any = getattr(module_at(place), name, None) if place else None
    except Exception as error:
        raise ConfigError(f"cannot import {place}: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ConfigError(
            f"there is no function {source}: name {what} as file.py:function, which takes {takes}"
        )
    return cast("Callable[..., Any]", found)


def _measured(spec: InputSpec, asked: str | None, metric: Metric | None) -> tuple[str, Labels]:
    """What a measure is called, and the labels it takes."""
    if isinstance(metric, MeanAveragePrecision):
        return "map", "boxes"
    if metric is not None:
        return "metric", "any"
    dense = spec.principal.kind == "dense_classes"
    if (asked == "top1" and not spec.labelled) or (asked == "miou" and not dense):
        needed = "one class for an image" if asked == "top1" else "a class for every position"
        raise ConfigError(
            f"{asked} measures networks that tell {needed}, and this one tells {spec.task}: leave"
            " out metric, or give task where that is guessed wrong"
        )
    if spec.labelled:
        return "top1", "classes"
    if dense:
        return "miou", "maps"
    raise DataError(
        f"this network returns numbers ({spec.task}), and what is right of them only you know: give"
        " metric, a function of what it returns and the labels, as file.py:function; of a detector"
        " give decode, a function that makes boxes of it"
    )


def _by_boxes(
    calls: Mapping[str, Callable[[Tensor], Any]],
    data: LabelledImages,
    batches: Iterable[tuple[Tensor, Tensor]],
    metric: MeanAveragePrecision,
    step: Step,
) -> dict[str, float]:
    """Mean average precision; boxes of a batch are kept, what they were made of is not."""
    found: dict[str, list[Boxes]] = {name: [] for name in calls}
    with torch.inference_mode():
        for images, labels in batches:
            for name, call in calls.items():
                returned = tree_map(_on_processor, call(images))
                found[name] += metric.found(returned, len(labels))
            step(len(labels))
    labelled = boxes_of(data.labels)
    return {name: average_precision(boxes, labelled).mean for name, boxes in found.items()}


def _rebuilt(
    graph: fx.GraphModule | None, predict: Predictor, spec: InputSpec
) -> Callable[[Tensor], Any]:
    """`predict` with what it returns put together as its network does."""
    if graph is not None:
        return rebuilt(graph, predict)

    def call(images: Tensor) -> Any:
        found = parts(predict(images), spec.heads)
        return found[0] if len(found) == 1 else tuple(found)

    return call


def _by_metric(
    calls: Mapping[str, Callable[[Tensor], Any]],
    data: LabelledImages,
    size: int,
    device: torch.device,
    metric: Metric,
) -> dict[str, float]:
    """`metric` of all that every predictor returns, on the processor."""
    found: dict[str, float] = {}
    for name, call in calls.items():
        returned: list[Any] = []
        with torch.inference_mode():
            for images, _ in data.batches(size):
                returned.append(tree_map(_on_processor, call(on_device(images, device))))
        whole = tree_map(_joined, returned[0], *returned[1:])
        labels = boxes_of(data.labels) if data.boxed else data.labels
        try:
            found[name] = float(metric(whole, labels))
        except Exception as error:
            where = getattr(metric, "__name__", type(metric).__name__)
            told = "a list of boxes" if data.boxed else f"labels {tuple(data.labels.shape)}"
            raise ConfigError(
                f"the measure {where} failed: {type(error).__name__}: {error}; it takes what the"
                f" network returns for all images, and {told}"
            ) from error
    return found


def _on_processor(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


def _joined(*parts: Any) -> Any:
    first = parts[0]
    return torch.cat(parts) if isinstance(first, Tensor) and first.ndim else first
