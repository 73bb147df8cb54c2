"""Networks from ``.onnx`` files, without running anything of them.

A file is read and checked (`_file`), its constants folded for images of one shape (`_simple`),
converted node by node by onnx2pytorch (`_converter`), written down as one plain graph for any
number of images (`_record`, `_calls`, `_patterns`), and compared with onnxruntime (`_parity`):
whatever of this goes wrong ends in a refusal, never in another network.
"""

from __future__ import annotations

from pathlib import Path

from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)

from datafree.errors import ModelError
from datafree.models.hubs import Found
from datafree.models.onnx._calls import Counts
from datafree.models.onnx._converter import convert
from datafree.models.onnx._file import OnnxFile, first_line, nodes, read_file
from datafree.models.onnx._parity import TOLERANCE, check_same
from datafree.models.onnx._patterns import join_activations
from datafree.models.onnx._record import record
from datafree.models.onnx._simple import simplify
from datafree.models.weights import check_finite, named_tensors

__all__ = ["TOLERANCE", "load_onnx"]


def load_onnx(path: Path, shape: tuple[int, int, int] | None = None) -> Found:
    """The network in the file at `path`, and the images it takes.

    Args:
        path: the file.
        shape: channels, height, width, where the file leaves them free.

    Raises:
        ModelError: the file cannot be read or is refused, does not say what shape it takes, or is
            not understood; the message says which, and what helps.
    """
    file = read_file(path)
    shape = _shape(file, shape)
    simple = simplify(file, shape)
    network = convert(simple, file)
    try:
        counts = Counts(simple.batch, simple.fixed)
        graph = join_activations(record(network, shape, counts, network.names))
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
    check_same(graph, file, shape)
    return Found(graph, shape, notes=_notes(file))


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


def _shape(file: OnnxFile, asked: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """The shape of an image, where file and caller agree."""
    if asked is None:
        channels, height, width = file.sizes
        if channels is None or height is None or width is None:
            raise ModelError(
                f"{file.path} does not say what input it takes: give input_shape as C,H,W"
            )
        return channels, height, width
    if any(size not in (None, other) for size, other in zip(file.sizes, asked, strict=True)):
        sizes = ", ".join("any" if size is None else str(size) for size in file.sizes)
        raise ModelError(
            f"{file.path} was exported for images of {sizes} (channels, height, width), not "
            f"{', '.join(map(str, asked))}: leave out input_shape"
        )
    return asked
