"""From any model to the canonical graph: `torch.export`, then standard layers for aten calls.

The result is a plain `torch.fx.GraphModule` that equals the original at any batch size, autocast
aside, whose lower precision is left out: bit for bit, but where torch adds the same numbers in
another order, up to a millionth of the largest.
Convolutions, linear layers, batch norms and activation functions are `call_module` nodes under
their original module paths and share the original tensors; everything else stays as aten calls.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import TreeSpec, tree_leaves

from datafree.config import InputSpec
from datafree.errors import CaptureError
from datafree.graph.constants import fold_constants
from datafree.graph.inputs import joined_inputs
from datafree.graph.lift import lift
from datafree.graph.outputs import PER_IMAGE, Structure, joined
from datafree.graph.overflow import check_norms, source_of_overflow
from datafree.graph.regions import open_regions
from datafree.graph.sizes import localise_sizes
from datafree.losses import unpack
from datafree.tensors import shared_copy

_TOLERANCE = 1e-6  # of the largest number that is returned
_TRACED_BATCH = 2
_CHECKED_BATCH = 3


def capture(model: nn.Module | ExportedProgram, spec: InputSpec) -> fx.GraphModule:
    """The canonical graph of `model`, in eval mode, with parameters that need no gradient.

    Args:
        model: a module with batches in, or a program from `torch.export` with a dynamic
            batch. It is not changed; its tensors are shared.
        spec: what it takes and returns.

    Returns:
        A graph module from (B, C, H, W) normalised images to (B, classes), for any B of at least 1;
        of a network that takes something else, from all inputs packed (`datafree.graph.inputs`), of
        one that returns something else, to all that it returns side by side
        (`datafree.graph.outputs`).

    Raises:
        CaptureError: the model cannot be exported with a dynamic batch (the message names the line
            that refuses), its graph does not compute what the model computes, or its numbers leave
            float32 (the message names the layer).
    """
    program = model if isinstance(model, ExportedProgram) else exported(model, spec)
    try:
        original = open_regions(program.module(check_guards=False))
    except RuntimeError as error:
        raise CaptureError(
            f"torch cannot rebuild the exported program: {_first_line(error)}; a submodule may have"
            " a name that torch.fx uses itself, such as graph or code: rename it"
        ) from error
    lifted = lift(localise_sizes(fold_constants(original)))
    joined_inputs(lifted, spec.inputs)
    check_norms(lifted)
    pairs = _checked(original, lifted, spec)
    _put_together(original, lifted, pairs, spec, program.call_spec.out_spec)
    return lifted


def to_device(graph_module: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """A copy of `graph_module` on `device`, devices baked into calls included.

    Where `graph_module` is there already, its memory is shared.
    """
    moved = shared_copy(graph_module).to(device)
    for node in moved.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": device}
    moved.recompile()
    return moved


def exported(model: nn.Module, spec: InputSpec) -> ExportedProgram:
    """`model` as a program of `torch.export` for batches of any size, in eval mode.

    Args:
        model: not changed; its tensors are shared.
        spec: what it takes.

    Raises:
        CaptureError: it cannot be exported so; the message names the line that refuses.
    """
    training = {module: module.training for module in model.modules()}
    tensor = next(iter(model.parameters()), torch.zeros(()))
    packed = torch.zeros(_TRACED_BATCH, *spec.shape, device=tensor.device)
    example = unpack(packed, spec.inputs)
    sizes = ({0: Dim("batch", min=1)},) * len(example)
    try:
        model.eval()
        with torch.no_grad(), warnings.catch_warnings():
            # Recurrent layers list their weights anew in each call; nothing of it is lost.
            warnings.filterwarnings("ignore", "The tensor attributes? .* assigned during export")
            return torch.export.export(model, example, dynamic_shapes=sizes, strict=False)
    except Exception as error:
        raise CaptureError(_explain(error)) from error
    finally:
        for module, was in training.items():
            module.training = was


def impersonal(program: ExportedProgram) -> None:
    """Take out of `program` what it knows of this machine and process, and nothing computes with.

    Files of equal programs are then equal: paths of the source's lines, and numbers of the graphs
    that nodes came from, which are addresses in memory, differ from process to process.
    """
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                for name in ("stack_trace", "from_node"):
                    node.meta.pop(name, None)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _explain(error: Exception) -> str:
    if isinstance(error, TypeError) and "missing a required argument" in str(error):
        return (
            "the model takes several inputs: give input_shape of each, or wrap it in a module that"
            " takes one image batch"
        )
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


def _checked(
    original: fx.GraphModule, lifted: fx.GraphModule, spec: InputSpec
) -> list[tuple[Any, Any]]:
    """All leaves of what the original returns for some images, and those of what is lifted.

    Raises:
        CaptureError: a batch of another size is refused, there are NaN, or the two differ.
    """
    tensor = next(iter(lifted.parameters()), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_CHECKED_BATCH, *spec.shape, generator=generator).to(tensor.device)
    given = tuple(tensor.clone() for tensor in unpack(images, spec.inputs))
    # torch sums recurrent layers and attention in another order where weights ask for gradients.
    weights = {name: weight.detach() for name, weight in original.named_parameters()}
    with torch.no_grad():
        try:
            returned: Any = torch.func.functional_call(original, weights, given)
        except Exception as error:
            raise CaptureError(
                f"the exported program refuses a batch of {_CHECKED_BATCH}:"
                f" {_first_line(error)}; export"
                ' it with dynamic_shapes=({0: torch.export.Dim("batch")},)'
            ) from error
        actual: Any = lifted(images.clone())
    pairs = list(zip(tree_leaves(returned), tree_leaves(actual), strict=True))
    for expected, found in pairs:
        if isinstance(expected, Tensor):
            if bool(expected.isnan().any()):
                raise _no_number(lifted, images)
            _check_equal(expected, found)
    return pairs


def _no_number(lifted: fx.GraphModule, images: Tensor) -> CaptureError:
    source = source_of_overflow(lifted, images)
    where = "" if source is None else f": {source} is the first whose numbers are not finite"
    return CaptureError(
        f"the model returns NaN for Gaussian images{where}: check its weights, and what it divides"
        " by"
    )


def _check_equal(expected: Tensor, actual: Tensor) -> None:
    if torch.equal(expected, actual):
        return
    difference = (expected.double() - actual.double()).abs().max().item()
    if difference > _TOLERANCE * expected.double().abs().max().item():
        raise CaptureError(
            f"the captured graph differs from the model by {difference:.3g}: the model writes into"
            " a tensor that another part of it still reads; replace in-place operations on views"
        )


def _put_together(
    original: fx.GraphModule,
    lifted: fx.GraphModule,
    pairs: list[tuple[Any, Any]],
    spec: InputSpec,
    tree: TreeSpec | None,
) -> None:
    """Let `lifted` return logits, or all it returns side by side.

    Raises:
        CaptureError: a tensor that is not of images, or something else than `spec` says.
    """
    (end,) = original.graph.find_nodes(op="output")
    values = [getattr(x, "meta", {}).get("val") for x in tree_leaves(list(end.args))]
    found = [
        isinstance(value, Tensor) and value.ndim > 0 and isinstance(value.shape[0], torch.SymInt)
        for value in values
    ]
    shapes = [tuple(actual.shape[1:]) for (_, actual), own in zip(pairs, found, strict=True) if own]
    (output,) = lifted.graph.find_nodes(op="output")
    returned: Any = output.args[0]
    nodes = list(returned) if isinstance(returned, tuple) else [returned]
    nodes = [node for node, own in zip(nodes, found, strict=True) if own]
    if not spec.outputs or tree is None:
        if len(shapes) == 1 and len(shapes[0]) == 1:
            output.args = (nodes[0],)
            lifted.recompile()
            return
        raise CaptureError(
            "the model must return one tensor (batch, classes), or come as a teacher, which says"
            " what it returns: datafree.models.from_module(model, input_shape=…)"
        )
    if shapes != [head.shape for head in spec.outputs]:
        told = ", ".join(f"{head.name} {head.shape}" for head in spec.outputs)
        raise CaptureError(
            f"the model returns tensors of {shapes} for an image, and is said to return {told}:"
            " torch.export takes another way through it than images do"
        )
    for (_, actual), own in zip(pairs, found, strict=True):
        if own and len(actual) != _CHECKED_BATCH:
            raise CaptureError(
                f"the model returns {len(actual)} rows for {_CHECKED_BATCH} images: let it return"
                " the images along the first dimension"
            )
    leaves = tuple(
        PER_IMAGE if own else actual for (_, actual), own in zip(pairs, found, strict=True)
    )
    output.args = (tuple(nodes),)
    joined(lifted, Structure(tree, leaves, spec.outputs))
