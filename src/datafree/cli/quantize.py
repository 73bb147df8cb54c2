"""The command that quantizes a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datafree.cli import console
from datafree.cli.options import (
    Argument,
    Command,
    Option,
    field_options,
    given_fields,
    run_options,
)
from datafree.config import RunConfig, build, merge
from datafree.config.fields import meaning
from datafree.config.options import Networks, RecipeOptions
from datafree.errors import ConfigError
from datafree.recipes import laid_over

_TEXT = """Quantize MODEL without any of its data; write the result to a folder.

The folder holds the synthetic images and their picture, the student as ONNX, .pt2 and safetensors,
metrics.json with what was measured, config.yaml, and report.html, which says all of it on one page.

\b
Examples:
  datafree quantize digits_resnet8 --bits W4A4 --output run
  datafree quantize net.pt2 --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 \\
      --data test.npz
  datafree quantize digits_resnet8 --bits W3A3 --images 256 \\
      --reconstruction qdrop
  datafree quantize digits_resnet8 --average-bits 4 --output mixed
  datafree quantize digits_resnet8 --recipe balanced --bits W4A4
  datafree quantize digits_resnet8 --bits W2A2 --training dfqf \\
      --max-time 10m
  datafree quantize --config run/config.yaml --output again
  datafree quantize --resume run
"""


def _quantize(  # noqa: PLR0913 - the options that are no fields
    model: str | None, config: str | None, resume: str | None, recipe: str | None,
    output: str | None, force: bool | None, dry_run: bool, trust_code: bool, **options: Any,
) -> None:  # fmt: skip
    from datafree.runs.folder import interrupted
    from datafree.runs.repeating import repeated

    if resume is not None:
        place, output = interrupted(Path(resume)), resume
        config, force = str(place), place.parent != Path(resume)  # else it replaces a run
    if (model is None) == (config is None):
        raise ConfigError("give either a MODEL or --config with the config.yaml of an earlier run")
    base = repeated(Path(config)).model_dump() if config else {"model": model}
    given = given_fields(options)
    fields = merge(laid_over(base, recipe), given)
    resolved = build(RunConfig, fields, "options")
    if config is not None:
        console.check_code(resolved, Path(config), trust_code, given)
    act = console.plan_and_show if dry_run else console.run_and_show
    act(resolved, Path(output or "run"), force=bool(force))


quantize = Command(
    "quantize",
    help=_TEXT,
    callback=_quantize,
    params=[
        Argument("model", "Model", meaning(RunConfig, "model"), required=False),
        *field_options(RecipeOptions),
        Option(
            ["--config"], "Model", metavar="FILE",
            help="config.yaml of an earlier run, which is repeated exactly but for other options.",
        ),
        *field_options(RunConfig, without=Networks.model_fields),
        *run_options(),
    ],
)  # fmt: skip
