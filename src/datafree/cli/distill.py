"""The command that distills a network into another architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datafree.cli import console
from datafree.cli.options import (
    Argument,
    Command,
    field_option,
    field_options,
    given_fields,
    run_options,
)
from datafree.config import DistillOptions, RunConfig, build, distillation, load_config
from datafree.config.fields import meaning
from datafree.config.options import RecipeOptions
from datafree.errors import ConfigError
from datafree.recipes import recipe_fields

_TEXT = """Teach another, smaller network what MODEL knows, without data.

A generator learns to make images the teacher is sure of and the student is not; the student learns
from them (DFQF, Algorithm 1). `datafree methods distill` explains its hyper-parameters.

\b
Examples:
  datafree distill net.pt2 --mean 0.5 --std 0.5 \\
      --student small.py:build --recipe short
  datafree distill digits_resnet8 --student small.py:build \\
      --bits W4A4 --output small
  datafree distill --resume small
"""


def _distill(  # noqa: PLR0913 - the options that are no fields
    model: str | None, student: str | None, resume: str | None, recipe: str | None,
    output: str | None, force: bool | None, dry_run: bool, trust_code: bool, **options: Any,
) -> None:  # fmt: skip
    if resume is not None:
        from datafree.runs.folder import interrupted

        place, output = interrupted(Path(resume)), resume
        force = place.parent != Path(resume)  # it replaces a finished run
        resolved = load_config(place)
        console.check_code(resolved, place, trust_code)
    elif model is None or student is None:
        raise ConfigError("give a MODEL and the network to distill it into, --student")
    else:
        base = {"model": model, "student": student, "training": "distill"}
        base |= recipe_fields(recipe, "distill")
        resolved = build(RunConfig, distillation(base, given_fields(options)), "options")
    act = console.plan_and_show if dry_run else console.run_and_show
    act(resolved, Path(output or "run"), force=bool(force))


distill = Command(
    "distill",
    help=_TEXT,
    callback=_distill,
    params=[
        Argument("model", "Model", meaning(RunConfig, "model"), required=False),
        field_option(RunConfig, "student", default="required"),
        *field_options(RecipeOptions),
        *field_options(DistillOptions),
        *run_options(),
    ],
)  # fmt: skip
