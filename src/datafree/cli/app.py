"""The command line: options in, tables out, exit codes. All work is done elsewhere."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from datafree.cli import console
from datafree.cli.benchmark import benchmark
from datafree.cli.distill import distill
from datafree.cli.endings import endings
from datafree.cli.evaluate import evaluate
from datafree.cli.options import (
    Argument,
    Command,
    Group,
    Option,
    field_option,
    field_options,
    given_fields,
    trust_option,
)
from datafree.cli.quantize import quantize
from datafree.cli.show import compare, show
from datafree.cli.sweep import merge, sweep
from datafree.config import RunConfig, build
from datafree.config.options import (
    ExciteOptions,
    FolderOptions,
    ImageCount,
    ImageOptions,
    MachineOptions,
    TeacherOptions,
)
from datafree.recipes import RECIPES

_FORCE = Option(["--force"], "Output", is_flag=True, help="Replace a file that exists.")


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with `datafree demo`, then `datafree quantize MODEL --bits W8A8 --output run`.",
)
@click.version_option(version("datafree"), message="%(version)s")
def app() -> None:
    """Make a trained vision network small and fast without any of its training data."""


app.add_command(quantize)
app.add_command(distill)
app.add_command(evaluate)
app.add_command(benchmark)
app.add_command(show)
app.add_command(compare)
app.add_command(sweep)
app.add_command(merge)


@app.command(
    cls=Command,
    params=[
        Argument("model", "Model", "As for quantize."),
        *field_options(TeacherOptions),
        *field_options(ImageOptions),
        *field_options(ImageCount),
        *field_options(ExciteOptions),
        *field_options(MachineOptions),
        Option(
            ["--output"], "Output", metavar="FILE", default="images.safetensors",
            help="File to write, .safetensors, .npz or .npy, or a folder of pictures; with a .png"
            " beside it.  [default: images.safetensors]",
        ),
        _FORCE,
    ],
)  # fmt: skip
def synthesize(model: str, output: str, force: bool, **options: Any) -> None:
    """Synthesise images from what MODEL remembers, for other tools too; write file and picture."""
    from datafree.runs.sets import synthesize_to_file

    given = given_fields(options)
    own = {name: given.pop(name) for name in ExciteOptions.model_fields if name in given}
    resolved = build(RunConfig, {"model": model, **given}, "options")
    path, step = Path(output), build(ExciteOptions, own, "options")
    made = synthesize_to_file(resolved, path, step, force=force, progress=console.progress)
    method = dict(made.metadata).get("method", resolved.method)
    console.out.print(
        f"{len(made)} images of {method}: {path}, {path.with_suffix('.png')};"
        f" sha256 {made.digest()[:16]}"
    )


@app.command(
    cls=Command,
    params=[
        Argument("run", "Model", "Folder written by quantize."),
        Option(
            ["--output"], "Output", metavar="FILE", required=True,
            help="File to write: .onnx, .pt2, .pt2e, .pte (ExecuTorch), .tflite (LiteRT) or"
            " .encodings (AIMET, QNN).  [required]",
        ),
        Option(
            ["--format"], "Output", metavar="NAME",
            help="Export format: datafree methods lists them.  [default: the suffix of the file]",
        ),
        Option(
            ["-o", "--format-option", "format_options"], "Output", metavar="NAME=VALUE",
            multiple=True,
            help="Hyper-parameter of the format: any_size=true, input_uint8=true. `datafree"
            " methods onnx` explains those of ONNX.  [repeatable]",
        ),
        _FORCE,
        trust_option(),
    ],
)  # fmt: skip
def export(
    run: str, output: str, format: str | None, force: bool, trust_code: bool, **options: Any
) -> None:
    """Write the student of a finished run once more, in another format, and check the file."""
    from datafree.runs.finished import export_run

    chosen = given_fields(options).get("format_options")
    report = console.with_trust(
        lambda trusted: export_run(
            Path(run), Path(output), format=format, options=chosen, force=force, trust_code=trusted
        ),
        trust_code,
    )
    console.out.print(f"{output}: {report['line']}")
    for note in report["notes"]:
        console.out.print(f"  {note}")


@app.command(
    cls=Command,
    params=[
        Argument("run", "Model", "Folder written by quantize or distill."),
        Option(
            ["--images"], "Images", metavar="PATH",
            help="Real images to compare the synthetic ones with: a folder of pictures, or labelled"
            " data as for quantize.  [default: the run's labelled images, or none]",
        ),
        trust_option(),
    ],
)  # fmt: skip
def report(run: str, images: str | None, trust_code: bool) -> None:
    """Write report.html of a finished run again: one page that needs nothing else."""
    from datafree.runs.reported import report_run

    real = None if images is None else Path(images)
    path = console.with_trust(
        lambda trusted: report_run(Path(run), real, trust_code=trusted), trust_code
    )
    console.out.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)


@app.command(
    cls=Command,
    params=[Argument("name", "Model", "A method, to explain.  [default: all]", required=False)],
)
def methods(name: str | None) -> None:
    """List all methods, or explain the one called NAME: equation, paper, hyper-parameters."""
    from datafree.runs.methods import explained, listed

    if name is not None:
        for one in explained(name):
            console.show_method(one)
        return
    for title, rows in listed():
        plain = [(name, what.replace("`", "")) for name, what in rows]
        console.show_table(title, ("name", "what"), plain)
    console.out.print("`datafree methods NAME` explains one of them, with its hyper-parameters.")


@app.command(cls=Command)
def targets() -> None:
    """List the runtimes that a student can be made for, and the numbers they take."""
    from datafree.targets import load_target, target_names

    rows = [(name, load_target(name).what, load_target(name).numbers) for name in target_names()]
    console.show_table("targets", ("name", "what", "numbers"), rows)
    console.out.print("`datafree quantize MODEL --target NAME` makes a student for one of them.")


@app.command(cls=Command)
def recipes() -> None:
    """List the recipes of quantize and distill, and what they choose."""
    for command in ("quantize", "distill"):
        chosen = {name: r for name, r in RECIPES.items() if r.command == command}
        rows = [(name, recipe.what, recipe.described()) for name, recipe in chosen.items()]
        console.show_table(f"recipes of {command}", ("name", "what", "options"), rows)


@app.command(cls=Command)
def models() -> None:
    """List where models can come from."""
    from datafree.models import sources

    console.show_table("models", ("source", "what"), sources())


@app.command(
    cls=Command,
    params=[
        Option(
            ["--output"], "Output", metavar="FOLDER", default="runs/demo",
            help="Folder to write; must not exist.  [default: runs/demo]",
        ),
        field_option(FolderOptions, "force"),
    ],
)  # fmt: skip
def demo(output: str, force: bool | None) -> None:
    """Quantize the built-in network with noise, zeroq, dsg and real images; about a minute."""
    from datafree.runs.demo import COLUMNS, run_demo

    found = run_demo(Path(output), force=bool(force), progress=console.progress)
    console.show_table(found.title, COLUMNS, found.rows)
    console.out.print(found.explanation)
    run = found.run
    console.show_result(run.config, run.metrics, run.seconds, images=len(run.images))


def main() -> None:
    """Run the command line; a user's mistake gives one line and exit code 2.

    A verdict that `fail_below` does not take gives exit code 3, a sweep with failed cells 4.
    """
    with console.warnings_as_lines(), endings():
        sys.exit(app.main(standalone_mode=False) or 0)
