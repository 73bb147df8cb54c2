"""Options that commands of the command line share, and how their texts become values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from datafree.errors import ConfigError

Model = Annotated[
    str | None,
    typer.Argument(
        help="digits_resnet8, timm:NAME, torchvision:NAME, pytorchcv:NAME, FILE.pt2,"
        " package.module:factory or path/file.py:factory."
    ),
]
Weights = Annotated[Path | None, typer.Option(help="Weights for the model, a .safetensors file.")]
Shape = Annotated[
    str | None, typer.Option(help="Input as C,H,W, where the model does not say: 3,224,224.")
]
Mean = Annotated[
    str | None, typer.Option(help="Mean per channel of images scaled to 0..1: 0.485,0.456,0.406.")
]
Std = Annotated[str | None, typer.Option(help="Deviation per channel: 0.229,0.224,0.225.")]
MethodName = Annotated[
    str | None, typer.Option("--method", help="Image method: see `datafree methods`. [dsg]")
]
MethodOption = Annotated[
    list[str] | None,
    typer.Option(
        "--option", "-o", help="Hyper-parameter of the method: -o iterations=200. Repeatable."
    ),
]
Images = Annotated[int | None, typer.Option(help="Number of synthetic images. [32]")]
ImagesOrGenerator = Annotated[
    str | None,
    typer.Option(
        help="Number of synthetic images [32], or the generator.safetensors of a training that is"
        " to make them."
    ),
]
Training = Annotated[
    str | None,
    typer.Option(help="Fine-tune under the teacher: gdfq, dsg_qat, dfqf or none. [none]"),
]
TrainingOption = Annotated[
    list[str] | None,
    typer.Option(help="Hyper-parameter of it: iterations=2000. Repeatable."),
]
GeneratorFile = Annotated[
    Path | None,
    typer.Option(
        "--generator", help="warm_generator.safetensors of an earlier training to start from."
    ),
]
MaxTime = Annotated[
    str | None,
    typer.Option(help="Time for training: 90s, 30m, 1.5h; it ends early and cleanly."),
]
Precision = Annotated[
    str | None,
    typer.Option(help="Of training: fp32, or bf16 where that is safe; needs accelerate. [fp32]"),
]
Resume = Annotated[
    Path | None,
    typer.Option(help="Folder of an interrupted run to go on with; no other option is needed."),
]
Seed = Annotated[int | None, typer.Option(help="Same seed, same machine: same result. [0]")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N. [auto]")]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Labelled test images: .npz (images, labels), folder with labels.csv, CIFAR batches."
    ),
]
Limit = Annotated[int | None, typer.Option(help="Use at most this many test images. [all]")]
Output = Annotated[Path, typer.Option("--output", help="Folder to write; must not exist.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier run there.")]


def parse_bits(text: str | None) -> dict[str, int]:
    """Bits of weights and activations from ``W4A8``; nothing from None.

    Raises:
        ConfigError: the text is not of this form.
    """
    if text is None:
        return {}
    weights, separator, activations = text.upper().removeprefix("W").partition("A")
    if not separator or not (weights.isdecimal() and activations.isdecimal()):
        raise ConfigError(
            f"--bits {text!r} is not understood: write weights and activations as W8A8 or W4A8"
        )
    return {"weights": int(weights), "activations": int(activations)}


def _numbers(
    text: str | None, option: str, kind: type[int] | type[float]
) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"{option} {text!r} is not a list of numbers separated by commas"
        ) from None


def model_fields(
    weights: Path | None, shape: str | None, mean: str | None, std: str | None
) -> dict[str, Any]:
    """The fields of `ModelConfig` that were given.

    Raises:
        ConfigError: an option is not a list of numbers.
    """
    sizes = _numbers(shape, "--input-shape", int)
    if sizes is not None and (len(sizes) != 3 or min(sizes) < 1):
        raise ConfigError(
            f"--input-shape {shape!r} must be channels,height,width, such as 3,224,224"
        )
    values = {
        "weights": weights,
        "input_shape": sizes,
        "mean": _numbers(mean, "--mean", float),
        "std": _numbers(std, "--std", float),
    }
    return {key: value for key, value in values.items() if value is not None}


def method_fields(name: str | None, options: list[str] | None) -> dict[str, Any]:
    """The fields of `Method` that were given; options are ``name=value``, values as in YAML.

    Raises:
        ConfigError: an option has no equals sign.
    """
    changes: dict[str, Any] = {} if name is None else {"name": name, "options": {}}
    if options:
        pairs = [option.partition("=") for option in options]
        if wrong := [
            option
            for option, (_, separator, _value) in zip(options, pairs, strict=True)
            if not separator
        ]:
            raise ConfigError(f"option {wrong[0]!r} is not of the form name=value")
        changes["options"] = {key: yaml.safe_load(value) for key, _, value in pairs}
    return changes


_UNITS = {"s": 1, "m": 60, "h": 3600}


def parse_time(text: str | None) -> float | None:
    """Seconds from ``90s``, ``30m`` or ``1.5h``; None from None.

    Raises:
        ConfigError: the text is not of this form.
    """
    if text is None:
        return None
    try:
        return float(text[:-1]) * _UNITS[text[-1:]]
    except (KeyError, ValueError):
        raise ConfigError(
            f"--max-time {text!r} is not understood: write seconds, minutes or hours as 90s, 30m"
            " or 1.5h"
        ) from None


def unfinished(folder: Path) -> Path:
    """The configuration of the interrupted run in `folder`.

    Raises:
        ConfigError: there is none, or the run is finished.
    """
    config = folder / "config.yaml"
    if not config.exists():
        raise ConfigError(f"{folder} holds no run to resume: it has no config.yaml")
    if (folder / "metrics.json").exists():
        raise ConfigError(f"the run in {folder} is finished: there is nothing to resume")
    return config


def images_fields(text: str | None) -> dict[str, Any]:
    """Fields of a run from ``--images``: how many, or a generator's file to ask for them.

    Raises:
        ConfigError: neither a number nor a `.safetensors` file.
    """
    if text is None:
        return {}
    if text.isdecimal():
        return {"images": int(text)}
    if text.endswith(".safetensors"):
        return {"synthesis": {"name": "generator", "options": {"path": text}}}
    raise ConfigError(
        f"--images {text!r} is neither a number of images nor a generator's .safetensors file"
    )


def allocation_fields(
    average_bits: float | None, budget: str | None, candidate_bits: str | None
) -> dict[str, Any]:
    """The fields of `AllocationConfig` that were given; an average replaces a budget, and back.

    Raises:
        ConfigError: `candidate_bits` is not a list of numbers.
    """
    changes: dict[str, Any] = {}
    if average_bits is not None or budget is not None:
        changes |= {"average_bits": average_bits, "budget": budget}
    if candidate_bits is not None:
        changes["bits"] = _numbers(candidate_bits, "--candidate-bits", int)
    return changes
