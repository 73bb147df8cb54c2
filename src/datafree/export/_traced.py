"""A student as an ONNX graph: tracing, and what every written graph says of itself."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

import onnx
import torch
from onnx import helper
from torch import fx

from datafree.bounds import first_line
from datafree.config import InputSpec
from datafree.errors import ExportError
from datafree.export.base import About, trace

OPSET = 21
IR_VERSION = 10
INPUT = "images"
_SIDES = ("height", "width")


def traced(marked: fx.GraphModule, spec: InputSpec, *, any_size: bool = False) -> onnx.ModelProto:
    """`marked`, a student with markers for quantizers, as ONNX.

    Args:
        marked: on the CPU.
        spec: its input.
        any_size: leave height and width of the images open.

    Raises:
        ExportError: torch's exporter refuses it, or it is bound to one size of images.
    """
    try:
        with _quiet():
            exported = torch.onnx.export(
                trace(marked, spec, any_size=any_size),
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                input_names=input_names(spec),
                output_names=output_names(spec),
            )
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"this network cannot be written as ONNX: {_reason(error)}") from error
    assert exported is not None  # noqa: S101 - a program is returned whenever dynamo=True
    model = exported.model_proto
    found = {opset.domain: opset.version for opset in model.opset_import}[""]
    if found != OPSET:
        raise ExportError(
            f"this network cannot be written as ONNX opset {OPSET}: torch falls back to {found}"
        )
    return model


def input_names(spec: InputSpec) -> list[str]:
    """Names of a file's inputs: `images`, or those of the network's arguments."""
    return [one.name for one in spec.inputs] or [INPUT]


def output_names(spec: InputSpec) -> list[str]:
    """Names of a file's outputs: `logits`, or where they stand in what the network returns."""
    taken = input_names(spec)
    return [f"{head.name}_out" if head.name in taken else head.name for head in spec.heads]


@contextmanager
def _quiet() -> Generator[None]:
    """Hold back what torch 2.13's exporter says about itself."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)  # torchvision's operators are missing, and not needed
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning
            )
            yield
    finally:
        logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """The innermost cause in one line: the exporter wraps it in a page of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def strip(model: onnx.ModelProto) -> None:
    """Remove what tracing leaves behind: source paths of this machine, intermediate shapes."""
    graph = model.graph
    del graph.value_info[:], graph.metadata_props[:], model.metadata_props[:]
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        del item.metadata_props[:]
        item.doc_string = ""
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    for dim, name in zip(graph.input[0].type.tensor_type.shape.dim[2:], _SIDES, strict=False):
        if dim.dim_param:
            dim.dim_param = name


def describe(model: onnx.ModelProto, spec: InputSpec, about: About) -> None:
    """Write down who made the file, its input, and what is said of the student."""
    try:
        release = version("datafree")
    except PackageNotFoundError:
        release = ""
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "datafree", release
    model.graph.name = "student"
    if spec.inputs:
        told = {"inputs": json.dumps([one.model_dump(mode="json") for one in spec.inputs])}
    else:
        told = {
            "input_shape": json.dumps(list(spec.shape)),
            "input_mean": json.dumps(list(spec.mean)),
            "input_std": json.dumps(list(spec.std)),
            "input_channels": "RGB" if spec.shape[0] == 3 else str(spec.shape[0]),
        }
    properties = {**told, "task": spec.task}
    helper.set_model_props(model, {**properties, **about})
