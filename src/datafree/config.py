"""Frozen descriptions of what to do: the input of a network, the quantization scheme, a whole run.

Unknown keys are errors everywhere. A `RunConfig` written to `config.yaml` repeats the run exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from datafree.errors import ConfigError
from datafree.files import write_text

Policy = Literal["all", "first_last_8", "brecq"]
Placement = Literal["every_input", "after_activation"]
Bits = Annotated[int, Field(ge=2, le=8)]
T = TypeVar("T", bound="Frozen")


class Frozen(BaseModel):
    """A configuration: immutable, keyword-only, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class InputSpec(Frozen):
    """What a network takes and returns.

    Attributes:
        shape: channels, height, width of one image.
        mean: per channel, subtracted from images scaled to 0..1.
        std: per channel, divided by after the mean is subtracted.
        classes: number of outputs of the classifier.
    """

    shape: tuple[int, int, int]
    mean: tuple[FiniteFloat, ...]
    std: tuple[FiniteFloat, ...]
    classes: int = Field(ge=1)

    @field_validator("shape")
    @classmethod
    def _positive(cls, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        if min(shape) < 1:
            raise ValueError(f"all of channels, height, width must be at least 1, got {shape}")
        return shape

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> Self:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.shape[0]:
                raise ValueError(f"{name} has {len(values)} values for {self.shape[0]} channels")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        return self


class Scheme(Frozen):
    """Which numbers a student is allowed: bits, grids, and where quantizers stand.

    Attributes:
        weights: bits of weights, 2 to 8.
        activations: bits of activations, 2 to 8, or 32 for activations left in float.
        weight_granularity: one grid per output `channel` or one per `tensor`.
        weight_symmetric: signed codes around a zero point of 0 (TensorRT, LiteRT) instead of an
            affine grid.
        activation_symmetric: zero point 0, codes unsigned where the position in the graph is never
            negative.
        weight_range: range of the weights' grids: `minmax`, their extremes; `mse`, the least error
            to the power 2.4 over a hundred shrunken ranges, as reconstruction methods start from.
        policy: `all` layers at the bits above; first and last layer's weights at 8 bits
            (`first_last_8`); or `brecq`, as BRECQ, Genie and SADAG have it: these weights and the
            inputs of the second and the last layer at 8 bits, the network's own input in float.
        placement: quantize `every_input` of a convolution or linear layer, as integer kernels need
            (the network's own input at 8 bits, like the image it is); or only `after_activation`
            functions, as in the ZeroQ and DSG papers. Adds, concatenations and pooling stay in
            float between the two.
        ste: gradient of rounding passes `clipped` values (zero gradient) or not (`full`).
        layer_bits: bits of the weights of single layers, by layer path, instead of `weights`: mixed
            precision. Layers that `policy` keeps at 8 bits cannot be given others.
    """

    weights: Bits = 8
    activations: int = 8
    weight_granularity: Literal["channel", "tensor"] = "channel"
    weight_symmetric: bool = False
    activation_symmetric: bool = False
    weight_range: Literal["minmax", "mse"] = "minmax"
    policy: Policy = "all"
    placement: Placement = "every_input"
    ste: Literal["clipped", "full"] = "clipped"
    layer_bits: Mapping[str, Bits] = Field(default_factory=dict)

    @field_validator("activations")
    @classmethod
    def _activation_bits(cls, bits: int) -> int:
        if bits != 32 and not 2 <= bits <= 8:
            raise ValueError(f"must be 2 to 8, or 32 for float activations, got {bits}")
        return bits

    @property
    def label(self) -> str:
        """Short name as in the papers' tables, e.g. ``W4A4``; ``WmixedA8`` with `layer_bits`."""
        return f"W{'mixed' if self.layer_bits else self.weights}A{self.activations}"


class AllocationConfig(Frozen):
    """What mixed precision is to keep to: an average or a budget, one of the two.

    Attributes:
        average_bits: of the weights, over the layers whose bits the policy leaves free: the
            network is as large as with that many bits everywhere.
        budget: size of all quantized layers' weights, ideally packed, such as `0.5MB` or `300kB`
            (1 kB is 1000 bytes), or bit operations of one image, such as `2.5GBOPs`.
        bits: numbers of bits a layer can be given.
    """

    average_bits: float | None = Field(default=None, ge=2, le=8)
    budget: str | None = None
    bits: tuple[Bits, ...] = Field(default=(2, 3, 4, 5, 6, 8), min_length=1)

    @field_validator("bits")
    @classmethod
    def _sorted(cls, bits: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(bits)))

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.average_bits is None) == (self.budget is None):
            raise ValueError("give either average_bits or budget")
        return self


class Method(Frozen):
    """A method by name with the hyper-parameters that differ from its defaults."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class ModelConfig(Frozen):
    """Where the teacher comes from.

    Attributes:
        source: `digits_resnet8`, `timm:NAME`, `torchvision:NAME`, `pytorchcv:NAME`, a `.pt2` file,
            or `package.module:factory`.
        weights: safetensors file to load into it; None takes what the source brings.
        input_shape: channels, height, width; None takes the source's own.
        mean: per channel; None takes the source's own.
        std: per channel; None takes the source's own.
        classes: number of classes; None is read off the network's output.
    """

    source: str
    weights: Path | None = None
    input_shape: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    classes: int | None = Field(default=None, ge=1)


class RunConfig(Frozen):
    """One run of the whole pipeline.

    Attributes:
        model: the teacher.
        scheme: the student's numbers.
        synthesis: image method.
        images: number of synthetic images to calibrate with.
        calibration: calibrator of the activation ranges.
        equalize: cross-layer equalization of the float network before it is quantized; for weights
            with one grid per tensor.
        replace_relu6: take ReLU6 for ReLU where that lets layers be equalized; the float network
            then computes something else where it clipped.
        absorb_biases: let the next layer absorb biases that keep a ReLU from ever cutting off.
        split_outliers: share of a convolution's input channels that are added by splitting those
            with the largest weights, except in the first and in grouped ones; 0 splits none.
        bias_correction: take the mean shift of every layer's output off its bias, as the images
            show it (`empirical`) or as batch norms tell it without images (`analytic`); `auto` is
            `analytic` where weights below 8 bits are rounded to the nearest, which gains most there
            and costs nothing; None never does. Training may start from `analytic`.
        reconstruction: how weights learn their rounding on the images; None rounds to the nearest.
            Training may start from it.
        training: how the student is fine-tuned under its teacher on a generator's images, instead
            of on a fixed set; None leaves its weights as quantized.
        generator: file of a generator that an earlier training warmed up; None warms one up.
        student: network of another architecture to distill into, its weights drawn anew unless it
            names some; None makes the student from the teacher.
        float_student: leave the distilled student in float.
        precision: of training: `bf16` computes layers in bfloat16 where that is safe.
        max_time: seconds training may take; it ends early and cleanly. None has no limit.
        allocation: bits of the weights chosen layer by layer within a budget, instead of
            ``scheme.weights``; None has the same everywhere.
        holdout: synthetic images of another seed for the label-free comparison; 0 leaves it out,
            and so does a run that needs no images.
        data: labelled test data (`.npz`, folder with `labels.csv`, CIFAR batches); None compares
            without labels.
        limit: use at most this many test images; None uses all.
        weight_type: integer type of weights in ONNX; `auto` is unsigned for affine grids, signed
            for symmetric.
        export: write ONNX and `.pt2` of the student.
        seed: every random number of the run follows from it.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
    """

    model: ModelConfig
    scheme: Scheme = Scheme()
    synthesis: Method = Method(name="dsg")
    images: int = Field(default=32, ge=1)
    calibration: Method = Method(name="mse")
    equalize: bool = False
    replace_relu6: bool = False
    absorb_biases: bool = False
    split_outliers: float = Field(default=0.0, ge=0, le=1)
    bias_correction: Literal["auto", "empirical", "analytic"] | None = "auto"
    reconstruction: Method | None = None
    training: Method | None = None
    generator: Path | None = None
    student: ModelConfig | None = None
    float_student: bool = False
    max_time: float | None = Field(default=None, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    allocation: AllocationConfig | None = None
    holdout: int = Field(default=16, ge=0)
    data: Path | None = None
    limit: int | None = Field(default=None, ge=1)
    weight_type: Literal["auto", "int8", "uint8"] = "auto"
    export: bool = True
    seed: int = Field(default=0, ge=0)
    device: str = "auto"

    @field_validator("reconstruction", "training", "bias_correction", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        """`none` takes back what a recipe or an earlier run had chosen."""
        name = value.get("name") if isinstance(value, dict) else value
        return None if name == "none" else value

    @model_validator(mode="after")
    def _training_fits(self) -> Self:
        if self.training is None:
            alone: dict[str, Any] = {
                "generator": self.generator,
                "student": self.student,
                "max_time": self.max_time,
            }
            alone["precision"] = None if self.precision == "fp32" else self.precision
            if given := [name for name, value in alone.items() if value is not None]:
                raise ValueError(f"{given[0]} goes with training: name a method, such as dfqf")
        elif self.synthesis.name == "generator":
            raise ValueError(
                "training dreams its own images: give the file as generator, not as images"
            )
        elif self.reconstruction is not None and self.float_student:
            raise ValueError("a float student has no rounding to learn: leave reconstruction out")
        elif self.allocation is not None:
            raise ValueError("training has no mixed precision yet: give the bits in layer_bits")
        elif self.bias_correction == "empirical":
            raise ValueError(
                "training learns biases on images itself: leave bias_correction out, or let it"
                " start from analytic"
            )
        elif (self.training.name == "distill") != (self.student is not None):
            raise ValueError("the training distill goes with student, the network to distill into")
        if self.float_student and self.student is None:
            raise ValueError("float_student goes with student: name a network to distill into")
        return self

    @property
    def bias_rule(self) -> Literal["empirical", "analytic"] | None:
        """How this run corrects biases: `bias_correction` with `auto` decided."""
        if self.bias_correction != "auto":
            return self.bias_correction
        fewest = min((self.scheme.weights, *self.scheme.layer_bits.values()))
        learned = self.reconstruction is not None or self.training is not None
        return "analytic" if fewest < 8 and not learned else None

    def with_layer_bits(self, layer_bits: Mapping[str, int]) -> RunConfig:
        """This run with the bits that were allocated to its layers in its scheme."""
        scheme = self.scheme.model_copy(update={"layer_bits": dict(layer_bits)})
        return self.model_copy(update={"scheme": scheme, "allocation": None})


def build(cls: type[T], values: Mapping[str, Any], what: str) -> T:
    """`cls(**values)` with pydantic's complaints turned into one line.

    Args:
        cls: configuration class.
        values: its fields.
        what: what the values describe, for the message (e.g. ``"option of dsg"``).

    Raises:
        ConfigError: a field is unknown, missing or out of range; the message names it.
    """
    try:
        return cls(**values)
    except ValidationError as error:
        raise ConfigError(f"{what}: {_one_line(error, cls)}") from None


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `RunConfig`: `base` with `changes` laid over it.

    None and empty groups change nothing. A group keeps the fields that are not changed; options of
    a method do too, unless another method is named.
    """
    defaults = RunConfig.model_fields
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(value, dict):
            if value:
                start = merged.get(key)
                default = defaults[key].default
                if start is None and isinstance(default, Frozen):
                    start = default.model_dump()
                merged[key] = _laid_over(start or {}, value)
        elif value is not None:
            merged[key] = value
    return merged


def _laid_over(group: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    result = {**group, **changes}
    if "options" in changes and changes.get("name", group.get("name")) == group.get("name"):
        result["options"] = {**group.get("options", {}), **changes["options"]}
    return result


def load_config(path: Path) -> RunConfig:
    """Read a `RunConfig` from a YAML file.

    Raises:
        ConfigError: the file is missing, not YAML, or not a run configuration.
    """
    try:
        values: object = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"cannot read configuration {path}: {str(error).splitlines()[0]}"
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} is not a run configuration: expected keys such as model, scheme, synthesis"
        )
    return build(
        RunConfig, {str(key): value for key, value in values.items()}, f"configuration {path}"
    )


def save_config(config: RunConfig, path: Path) -> None:
    """Write `config` to `path` as YAML, atomically, every default spelled out."""
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _one_line(error: ValidationError, cls: type[BaseModel]) -> str:
    parts: list[str] = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "value"
        if problem["type"] == "extra_forbidden":
            known = ", ".join(_class_at(cls, problem["loc"][:-1]).model_fields)
            parts.append(f"{where} is not known (known: {known})")
        else:
            parts.append(f"{where}: {problem['msg'].removeprefix('Value error, ')}")
    return "; ".join(parts)


def _class_at(cls: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel]:
    """The configuration class that the fields along `path` lead to."""
    for name in path:
        inner = cls.model_fields[str(name)].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            cls = inner
    return cls
