"""The command line: options in, tables out, exit codes. All work is done elsewhere."""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from datafree.cli import console
from datafree.cli.distill import distill
from datafree.cli.options import (
    Data,
    Device,
    Force,
    Images,
    Limit,
    Mean,
    MethodName,
    MethodOption,
    Seed,
    Shape,
    Std,
    Weights,
    method_fields,
    model_fields,
)
from datafree.cli.quantize import quantize
from datafree.config import RunConfig, build, merge
from datafree.errors import DatafreeError
from datafree.recipes import RECIPES
from datafree.registry import available

app = typer.Typer(
    name="datafree",
    help="Make a trained vision network small and fast without any of its training data.",
    epilog="Start with `datafree demo`, then `datafree quantize MODEL --bits W8A8 --output run`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(quantize)
app.command()(distill)


@app.command()
def synthesize(
    model: Annotated[str, typer.Argument(help="As for quantize.")],
    method: MethodName = None,
    option: MethodOption = None,
    images: Images = None,
    weights: Weights = None,
    input_shape: Shape = None,
    mean: Mean = None,
    std: Std = None,
    seed: Seed = None,
    device: Device = None,
    output: Annotated[
        Path, typer.Option("--output", help="File to write, with a .png beside it.")
    ] = Path("images.safetensors"),
    force: Force = False,
) -> None:
    """Synthesise images from what MODEL remembers; write them as safetensors and as a picture."""
    from datafree.runs.finished import synthesize_to_file

    changes = {
        "model": {"source": model} | model_fields(weights, input_shape, mean, std),
        "synthesis": method_fields(method, option),
        "images": images, "seed": seed, "device": device,
    }  # fmt: skip
    resolved = build(RunConfig, merge({}, changes), "options")
    made = synthesize_to_file(resolved, output, force=force, progress=console.progress)
    picture = output.with_suffix(".png")
    console.out.print(
        f"{len(made)} images of {resolved.synthesis.name}: {output}, {picture};"
        f" sha256 {made.digest()[:16]}"
    )


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder written by quantize.")],
    data: Data = None,
    limit: Limit = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also run student.onnx in onnxruntime (exact mode).")
    ] = False,
    device: Device = None,
) -> None:
    """Measure teacher and student of a finished run on labelled images."""
    from datafree.runs.finished import evaluate_run

    changes = {"data": data, "limit": limit, "device": device}
    config, measured = evaluate_run(run, changes, onnx=onnx, progress=console.progress)
    rows = [(name, f"{value:.2f}") for name, value in measured["top1"].items()]
    scheme = config.scheme
    title = f"{config.model.source} {scheme.label}, policy {scheme.policy}"
    title += f", {measured['test_images']} images"
    console.show_table(title, ("network", "top-1 %"), rows)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder written by quantize.")],
    output: Annotated[Path, typer.Option("--output", help="File to write: .onnx or .pt2.")],
    weight_type: Annotated[
        str, typer.Option(help="8-bit weights in ONNX: auto, int8 or uint8.")
    ] = "auto",
    force: Force = False,
) -> None:
    """Write the student of a finished run once more, with other export options, and check it."""
    from datafree.runs.finished import export_run

    report = export_run(run, output, weight_type=weight_type, force=force)
    console.out.print(f"{output}: {report['line']}")
    for note in report["notes"]:
        console.out.print(f"  {note}")


@app.command()
def methods() -> None:
    """List image methods, calibrators, reconstructions and fine-tuning with their defaults."""
    from datafree.runs.finished import describe_method

    for package, title in (
        ("synthesis", "image methods"),
        ("calibrators", "calibrators"),
        ("reconstruction", "reconstructions"),
        ("training", "fine-tuning"),
    ):
        rows = [
            (name, *describe_method(package, name)) for name in available(f"datafree.{package}")
        ]
        console.show_table(title, ("name", "what", "hyper-parameters"), rows)


@app.command()
def recipes() -> None:
    """List the recipes of quantize and distill, and what they choose."""
    for command in ("quantize", "distill"):
        chosen = {name: r for name, r in RECIPES.items() if r.command == command}
        rows = [(name, recipe.what, recipe.described()) for name, recipe in chosen.items()]
        console.show_table(f"recipes of {command}", ("name", "what", "options"), rows)


@app.command()
def models() -> None:
    """List where models can come from."""
    from datafree.models import sources

    console.show_table("models", ("source", "what"), sources())


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", help="Folder to write; must not exist.")
    ] = Path("runs/demo"),
    force: Force = False,
) -> None:
    """Quantize the built-in network with noise, zeroq, dsg and real images; about a minute."""
    from datafree.runs.demo import COLUMNS, run_demo

    found = run_demo(output, force=force, progress=console.progress)
    console.show_table(found.title, COLUMNS, found.rows)
    console.out.print(found.explanation)
    run = found.run
    console.show_result(run.config, run.metrics, run.seconds, images=len(run.images))


def main() -> None:
    """Run the command line; a user's mistake gives one line and exit code 2."""
    try:
        app()
    except DatafreeError as error:
        console.err.print(
            f"[bold red]error:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        sys.exit(2)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        console.err.print(
            f"[bold red]error:[/bold red] {escape(f'cannot read or write{where}')}:"
            f" {error.strerror or error}; choose another place or make room",
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == 130:  # what typer makes of KeyboardInterrupt
            console.err.print("interrupted; the same command goes on where it stopped")
        raise


def _version(value: bool) -> None:
    if value:
        console.out.print(version_of("datafree"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version
