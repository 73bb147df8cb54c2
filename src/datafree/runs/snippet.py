"""A few lines that carry a student's file out on one picture, for people to copy."""

from __future__ import annotations

from pathlib import Path

from datafree.config import InputSpec, RunConfig
from datafree.config.outputs import Kind
from datafree.runs.runtime import runtime_of

_RUNTIMES = {
    "onnxruntime": (
        "import onnxruntime",
        'session = onnxruntime.InferenceSession("{path}")',
        '({own},) = session.run(["{name}"], {{"images": images}})',
        'outputs = session.run(None, {"images": images})',
    ),
    "openvino": (
        "import openvino",
        'model = openvino.Core().compile_model("{path}", "CPU")',
        '{own} = model(images)["{name}"]',
        "outputs = model(images).values()",
    ),
}
"""Lines that import it, open a file, ask for one output, and for all."""
_TOLD: dict[Kind, str] = {
    "classes": "{own}[0].argmax()",
    "one_logit": "int({own}[0, 0] > 0)",
    "dense_classes": "{own}[0].argmax(0)",
    "values": "{own}[0]",
}
"""What is printed of an output."""
_DONE: dict[Kind, str] = {
    "classes": "classify a picture", "one_logit": "classify a picture",
    "dense_classes": "classify every position of a picture", "values": "carry it out on a picture",
}  # fmt: skip
_MODES = {1: "L", 3: "RGB"}  # of Pillow, by channels


def purpose(spec: InputSpec) -> str:
    """What `snippet` does with a picture, for people: ``classify a picture``."""
    return _DONE[spec.principal.kind]


def snippet(path: Path, spec: InputSpec, config: RunConfig) -> str | None:
    """Python that carries the ONNX file at `path` out on ``image.png``, without datafree.

    It prints the class, or the class at every position; of numbers those of the only output, or
    the shapes of all.

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
    imported, opened, one, every = _RUNTIMES[runtime_of(config.target)]
    named = config.class_names is not None and imported.endswith("onnxruntime") and spec.labelled
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
        *_answered(spec, one, every, named=named),
    ]
    return "\n".join(lines) + "\n"


def _answered(spec: InputSpec, one: str, every: str, *, named: bool) -> list[str]:
    """From `images` to what is printed."""
    head = spec.principal
    if head.kind == "values" and len(spec.heads) > 1:
        return [every, "print([output.shape for output in outputs])"]
    own = "values" if head.kind == "values" else "logits"
    asked, told = one.format(own=own, name=head.name), _TOLD[head.kind].format(own=own)
    if not named:
        return [asked, f"print({told})"]
    names = 'names = session.get_modelmeta().custom_metadata_map["class_names"]'
    return [asked, names, f"print(json.loads(names)[{told}])"]


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
