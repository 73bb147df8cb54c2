"""The functions users call: thin, typed doors to the pipeline."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from datafree.config import (
    AllocationConfig,
    InputSpec,
    Method,
    ModelConfig,
    Placement,
    Policy,
    RunConfig,
    build,
    merge,
)
from datafree.errors import ConfigError, ModelError
from datafree.export.base import Exporter, ExportReport
from datafree.graph.capture import capture, to_device
from datafree.images import SyntheticSet
from datafree.models import Teacher, from_module, load_teacher
from datafree.progress import Progress, silent
from datafree.recipes import laid_over, recipe_fields
from datafree.runs.pipeline import Result, run, synthesize_images
from datafree.runs.plan import make_method, resolve_device


def quantize(
    model: nn.Module | str,
    *,
    input_shape: tuple[int, int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    weights_file: Path | str | None = None,
    recipe: str | None = None,
    weights: int = 8,
    activations: int = 8,
    average_bits: float | None = None,
    budget: str | None = None,
    candidate_bits: Sequence[int] | None = None,
    policy: Policy = "all",
    placement: Placement = "every_input",
    weight_symmetric: bool = False,
    method: str | None = None,
    method_options: Mapping[str, Any] | None = None,
    images: int | SyntheticSet | Tensor | None = None,
    calibrator: str | None = None,
    calibrator_options: Mapping[str, Any] | None = None,
    equalize: bool | None = None,
    replace_relu6: bool | None = None,
    absorb_biases: bool | None = None,
    split_outliers: float | None = None,
    bias_correction: Literal["auto", "empirical", "analytic", "none"] | None = None,
    reconstruction: str | None = None,
    reconstruction_options: Mapping[str, Any] | None = None,
    training: str | None = None,
    training_options: Mapping[str, Any] | None = None,
    generator: Path | str | None = None,
    max_seconds: float | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    weight_range: Literal["minmax", "mse"] | None = None,
    weight_granularity: Literal["channel", "tensor"] = "channel",
    data: Path | str | None = None,
    holdout: int = 16,
    output: Path | str | None = None,
    force: bool = False,
    seed: int = 0,
    device: str = "auto",
    progress: Progress = silent,
) -> Result:
    """Quantize a trained network without any of its data.

    What is None is as the recipe has it, or else as the value in square brackets.

    Args:
        model: a module, or any source the command line takes (`digits_resnet8`, `timm:NAME`, a
            `.pt2` file …). A module is copied, never changed.
        input_shape: channels, height, width; needed for a module.
        mean: per channel; a module without it is taken to expect images scaled to 0..1.
        std: per channel.
        weights_file: safetensors file loaded into a source given by name.
        recipe: all methods at once: `dfq`, `fast`, `balanced`, `best` or `trained`
            (`datafree.recipes`); the other arguments change it.
        weights: bits of weights, 2 to 8.
        activations: bits of activations, 2 to 8, or 32 to leave them in float.
        average_bits: mixed precision: bits of the weights chosen layer by layer on the images, so
            many on average, instead of `weights`; the policy's 8-bit layers are not counted.
        budget: the same within a size of all weights, ``"0.5MB"``, or bit operations of one image,
            ``"2.5GBOPs"``.
        candidate_bits: numbers of bits a layer can be given by these; None takes 2, 3, 4, 5, 6, 8.
        policy: `all` layers; first and last layer's weights at 8 bits (`first_last_8`); or `brecq`,
            with the inputs of the second and last layer at 8 bits too.
        placement: activation quantizers on `every_input` of a layer or `after_activation` functions
            only.
        weight_symmetric: zero point 0 for weights (TensorRT, LiteRT).
        method: image method: `dsg`, `zeroq`, `genie`, `sadag`, `intraq`, `generator`, `noise`
            [`dsg`].
        method_options: its hyper-parameters that differ from the defaults, e.g.
            ``{"iterations": 200}``.
        images: how many to synthesise [32], or calibration images of your own: a set, or a tensor
            (N, C, H, W) in normalised space.
        calibrator: rule of the activation ranges: `mse`, `minmax`, `percentile`, `ema`, `kl`,
            `aciq`, `bounded_mse`; or `bn_statistics`, which needs no images [`mse`].
        calibrator_options: its parameters, e.g. ``{"percentile": 99.9}``.
        equalize: cross-layer equalization of the float network before it is quantized; for one
            weight grid per tensor [False].
        replace_relu6: take ReLU6 for ReLU where that lets layers be equalized; this changes the
            float network where it clipped [False].
        absorb_biases: let the next layer absorb biases that keep a ReLU from ever cutting off
            [False].
        split_outliers: share of input channels to split, those of largest weight [0].
        bias_correction: take the mean shift of every layer's output off its bias, as the images
            show it (`empirical`) or as batch norms tell it without images (`analytic`), or `none`
            [`auto`: `analytic` below 8 bits where the rounding is not learned]. A training starts
            from `analytic` if it is given.
        reconstruction: how weights learn their rounding on the images: `adaround`, `brecq`,
            `qdrop`, `genie_m` [to the nearest]. A training starts from it.
        reconstruction_options: its hyper-parameters, e.g. ``{"iterations": 2000}``.
        training: how the student is fine-tuned under its teacher on images a generator dreams up
            meanwhile: `gdfq`, `dsg_qat`, `dfqf` [not at all].
        training_options: its hyper-parameters, e.g. ``{"iterations": 2000}``.
        generator: file of a generator that an earlier training warmed up, to start from.
        max_seconds: time for the training, which then ends early and cleanly.
        precision: of the training; `bf16` needs Hugging Face accelerate.
        weight_range: range of the weights' grids, `minmax` or `mse` [`minmax`; `mse` where they
            are reconstructed or of mixed precision].
        weight_granularity: one weight grid per output `channel` or per `tensor`.
        data: labelled test images to measure top-1 on; without them teacher and student are
            compared on synthetic images of another seed.
        holdout: number of those images; 0 leaves the comparison out.
        output: folder to write configuration, images, pictures, student, ONNX and metrics to.
        force: replace an earlier run there.
        seed: the same seed gives the same student on the same machine.
        device: `auto`, `cpu`, `cuda`, `cuda:N`.
        progress: see `datafree.progress`.

    Returns:
        Student, teacher graph, images and what was measured.

    Raises:
        DatafreeError: one line that says what was wrong and what to do.
    """
    allocation = _allocation(average_bits, budget, candidate_bits)
    learned = reconstruction is not None or allocation is not None
    described = _describe(model, input_shape, mean, std, weights_file)
    teacher = _teacher(model, described)
    given = _given(images, teacher.spec)
    scheme = {
        "weights": weights,
        "activations": activations,
        "policy": policy,
        "placement": placement,
        "weight_symmetric": weight_symmetric,
        "weight_granularity": weight_granularity,
        "weight_range": weight_range or ("mse" if learned else None),
    }
    changes = {
        "scheme": {key: value for key, value in scheme.items() if value is not None},
        "synthesis": _method(method, method_options),
        "images": images if given is None else len(given),
        "calibration": _method(calibrator, calibrator_options),
        "equalize": equalize,
        "replace_relu6": replace_relu6,
        "absorb_biases": absorb_biases,
        "split_outliers": split_outliers,
        "bias_correction": bias_correction,
        "reconstruction": _method(reconstruction, reconstruction_options),
        "training": _method(training, training_options),
        "generator": None if generator is None else Path(generator),
        "max_time": max_seconds,
        "precision": precision,
        "allocation": allocation,
        "data": None if data is None else Path(data),
        "holdout": holdout,
        "seed": seed,
        "device": device,
    }
    base = laid_over({"model": described}, recipe)
    if reconstruction_options and not (reconstruction or base.get("reconstruction")):
        raise ConfigError("reconstruction_options were given without a reconstruction: name one")
    config = build(RunConfig, merge(base, changes), "run")
    folder = None if output is None else Path(output)
    return run(config, teacher=teacher, images=given, folder=folder, force=force, progress=progress)


def distill(
    model: nn.Module | str,
    student: nn.Module | str,
    *,
    input_shape: tuple[int, int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    weights: int | None = None,
    activations: int | None = None,
    recipe: str | None = None,
    options: Mapping[str, Any] | None = None,
    generator: Path | str | None = None,
    max_seconds: float | None = None,
    data: Path | str | None = None,
    output: Path | str | None = None,
    force: bool = False,
    seed: int = 0,
    device: str = "auto",
    progress: Progress = silent,
) -> Result:
    """Teach another, smaller network what a trained one knows, without data (DFQF, Algorithm 1).

    Args:
        model: the teacher, a module or a source as in `quantize`.
        student: the network to distill into. A module is copied and starts from its own weights; a
            source given by name starts from weights drawn anew.
        input_shape: channels, height, width; needed for a module.
        mean: per channel.
        std: per channel.
        weights: bits of the student's weights; None leaves it in float.
        activations: bits of its activations; None takes as many as for weights.
        recipe: `short`, a schedule for a processor; None is the paper's, meant for a GPU.
        options: hyper-parameters of `distill`, e.g. ``{"warmup": 5000}``; they change the recipe.
        generator: file of a generator to start from.
        max_seconds: time for the training, which then ends early and cleanly.
        data: labelled test images to measure top-1 on.
        output: folder to write to.
        force: replace an earlier run there.
        seed: of all random numbers.
        device: `auto`, `cpu`, `cuda`, `cuda:N`.
        progress: see `datafree.progress`.

    Returns:
        The student, in float unless `weights` were given, and what was measured.

    Raises:
        DatafreeError: one line that says what was wrong and what to do.
    """
    described = _describe(model, input_shape, mean, std, None)
    teacher = _teacher(model, described)
    own = None if isinstance(student, str) else copy.deepcopy(student).eval()
    bits = {"weights": weights, "activations": activations or weights} if weights else {}
    base = merge({"training": {"name": "distill"}}, recipe_fields(recipe, "distill"))
    fields: dict[str, Any] = {
        "model": described,
        "student": _describe(student, None, None, None, None),
        "float_student": weights is None,
        "scheme": bits,
        "training": {"options": dict(options or {})},
        "generator": generator,
        "max_time": max_seconds,
        "data": data,
        "seed": seed,
        "device": device,
    }
    config = build(RunConfig, merge(base, fields), "distillation")
    folder = None if output is None else Path(output)
    return run(config, teacher=teacher, student=own, folder=folder, force=force, progress=progress)


def synthesize(
    model: nn.Module | str,
    *,
    input_shape: tuple[int, int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    weights_file: Path | str | None = None,
    method: str = "dsg",
    count: int = 32,
    seed: int = 0,
    device: str = "auto",
    progress: Progress = silent,
    **options: Any,
) -> SyntheticSet:
    """Images a network remembers, in normalised space; arguments as in `quantize`.

    Args:
        model: a module or a source.
        input_shape: channels, height, width; needed for a module.
        mean: per channel.
        std: per channel.
        weights_file: safetensors file loaded into a source given by name.
        method: image method.
        count: number of images.
        seed: of all random numbers.
        device: where to compute.
        progress: see `datafree.progress`.
        **options: hyper-parameters of the method, e.g. ``iterations=200``.

    Raises:
        DatafreeError: one line that says what was wrong and what to do.
    """
    described = _describe(model, input_shape, mean, std, weights_file)
    teacher = _teacher(model, described)
    config = build(
        RunConfig,
        {
            "model": described,
            "synthesis": Method(name=method, options=options),
            "images": count,
            "seed": seed,
            "device": device,
        },
        "run",
    )
    graph = to_device(capture(teacher.model, teacher.spec), resolve_device(device))
    return synthesize_images(graph, teacher.spec, config, progress)


def export_student(
    student: fx.GraphModule,
    path: Path | str,
    *,
    spec: InputSpec,
    images: SyntheticSet | Tensor | None = None,
    weight_type: Literal["auto", "int8", "uint8"] = "auto",
    force: bool = False,
) -> ExportReport:
    """Write a student as integer ONNX (`.onnx`) or torch program (`.pt2`), and check the file.

    Args:
        student: from `quantize`.
        path: the suffix chooses the format.
        spec: the student's input.
        images: normalised images the file is checked on; None takes Gaussian ones.
        weight_type: integer type of 8-bit weights in ONNX.
        force: replace a file that exists.

    Raises:
        OutputExistsError: `path` exists and `force` was not given.
        ParityError: the file does not compute what the student computes.
        ExportError: the student cannot be written in this format.
    """
    target = Path(path).suffix.removeprefix(".")
    options = {"weight_type": weight_type} if target == "onnx" else {}
    exporter: Exporter = make_method(Method(name=target, options=options), "export", Exporter)
    check = images.images if isinstance(images, SyntheticSet) else images
    student = to_device(student, torch.device("cpu"))
    return exporter.export(student, spec, Path(path), check=check, force=force)


def _describe(
    model: nn.Module | str,
    input_shape: tuple[int, int, int] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    weights_file: Path | str | None,
) -> ModelConfig:
    source = model if isinstance(model, str) else f"<{type(model).__name__} in memory>"
    values = {
        "source": source,
        "weights": None if weights_file is None else Path(weights_file),
        "input_shape": input_shape,
        "mean": mean,
        "std": std,
    }
    return build(ModelConfig, values, "model")


def _teacher(model: nn.Module | str, described: ModelConfig) -> Teacher:
    if isinstance(model, str):
        return load_teacher(described)
    if described.input_shape is None:
        raise ModelError(
            f"{described.source} does not say what input it takes: pass input_shape=(C, H, W)"
        )
    if described.weights is not None:
        raise ModelError(
            "weights_file goes with a source given by name: load the weights into your module"
        )
    return from_module(
        model, input_shape=described.input_shape, mean=described.mean, std=described.std
    )


def _method(name: str | None, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of `Method` that were given."""
    changes: dict[str, Any] = {} if name is None else {"name": name, "options": {}}
    return changes | ({"options": dict(options)} if options else {})


def _allocation(
    average_bits: float | None, budget: str | None, candidate_bits: Sequence[int] | None
) -> AllocationConfig | None:
    given = {"average_bits": average_bits, "budget": budget, "bits": candidate_bits}
    values = {key: value for key, value in given.items() if value is not None}
    return build(AllocationConfig, values, "allocation") if values else None


def _given(images: int | SyntheticSet | Tensor | None, spec: InputSpec) -> SyntheticSet | None:
    if images is None or isinstance(images, int):
        return None
    if isinstance(images, Tensor):
        return SyntheticSet(images.float(), spec, metadata={"method": "given"})
    return images
