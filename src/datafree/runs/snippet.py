"""A few lines that carry a student's file out on one picture, for people to copy."""

from __future__ import annotations

from pathlib import Path

from datafree.config import InputSpec, RunConfig
from datafree.runs.runtime import runtime_of

_RUNTIMES = {
    "onnxruntime": (
        "import onnxruntime",
        'session = onnxruntime.InferenceSession("{path}")',
        '(logits,) = session.run(None, {{"images": images}})',
    ),
    "openvino": (
        "import openvino",
        'model = openvino.Core().compile_model("{path}", "CPU")',
        "logits = model(images)[0]",
    ),
}
_NAMED = [
    'names = session.get_modelmeta().custom_metadata_map["class_names"]',
    "print(json.loads(names)[logits[0].argmax()])",
]
_MODES = {1: "L", 3: "RGB"}  # of Pillow, by channels


def snippet(path: Path, spec: InputSpec, config: RunConfig) -> str | None:
    """Python that classifies ``image.png`` with the ONNX file at `path`, without datafree.

    Args:
        path: of the file, as it is to stand there.
        spec: its input.
        config: of the run it comes from.

    Returns:
        At most fifteen lines; None for images that no picture holds.
    """
    channels, height, width = spec.shape
    if spec.inputs or channels not in _MODES:
        return None
    imported, opened, run = _RUNTIMES[runtime_of(config.target)]
    named = config.class_names is not None and imported.endswith("onnxruntime")
    size = "" if config.any_size else f".resize(({width}, {height}))"
    lines = [
        *(["import json", ""] if named else []),
        "import numpy as np",
        imported,
        "from PIL import Image",
        "",
        opened.format(path=path.as_posix()),
        f'image = Image.open("image.png").convert("{_MODES[channels]}"){size}',
        *_prepared(spec, config),
        run.format(),
        *(_NAMED if named else ["print(logits[0].argmax())"]),
    ]
    return "\n".join(lines) + "\n"


def _prepared(spec: InputSpec, config: RunConfig) -> list[str]:
    """From `image` to `images`, which the file takes."""
    pixels = (
        "np.asarray(image)[None]" if spec.shape[0] > 1 else "np.asarray(image)[None, ..., None]"
    )
    if config.input_uint8:
        return [f"images = {pixels}  # uint8, height x width x channels"]
    mean, std = ([round(value, 6) for value in values] for values in (spec.mean, spec.std))
    return [
        f"pixels = {pixels} / 255",
        f"pixels = (pixels - {mean}) / {std}",
        "images = pixels.transpose(0, 3, 1, 2).astype(np.float32)",
    ]
