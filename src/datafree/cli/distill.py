"""The command that distills a network into another architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from datafree.cli import console
from datafree.cli.options import (
    Data,
    Device,
    Force,
    GeneratorFile,
    Limit,
    MaxTime,
    Mean,
    MethodOption,
    Model,
    Output,
    Precision,
    Resume,
    Seed,
    Shape,
    Std,
    Weights,
    method_fields,
    model_fields,
    parse_bits,
    parse_time,
    unfinished,
)
from datafree.config import RunConfig, build, load_config, merge
from datafree.errors import ConfigError
from datafree.recipes import recipe_fields


def distill(  # noqa: PLR0913 - one option each
    model: Model = None,
    student: Annotated[
        str | None,
        typer.Option(help="Network to distill into, a source as for MODEL; its weights are drawn."),
    ] = None,
    student_weights: Annotated[
        Path | None, typer.Option(help="Weights it starts from instead, a .safetensors file.")
    ] = None,
    bits: Annotated[
        str | None,
        typer.Option(help="Then quantize the student: W8A8 … W2A2. [left in float]"),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="A schedule: short, for a processor. [the paper's, for a GPU]"),
    ] = None,
    option: MethodOption = None,
    generator: GeneratorFile = None,
    max_time: MaxTime = None,
    precision: Precision = None,
    data: Data = None,
    limit: Limit = None,
    weights: Weights = None,
    input_shape: Shape = None,
    mean: Mean = None,
    std: Std = None,
    seed: Seed = None,
    device: Device = None,
    output: Output = Path("run"),
    force: Force = False,
    resume: Resume = None,
) -> None:
    """Teach another, smaller network what MODEL knows, without data; write it to a folder.

    A generator learns to make images the teacher is sure of and the student is not; the student
    learns from them (DFQF, Algorithm 1). `datafree methods` lists the options of distill.

    Examples:
      datafree distill net.pt2 --mean 0.5 --std 0.5 --student small.py:build --recipe short

      datafree distill digits_resnet8 --student small.py:build --bits W4A4 --output small

      datafree distill --resume small
    """
    if resume is not None:
        resolved, output = load_config(unfinished(resume)), resume
    else:
        if model is None or student is None:
            raise ConfigError("give a MODEL and the network to distill it into, --student")
        changes: dict[str, Any] = {
            "model": model_fields(weights, input_shape, mean, std),
            "scheme": parse_bits(bits),
            "training": method_fields(None, option),
            "generator": generator, "max_time": parse_time(max_time),
            "precision": precision, "data": data, "limit": limit,
            "seed": seed, "device": device,
        }  # fmt: skip
        base: dict[str, Any] = {
            "model": {"source": model},
            "student": {"source": student, "weights": student_weights},
            "float_student": bits is None,
            "training": {"name": "distill"},
        }
        base = merge(base, recipe_fields(recipe, "distill"))
        resolved = build(RunConfig, merge(base, changes), "options")
    console.run_and_show(resolved, output, force=force)
