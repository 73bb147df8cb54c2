"""For `onnxruntime.quantization.quantize_static`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datafree.adapters._tool import imported
from datafree.errors import DataError
from datafree.images import SyntheticSet


def for_onnxruntime(
    images: SyntheticSet, model: str | Path, *, batch_size: int = 1, input_name: str | None = None
) -> Any:
    """A `CalibrationDataReader` that hands the images to the one input of an ONNX model.

    Of a network of several inputs each goes to the input of its name.

    Args:
        images: for the network that `model` holds.
        model: file that will be quantized.
        batch_size: images at a time; more than one needs a model with a free batch dimension.
        input_name: of the model; None asks its file.

    Raises:
        DataError: the model cannot be read, or has several inputs and none was named.
        ConfigError: onnxruntime's quantizer cannot be imported.
    """
    quantization = imported("onnxruntime.quantization", "onnxruntime")
    own = [one.name for one in images.spec.inputs]
    names = own if len(own) > 1 else [input_name or _only_input(Path(model))]

    class Reader(quantization.CalibrationDataReader):
        """The images, some at a time, once after every `rewind`."""

        def __init__(self) -> None:
            self.rewind()

        def get_next(self) -> dict[str, Any] | None:
            """The next images under the name of the input; None after the last."""
            given = next(self._batches, None)
            if given is None:
                return None
            return {name: part.numpy() for name, part in zip(names, given, strict=True)}

        def rewind(self) -> None:
            """Begin again."""
            self._batches: Iterator[Any] = images.given(batch_size)

        def __len__(self) -> int:
            return -(-len(images) // batch_size)

    return Reader()


def _only_input(path: Path) -> str:
    """The name of the input that is no weight."""
    import onnx

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # noqa: BLE001 - whatever protobuf raises, the file is the reason
        raise DataError(f"cannot read the ONNX model {path}: {error}") from None
    weights = {weight.name for weight in graph.initializer}
    names = [value.name for value in graph.input if value.name not in weights]
    if len(names) != 1:
        raise DataError(
            f"{path} has {len(names)} inputs ({', '.join(names)}): name the one that takes images"
            " as input_name"
        )
    return names[0]
