"""The functions users call: thin, typed doors to a run.

Their options are the fields of `datafree.config`, where each is declared and explained once; types,
signatures and the arguments below the descriptions come from there.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Concatenate,
    Literal,
    ParamSpec,
    TypeVar,
    cast,
    get_type_hints,
)

import numpy as np
import torch
from pydantic import BeforeValidator, ConfigDict, PlainValidator, SkipValidation
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from datafree.config import (
    DistillOptions,
    Frozen,
    InputSpec,
    ModelConfig,
    QuantizeOptions,
    RunConfig,
    build,
    distillation,
    merge,
)
from datafree.config.base import by_name
from datafree.config.fields import Described, Shown, describe, in_panels, plain_type
from datafree.config.former import renamed
from datafree.config.options import (
    BenchmarkOptions,
    ExciteOptions,
    FolderOptions,
    ImageCount,
    ImageOptions,
    MachineOptions,
    RecipeOptions,
    TeacherOptions,
)
from datafree.config.parsing import optional_path, reference
from datafree.config.widths import name_patterns
from datafree.detection.precision import MeanAveragePrecision
from datafree.errors import ConfigError, DataError, ModelError
from datafree.export.base import Exporter, ExportReport
from datafree.graph.capture import to_device
from datafree.images import SyntheticSet, from_arrays
from datafree.models import Teacher, from_module, load_teacher
from datafree.models.given import recognised
from datafree.progress import Progress, silent
from datafree.progress.bars import Bars, progress_of
from datafree.recipes import laid_over, recipe_fields
from datafree.runs.benchmark import benchmark_run
from datafree.runs.loaded import Run
from datafree.runs.pipeline import Result, run
from datafree.runs.plan import exporter_for
from datafree.runs.searching import carry_out
from datafree.runs.sets import opened, synthesize_set
from datafree.runtimes import Runtime

P = ParamSpec("P")
C = TypeVar("C", bound=Frozen)
R = TypeVar("R")

GivenImages = int | str | Path | SyntheticSet | Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
"""A number of images, where some are, or some."""
Network = nn.Module | ExportedProgram | str | Path
"""A network in memory, or where one comes from: a name, a file."""


class Shows(Frozen):
    """What only Python has."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    panel: ClassVar[str] = "Output"

    progress: Annotated[Progress | bool, SkipValidation, Shown("silent")] = silent
    """True shows bars with the time left; a function of your own is described in
    `datafree.progress`."""


def image_source(value: Any) -> GivenImages:
    """Images as `quantize` takes them; NumPy arrays become tensors.

    Raises:
        ValueError: none of these.
    """
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))  # pyright: ignore[reportUnknownMemberType]
    try:
        if isinstance(value, Mapping) and value:
            arrays = cast("Mapping[str, Any]", value)
            return {str(name): torch.as_tensor(array) for name, array in arrays.items()}
        if isinstance(value, list | tuple) and value:
            return tuple(torch.as_tensor(image) for image in cast("Sequence[Any]", value))
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"a {type(value).__name__} of things that are no arrays holds no images"
        ) from None
    if isinstance(value, int | str | Path | SyntheticSet | Tensor) and not isinstance(value, bool):
        return value
    raise ValueError(
        f"{type(value).__name__} is neither a number of images nor images: give a number, a"
        " file of images or a generator, a SyntheticSet, or a tensor or array (N, C, H, W)"
    )


class AnyImages(Frozen):
    """Images, or how many."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    panel: ClassVar[str] = "Images"

    images: Annotated[GivenImages, PlainValidator(image_source), Shown("32")] = 32
    """Number of synthetic images to calibrate with; a .safetensors file: images that `synthesize`
    wrote, or the generator of a training that is to make them; or images of your own: a set, or a
    tensor, an array or a list of them (N, C, H, W) in normalised space; of several inputs an array
    each, as a tuple or by name."""


class AnyStudent(Frozen):
    """Who is taught."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    panel: ClassVar[str] = "Model"

    student: Annotated[
        str | nn.Module | ExportedProgram, PlainValidator(partial(recognised, what="the student"))
    ]
    """Network to distill into. A module is copied and starts from its own weights; a source given
    by name starts from weights drawn anew."""


class AnyMetric(Frozen):
    """A measure of the user's own."""

    panel: ClassVar[str] = "Output"

    metric: Annotated[
        str | Callable[..., float] | None, SkipValidation, Shown("by the network")
    ] = None
    """What is measured on the test images: `top1`, `miou` (mean IoU), `map` (mean average
    precision of boxes), or a measure of your own: a function, or `file.py:function`, of what the
    network returns for all of them and of their labels, which returns a number."""
    decode: Annotated[
        str | Callable[..., Any] | None, SkipValidation, Shown("the network's own")
    ] = None
    """Of a detector, what makes boxes of what it returns for a batch, for `map`: a function, or
    `file.py:function`, that returns for every image a dict of `boxes` (left, top, right, bottom
    in pixels of the network's input), `scores` and `labels`."""


AnyPath = Annotated[Path | str | None, BeforeValidator(optional_path)]
"""A file or folder as a caller names it."""


class AnyFiles(Frozen):
    """Files by their names."""

    weights_file: Annotated[AnyPath, Shown("those the source brings")] = None


class AnyOutputs(AnyFiles):
    """Files of a whole run by their names."""

    data: Annotated[AnyPath, Shown("compared without labels")] = None
    generator: Annotated[AnyPath, Shown("a new one is warmed up")] = None
    class_names: Annotated[AnyPath, Shown("not told", "FILE")] = None
    keep_float: Annotated[
        str | Sequence[str],
        BeforeValidator(name_patterns),
        Shown("no layer", "LAYER", repeated=True),
    ] = ()


class AnyStart(Frozen):
    """The weights a student starts from by their name."""

    student_weights_file: Annotated[AnyPath, Shown("drawn anew")] = None


class QuantizeCall(  # pyright: ignore[reportIncompatibleVariableOverride] - takes functions too
    Shows, FolderOptions, AnyImages, AnyMetric, AnyOutputs, QuantizeOptions, RecipeOptions
):
    """All that `quantize` takes beside the network."""


class DistillCall(  # pyright: ignore[reportIncompatibleVariableOverride] - takes functions too
    Shows, FolderOptions, AnyMetric, AnyOutputs, AnyStart, DistillOptions, RecipeOptions, AnyStudent
):
    """All that `distill` takes beside the teacher."""


class SynthesizeCall(  # pyright: ignore[reportIncompatibleVariableOverride]
    Shows, AnyFiles, MachineOptions, ExciteOptions, ImageCount, ImageOptions, TeacherOptions
):
    """All that `synthesize` takes beside the network."""


def takes(
    options: Callable[P, C],
) -> Callable[[Callable[[Network, C], R]], Callable[Concatenate[Network, P], R]]:
    """Turn a function of (model, options) into one that takes the options as keywords.

    Types come from the fields of the class; signature and documentation are written from them.

    Args:
        options: a configuration class.
    """

    def wrap(
        door: Callable[[Network, C], R],
    ) -> Callable[Concatenate[Network, P], R]:
        def opened(model: Network, /, *args: P.args, **kwargs: P.kwargs) -> R:
            assert inspect.isclass(options)  # noqa: S101 - only classes are decorated with
            if args:
                raise ConfigError(f"{door.__name__}: {by_name(args[0])}")
            given = build(options, renamed(kwargs, options.model_fields), door.__name__)
            return door(model, given)

        return _documented(opened, door, options)

    return wrap


def _documented(opened: Any, door: Any, options: Any) -> Any:
    """`opened` with the name of `door`, a signature and a documentation of all options."""
    opened.__name__, opened.__qualname__ = door.__name__, door.__qualname__
    opened.__module__ = door.__module__
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.KEYWORD_ONLY
    first = inspect.Parameter("model", kinds[0], annotation=Network)
    own = [_parameter(name, options.model_fields[name], kinds[1]) for name in in_panels(options)]
    returned = get_type_hints(door)["return"]
    opened.__signature__ = inspect.Signature([first, *own], return_annotation=returned)
    told = [_told(describe(options, name)) for name in in_panels(options)]
    text = inspect.getdoc(door) or ""
    opened.__doc__ = text.replace("    call: what is listed below.\n", "".join(told))
    return opened


def _parameter(name: str, field: FieldInfo, kind: Any) -> inspect.Parameter:
    default = field.get_default(call_default_factory=True, validated_data={})
    given = {} if default is PydanticUndefined else {"default": default}
    return inspect.Parameter(name, kind, annotation=plain_type(field.annotation), **given)


def _told(field: Described) -> str:
    """An option as an entry of a docstring."""
    allowed = f" Takes {field.allowed}." if field.allowed and not field.choices else ""
    default = f" Default: {field.default}." if field.default else ""
    text = f"{field.name}: {field.meaning}{allowed}{default}"
    return textwrap.fill(text, 96, initial_indent=" " * 4, subsequent_indent=" " * 8) + "\n"


@takes(QuantizeCall)
def quantize(model: Network, call: QuantizeCall) -> Result:
    """Quantize a trained network without any of its data.

    Options that are not given are as the recipe has them, or else as their default.

    Args:
        model: a module, a program of `torch.export`, or any source the command line takes
            (`digits_resnet8`, `timm:NAME`, a `.pt2` file …). A module is copied, never changed;
            wrappers (`DataParallel`, `torch.compile`, …) and trainers stay behind.
        call: what is listed below.

    Returns:
        Student, teacher graph, images and what was measured.

    Raises:
        DatafreeError: one line that says what was wrong and what to do.
    """
    teacher, described_as = _teacher(model, call)
    changes = _given(call, QuantizeOptions)
    images = call.images if "images" in call.model_fields_set else None
    own = _own_images(images, teacher.spec)
    if images is not None:
        changes["images"] = images if own is None else len(own)
    base = laid_over({"model": described_as}, call.recipe)
    config = build(RunConfig, merge(base, changes), "quantize")
    return carry_out(config, teacher=teacher, images=own, **_where(call))


@takes(DistillCall)
def distill(model: Network, call: DistillCall) -> Result:
    """Teach another, smaller network what a trained one knows, without data (DFQF, Algorithm 1).

    Args:
        model: the teacher, a module or a source as in `quantize`.
        call: what is listed below.

    Returns:
        The student, in float unless `bits` were given, and what was measured.

    Raises:
        DatafreeError: one line that says what was wrong and what to do.
    """
    teacher, described_as = _teacher(model, call)
    own = None if isinstance(call.student, str) else call.student
    base = {"model": described_as, "student": _source(call.student), "training": "distill"}
    base |= recipe_fields(call.recipe, "distill")
    config = build(RunConfig, distillation(base, _given(call, DistillOptions)), "distill")
    return run(config, teacher=teacher, student=own, **_where(call))


@takes(SynthesizeCall)
def synthesize(model: Network, call: SynthesizeCall) -> SyntheticSet:
    """Images a network remembers, in normalised space.

    Args:
        model: a module or a source, as in `quantize`.
        call: what is listed below.

    Returns:
        A set of images, which is a torch Dataset too.

    Raises:
        DatafreeError: one line that says what was wrong and what to do.
    """
    teacher, described_as = _teacher(model, call)
    own = {"progress", *ExciteOptions.model_fields}
    given = {n: v for n, v in _given(call, SynthesizeCall).items() if n not in own}
    config = build(RunConfig, {**given, "model": described_as}, "synthesize")
    return synthesize_set(
        opened(teacher, config), teacher.spec, config, call, progress_of(call.progress)
    )


def export_student(
    student: fx.GraphModule,
    path: Path | str,
    *,
    spec: InputSpec,
    images: SyntheticSet | Tensor | None = None,
    format: str | type[Exporter] | Exporter | None = None,
    format_options: Mapping[str, Any] | None = None,
    force: bool = False,
) -> ExportReport:
    """Write a student as integer ONNX (`.onnx`) or torch program (`.pt2`), and check the file.

    Args:
        student: from `quantize`.
        path: file to write.
        spec: the student's input.
        images: normalised images the file is checked on; None takes Gaussian ones.
        format: name, class or instance of the export format; None is the suffix of `path`.
        format_options: its hyper-parameters, such as ``{"weight_type": "uint8"}`` of ONNX.
        force: replace a file that exists.

    Raises:
        OutputExistsError: `path` exists and `force` was not given.
        ConfigError: an unknown format or option.
        ParityError: the file does not compute what the student computes.
        ExportError: the student cannot be written in this format.
    """
    if isinstance(format, Exporter):
        exporter = format
    else:
        name = None if format is None else reference(format)
        exporter = exporter_for(Path(path), name, format_options)
    check = images.images if isinstance(images, SyntheticSet) else images
    student = to_device(student, torch.device("cpu"))
    return exporter.export(student, spec, Path(path), check=check, force=force)


def benchmark(
    run: Result | Run | Path | str,
    *,
    float_file: Path | str | None = None,
    runtime: str | type[Runtime] | Runtime = "onnxruntime",
    threads: Sequence[int | Literal["all"]] = (1, "all"),
    batch: Sequence[int] = (1, 8),
    seconds: float = 6.0,
    input_shape: Sequence[int] | None = None,
    keep_float: bool = False,
    trust_code: bool = False,
    progress: Progress | bool = silent,
) -> dict[str, Any]:
    """Which layers of a student have integer kernels, why others have none, and how long it takes.

    Args:
        run: result or folder of a run, whose ``benchmark.json`` is then written; or an ONNX file.
        float_file: ONNX file of the float network; None makes it from the run's model. Of a student
            that is a file, None times nothing.
        runtime: name, class or instance of the runtime.
        threads: numbers of threads; ``"all"`` is all this process may use.
        batch: numbers of images that pass through the network together.
        seconds: for all runs, loading aside; small networks take less.
        input_shape: of one image, (C, H, W), where the file leaves it open.
        keep_float: keep the float network as ``float.onnx`` in the run's folder.
        trust_code: Python code that the configuration of a run's folder names may run.
        progress: True shows bars; or see `datafree.progress`.

    Returns:
        ``integer`` of ``total`` layers, ``floats`` (name, op, reason, detail, share of the time),
        ``bytes``, ``latency_ms`` (rows with threads, batch, medians of float and student in
        milliseconds of a whole batch, quartiles), ``notes`` and more.

    Raises:
        ConfigError: no run, no student, or an option out of range.
        InferenceError: the runtime is not installed, or refuses a file.
    """
    given = {
        "runtime": reference(runtime), "threads": tuple(threads), "batch": tuple(batch),
        "seconds": seconds, "float_file": float_file, "keep_float": keep_float,
        "input_shape": None if input_shape is None else tuple(input_shape),
    }  # fmt: skip
    options = build(BenchmarkOptions, given, "benchmark")
    if not isinstance(run, Result | Run | Path | str):  # pyright: ignore
        raise ConfigError(
            f"benchmark takes the result or the folder of a run, or an ONNX file, not {run!r}"
        )
    subject = run if isinstance(run, Result) else run.folder if isinstance(run, Run) else Path(run)
    trusted = trust_code or (isinstance(run, Run) and run.trust_code)
    return benchmark_run(subject, options, progress_of(progress), trust_code=trusted)


def _given(call: Frozen, options: type[Frozen]) -> dict[str, Any]:
    """The fields of `options` that the caller named."""
    named = call.model_fields_set & options.model_fields.keys()
    given = {name: getattr(call, name) for name in named}
    return {n: v for n, v in given.items() if n not in ("metric", "decode") or not callable(v)}


def _where(call: QuantizeCall | DistillCall) -> dict[str, Any]:
    """What a run is told beside its configuration."""
    metric = None if isinstance(call.metric, str) else call.metric
    if callable(call.decode):
        if call.metric not in (None, "map"):
            raise ConfigError("decode makes boxes, for metric='map': leave out one of the two")
        metric = MeanAveragePrecision(call.decode)
    progress = progress_of(call.progress)
    # Whoever wants bars wants the time that is left, also of what has no steps to count.
    tell = progress.say if isinstance(progress, Bars) else None
    where = {"folder": call.output, "force": call.force, "progress": progress, "tell": tell}
    return {**where, "metric": metric}


def _source(model: nn.Module | ExportedProgram | str) -> str:
    return model if isinstance(model, str) else f"<{type(model).__name__} in memory>"


def _teacher(given: Network, call: TeacherOptions) -> tuple[Teacher, str]:
    """The teacher, and what its source is called."""
    model = recognised(given)
    source = _source(model)
    told = {name: getattr(call, name) for name in TeacherOptions.model_fields}
    if isinstance(model, str):
        return load_teacher(ModelConfig(source=source, **told)), source
    if call.weights_file is not None:
        raise ModelError(
            "weights_file goes with a source given by name: load the weights into your module"
        )
    known = {name: told[name] for name in ("input_shape", "mean", "std", "classes", "task")}
    return from_module(model, **known), source


def _own_images(images: GivenImages | None, spec: InputSpec) -> SyntheticSet | None:
    if images is None or isinstance(images, int | str | Path):
        return None
    if isinstance(images, SyntheticSet):
        return images
    several = isinstance(images, tuple) and len(images) == len(spec.inputs) > 1
    if isinstance(images, tuple) and not several:
        images = _stacked(images)
    if spec.inputs:
        given = (images,) if isinstance(images, Tensor) else images
        packed = from_arrays(given, spec, "images")
        return SyntheticSet(packed, spec, metadata={"method": "given"})
    if not isinstance(images, Tensor):
        raise DataError("this network takes one image: give images as one array (N, C, H, W)")
    return SyntheticSet(images.float(), spec, metadata={"method": "given"})


def _stacked(images: tuple[Tensor, ...]) -> Tensor:
    """A list of images as one tensor."""
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        told = ", ".join(str(shape) for shape in sorted(shapes)[:3])
        raise DataError(f"images have several sizes ({told}): bring them to the network's")
    return torch.stack(images)
