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
