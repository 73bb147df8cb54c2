"""The command line: options in, tables out, exit codes. All work is done elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from datafree import __version__, console
from datafree.cli_distill import distill
from datafree.cli_options import (
    Data,
    Device,
    Force,
    GeneratorFile,
    Images,
    ImagesOrGenerator,
    Limit,
    MaxTime,
    Mean,
    MethodName,
    MethodOption,
    Model,
    Output,
    Precision,
    Resume,
    Seed,
    Shape,
    Std,
    Training,
    TrainingOption,
    Weights,
    allocation_fields,
    images_fields,
    method_fields,
    model_fields,
    parse_bits,
    parse_time,
    unfinished,
)
from datafree.config import RunConfig, build, load_config, merge
from datafree.errors import ConfigError, DatafreeError
from datafree.recipes import RECIPES, laid_over
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

app.command()(distill)

_GRANULARITY = {True: "tensor", False: "channel"}


@app.command()
def quantize(
    model: Model = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="config.yaml of an earlier run, repeated exactly; other options change it."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="All methods at once: dfq (no images), fast (seconds), balanced (minutes) or best"
            " (hours); other options change it."
        ),
    ] = None,
    bits: Annotated[
        str | None, typer.Option(help="Bits of weights and activations: W8A8 … W2A2, W4A32. [W8A8]")
    ] = None,
    average_bits: Annotated[
        float | None,
        typer.Option(help="Mixed precision: bits of weights layer by layer, so many on average."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Mixed precision within a size of weights, 0.5MB, or 2.5GBOPs."),
    ] = None,
    candidate_bits: Annotated[
        str | None, typer.Option(help="Bits a layer can be given by these. [2,3,4,5,6,8]")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="all, first_last_8 (their weights at 8 bits) or brecq. [all]")
    ] = None,
    placement: Annotated[
        str | None,
        typer.Option(
            help="every_input of a layer (runtimes) or after_activation (papers). [every_input]"
        ),
    ] = None,
    symmetric_weights: Annotated[
        bool | None,
        typer.Option(
            "--symmetric-weights/--affine-weights", help="Zero point 0: TensorRT, LiteRT. [affine]"
        ),
    ] = None,
    method: MethodName = None,
    option: MethodOption = None,
    images: ImagesOrGenerator = None,
    calibrator: Annotated[
        str | None,
        typer.Option(help="Rule of the activation ranges: see `datafree methods`. [mse]"),
    ] = None,
    calibrator_option: Annotated[
        list[str] | None,
        typer.Option(help="Parameter of the calibrator: percentile=99.9. Repeatable."),
    ] = None,
    equalize: Annotated[
        bool | None,
        typer.Option(
            "--equalize/--no-equalize",
            help="Equalize weight ranges across layers first; with --per-tensor. [no]",
        ),
    ] = None,
    replace_relu6: Annotated[
        bool | None,
        typer.Option(
            "--replace-relu6/--keep-relu6",
            help="Take ReLU6 for ReLU where that lets layers be equalized. [no]",
        ),
    ] = None,
    absorb_biases: Annotated[
        bool | None,
        typer.Option(
            "--absorb-biases/--no-absorb-biases",
            help="Let the next layer absorb high biases; after --equalize. [no]",
        ),
    ] = None,
    split_outliers: Annotated[
        float | None,
        typer.Option(help="Split this share of input channels, those of largest weight. [0]"),
    ] = None,
    bias_correction: Annotated[
        str | None,
        typer.Option(
            help="Take mean shifts off biases: empirical (on images), analytic (without), none, or"
            " auto: analytic below 8 bits where the rounding is not learned. [auto]"
        ),
    ] = None,
    per_tensor: Annotated[
        bool | None,
        typer.Option("--per-tensor/--per-channel", help="One weight grid per layer. [channel]"),
    ] = None,
    reconstruction: Annotated[
        str | None,
        typer.Option(
            help="Learn how weights are rounded: adaround, brecq, qdrop, genie_m or none. [none]"
        ),
    ] = None,
    reconstruction_option: Annotated[
        list[str] | None,
        typer.Option(help="Hyper-parameter of it: iterations=2000. Repeatable."),
    ] = None,
    training: Training = None,
    training_option: TrainingOption = None,
    generator: GeneratorFile = None,
    max_time: MaxTime = None,
    precision: Precision = None,
    weight_range: Annotated[
        str | None,
        typer.Option(
            help="minmax, or mse: shrunk to the least error. [mse if reconstructed or mixed]"
        ),
    ] = None,
    holdout: Annotated[
        int | None,
        typer.Option(
            help="Synthetic images of another seed to compare on where there is no --data. [16]"
        ),
    ] = None,
    data: Data = None,
    limit: Limit = None,
    weight_type: Annotated[
        str | None, typer.Option(help="8-bit weights in ONNX: auto, int8 or uint8. [auto]")
    ] = None,
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
    """Quantize MODEL; write images, grid.png, student, ONNX, metrics.json, config.yaml to a folder.

    Examples:
      datafree quantize digits_resnet8 --bits W4A4 --output run

      datafree quantize net.pt2 --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --data test.npz --output run

      datafree quantize digits_resnet8 --bits W3A3 --images 256 --reconstruction qdrop --output low

      datafree quantize digits_resnet8 --average-bits 4 --output mixed

      datafree quantize digits_resnet8 --recipe balanced --bits W4A4 --output good

      datafree quantize digits_resnet8 --bits W2A2 --training dfqf --max-time 10m --output tuned

      datafree quantize --config run/config.yaml --output again

      datafree quantize --resume run
    """
    if resume is not None:
        config, output = unfinished(resume), resume
    if (model is None) == (config is None):
        raise ConfigError("give either a MODEL or --config with the config.yaml of an earlier run")
    base = load_config(config).model_dump() if config else {"model": {"source": model}}
    base = laid_over(base, recipe)
    allocation = allocation_fields(average_bits, budget, candidate_bits)
    scheme = {
        "policy": policy,
        "placement": placement,
        "weight_symmetric": symmetric_weights,
        "weight_granularity": None if per_tensor is None else _GRANULARITY[per_tensor],
        "weight_range": weight_range or ("mse" if reconstruction or allocation else None),
        **parse_bits(bits),
    }
    changes: dict[str, Any] = {
        "model": model_fields(weights, input_shape, mean, std),
        "scheme": {key: value for key, value in scheme.items() if value is not None},
        "synthesis": method_fields(method, option),
        "calibration": method_fields(calibrator, calibrator_option),
        "equalize": equalize, "replace_relu6": replace_relu6,
        "absorb_biases": absorb_biases, "split_outliers": split_outliers,
        "bias_correction": bias_correction,
        "reconstruction": method_fields(reconstruction, reconstruction_option),
        "allocation": allocation,
        "training": method_fields(training, training_option),
        "generator": generator, "max_time": parse_time(max_time),
        "precision": precision,
        "holdout": holdout, "data": data, "limit": limit,
        "weight_type": weight_type, "seed": seed, "device": device,
    }  # fmt: skip
    resolved = build(RunConfig, merge(merge(base, changes), images_fields(images)), "options")
    console.run_and_show(resolved, output, force=force)


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
    from datafree.runs import synthesize_to_file

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
    from datafree.runs import evaluate_run

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
    from datafree.runs import export_run

    report = export_run(run, output, weight_type=weight_type, force=force)
    console.out.print(f"{output}: {report['line']}")
    for note in report["notes"]:
        console.out.print(f"  {note}")


@app.command()
def methods() -> None:
    """List image methods, calibrators, reconstructions and fine-tuning with their defaults."""
    from datafree.runs import describe_method

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
    """List the recipes of quantize and what they choose."""
    rows = [(name, recipe.what, recipe.described()) for name, recipe in RECIPES.items()]
    console.show_table("recipes", ("name", "what", "options"), rows)


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
    from datafree.demo import COLUMNS, run_demo

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
        console.out.print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version
