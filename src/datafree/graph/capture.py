"""From any model to the canonical graph: `torch.export`, then standard layers for aten calls.

The result is a plain `torch.fx.GraphModule` that equals the original bit for bit at any batch size,
autocast aside, whose lower precision is left out.
Convolutions, linear layers, batch norms and activation functions are `call_module` nodes under
their original module paths and share the original tensors; everything else stays as aten calls.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from datafree.config import InputSpec
from datafree.errors import CaptureError
from datafree.graph.constants import fold_constants
from datafree.graph.lift import lift
from datafree.graph.regions import open_regions
from datafree.graph.sizes import localise_sizes

_TRACED_BATCH = 2
_CHECKED_BATCH = 3


def capture(model: nn.Module | ExportedProgram, spec: InputSpec) -> fx.GraphModule:
    """The canonical graph of `model`, in eval mode, with parameters that need no gradient.

    Args:
        model: a module with one image batch in and one tensor out, or a program from `torch.export`
            with a dynamic batch. It is not changed; its tensors are shared.
        spec: its input.

    Returns:
        A graph module from (B, C, H, W) normalised images to (B, classes), for any B of at least 1.

    Raises:
        CaptureError: the model cannot be exported with a dynamic batch (the message names the line
            that refuses), or its graph does not compute what the model computes.
    """
    program = model if isinstance(model, ExportedProgram) else _export(model, spec)
    try:
        original = open_regions(program.module(check_guards=False))
    except RuntimeError as error:
        raise CaptureError(
            f"torch cannot rebuild the exported program: {_first_line(error)}; a submodule may have"
            " a name that torch.fx uses itself, such as graph or code: rename it"
        ) from error
    lifted = lift(localise_sizes(fold_constants(original)))
    _check_equal(original, lifted, spec)
    return lifted


def to_device(graph_module: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """A copy of `graph_module` on `device`, devices baked into calls included."""
    moved = copy.deepcopy(graph_module).to(device)
    for node in moved.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": device}
    moved.recompile()
    return moved


def _export(model: nn.Module, spec: InputSpec) -> ExportedProgram:
    training = {module: module.training for module in model.modules()}
    tensor = next(iter(model.parameters()), torch.zeros(()))
    example = torch.zeros(_TRACED_BATCH, *spec.shape, device=tensor.device)
    try:
        model.eval()
        with torch.no_grad(), warnings.catch_warnings():
            # Recurrent layers list their weights anew in each call; nothing of it is lost.
            warnings.filterwarnings("ignore", "The tensor attributes? .* assigned during export")
            return torch.export.export(
                model, (example,), dynamic_shapes=({0: Dim("batch", min=1)},), strict=False
            )
    except Exception as error:
        raise CaptureError(_explain(error)) from error
    finally:
        for module, was in training.items():
            module.training = was


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _explain(error: Exception) -> str:
    if isinstance(error, TypeError) and "missing a required argument" in str(error):
        return "the model takes several inputs; wrap it in a module that takes one image batch"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    at = next((line for line in reversed(lines) if line.startswith("File ")), "")
    if not at and error.__traceback__ is not None:
        frame = error.__traceback__
        while frame.tb_next is not None:
            frame = frame.tb_next
        at = f"File {frame.tb_frame.f_code.co_filename}, line {frame.tb_lineno}"
    reason = lines[0] if lines else type(error).__name__
    return (
        f"torch.export refuses this model with a batch of any size: {reason} ({at}); write that"
        " line so that it does not depend on the batch size or on values (x.flatten(1) for"
        " x.view(8, -1), torch.where for if), or export it yourself and pass the .pt2 file"
    )


def _check_equal(original: nn.Module, lifted: nn.Module, spec: InputSpec) -> None:
    tensor = next(iter(lifted.parameters()), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_CHECKED_BATCH, *spec.shape, generator=generator).to(tensor.device)
    # torch sums recurrent layers and attention in another order where weights ask for gradients.
    weights = {name: weight.detach() for name, weight in original.named_parameters()}
    with torch.no_grad():
        try:
            expected: Any = torch.func.functional_call(original, weights, (images.clone(),))
        except Exception as error:
            raise CaptureError(
                f"the exported program refuses a batch of {_CHECKED_BATCH}:"
                f" {_first_line(error)}; export"
                ' it with dynamic_shapes=({0: torch.export.Dim("batch")},)'
            ) from error
        actual = lifted(images.clone())
    if not isinstance(expected, Tensor) or expected.ndim != 2:
        raise CaptureError(
            "the model must return one tensor (batch, classes); wrap it in a module that does"
        )
    if not torch.equal(expected, actual):
        difference = (expected - actual).abs().max().item()
        raise CaptureError(
            f"the captured graph differs from the model by {difference:.3g}: the model writes into"
            " a tensor that another part of it still reads; replace in-place operations on views"
        )
