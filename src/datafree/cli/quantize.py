"""The command that quantizes a network, and the options only it has."""

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
from datafree.errors import ConfigError
from datafree.recipes import laid_over

_GRANULARITY = {True: "tensor", False: "channel"}


def quantize(  # noqa: PLR0913 - one option each
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
            help="All methods at once: dfq (no images), fast (seconds), balanced (minutes), best"
            " (hours) or trained (fine-tuned, for few bits); other options change it."
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
            " auto: analytic below 8 bits where nothing is learned. A training can start from"
            " analytic. [auto]"
        ),
    ] = None,
    per_tensor: Annotated[
        bool | None,
        typer.Option("--per-tensor/--per-channel", help="One weight grid per layer. [channel]"),
    ] = None,
    reconstruction: Annotated[
        str | None,
        typer.Option(
            help="Learn how weights are rounded: adaround, brecq, qdrop, genie_m or none; with"
            " --training, before it. [none]"
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
