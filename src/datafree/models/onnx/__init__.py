"""Networks from ``.onnx`` files, without running anything of them.

A file is read and checked (`_file`), its constants folded for images of one shape (`_simple`),
converted node by node by onnx2pytorch (`_converter`), written down as one plain graph for any
number of images (`_record`, `_calls`, `_patterns`), and compared with onnxruntime (`_parity`):
whatever of this goes wrong ends in a refusal, never in another network.
"""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)

from datafree.bounds import check_shape, first_line
from datafree.config.inputs import Shape
from datafree.errors import ModelError
from datafree.models.hubs import Found
from datafree.models.onnx._calls import Counts
from datafree.models.onnx._converter import convert
from datafree.models.onnx._file import OnnxFile, nodes, read_file
from datafree.models.onnx._parity import TOLERANCE, check_same
from datafree.models.onnx._patterns import join_activations
from datafree.models.onnx._record import record
from datafree.models.onnx._simple import simplify
from datafree.models.weights import check_finite, named_tensors

__all__ = ["TOLERANCE", "load_onnx"]


def load_onnx(path: Path, shapes: tuple[Shape, ...] | None = None) -> Found:
    """The network in the file at `path`, and what it takes.

    A file of one image of uint8 becomes a network of the same numbers as floats from 0 to 255,
    which are images of mean 0 and deviation 1 / 255.

    Args:
        path: the file.
        shapes: of an item of every input, (channels, height, width) of an image, where the file
            leaves them free.

    Raises:
        ModelError: the file cannot be read or is refused, does not say what shape it takes, or is
            not understood; the message says which, and what helps.
    """
    file = read_file(path)
    shapes = _shapes(file, shapes)
    try:
        for shape in shapes:
            check_shape((file.batch or 1, *shape))
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from None
    try:
        simple = simplify(file, shapes)
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - what computes constants raises what it likes
        raise ModelError(
            f"{path} cannot be read: its constants cannot be computed: {first_line(error)}"
        ) from None
    network = convert(simple, file)
    try:
        counts = Counts(simple.batch, simple.fixed)
        graph = join_activations(record(network, _named(file, shapes), counts, network.names))
    except (DynamicOutputShapeException, DataDependentOutputException) as error:
        place = network.place()
        raise ModelError(
            f"{path} cannot be read: what {place} returns depends on the values of an image"
        ) from error
    except Exception as error:
        raise ModelError(
            f"{path} cannot be read: {first_line(error)} at {network.place()}"
        ) from error
    check_finite(named_tensors(graph), str(path))
    check_same(graph, file, shapes)
    only = shapes[0] if len(shapes) == 1 else shapes
    if not file.inputs[0].pixels:
        return Found(graph, only, notes=_notes(file))
    channels = shapes[0][0]
    return Found(graph, only, (0.0,) * channels, (1 / 255,) * channels, _notes(file))


def _notes(file: OnnxFile) -> tuple[str, ...]:
    """A word where a convolutional network has no batch norms, as most exported files have none."""
    operators = {node.op_type for node in nodes(file.model.graph)}
    if "Conv" not in operators or "BatchNormalization" in operators:
        return ()
    return (
        f"{file.path} has no batch norms: they were folded when it was exported, or there were "
        "none. No image can be matched to their statistics, and no bias be corrected from them. To "
        "keep them, export with optimize=False, or with dynamo=False, do_constant_folding=False and"
        " training=torch.onnx.TrainingMode.PRESERVE, after model.eval().",
    )


def _named(file: OnnxFile, shapes: tuple[Shape, ...]) -> dict[str, Shape]:
    """Shapes by what the arguments of the graph are called: `images`, or as in the file."""
    if len(shapes) == 1:
        return {"images": shapes[0]}
    found: dict[str, Shape] = {}
    for one, shape in zip(file.inputs, shapes, strict=True):
        name = re.sub(r"\W", "_", one.name)
        name = name if name.isidentifier() and not keyword.iskeyword(name) else f"input_{name}"
        while name in found:
            name += "_"
        found[name] = shape
    return found


def _shapes(file: OnnxFile, asked: tuple[Shape, ...] | None) -> tuple[Shape, ...]:
    """The shape of an item of every input, where file and caller agree."""
    several = len(file.inputs) > 1
    names = ", ".join(one.name for one in file.inputs)
    form = "a shape each, 3,32,32;10" if several else "C,H,W"
    if asked is None:
        free = [one.name for one in file.inputs if None in one.sizes]
        if free:
            of = f" as {' and '.join(free)}" if several else ""
            raise ModelError(
                f"{file.path} does not say what input it takes{of}: give input_shape as {form}"
            )
        return tuple(tuple(size or 1 for size in one.sizes) for one in file.inputs)
    if len(asked) != len(file.inputs):
        raise ModelError(
            f"{file.path} takes {len(file.inputs)} input{'s' * several} ({names}), and"
            f" {len(asked)} shape{'s were' if len(asked) > 1 else ' was'} given: give input_shape"
            f" as {form}, or leave it out"
        )
    for one, shape in zip(file.inputs, asked, strict=True):
        fits = len(one.sizes) == len(shape) and all(
            size in (None, other) for size, other in zip(one.sizes, shape, strict=True)
        )
        if not fits:
            sizes = ", ".join("any" if size is None else str(size) for size in one.sizes)
            image = len(one.sizes) == 3
            what = "images" if image and not several else one.name
            order = " (channels, height, width)" if image else ""
            raise ModelError(
                f"{file.path} was exported for {what} of {sizes}{order}, not "
                f"{', '.join(map(str, shape))}: leave out input_shape"
            )
    return asked
