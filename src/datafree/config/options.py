"""All options, each declared once: name, type, default, range, and a string that explains it.

The classes are the panels of `--help`. `datafree quantize` and `datafree.quantize` take the fields
of `QuantizeOptions`, `datafree distill` and `datafree.distill` those of `DistillOptions`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, model_validator

from datafree.config.base import Frozen
from datafree.config.fields import Shown
from datafree.config.outputs import Task
from datafree.config.parsing import (
    by_channel,
    comma_separated,
    optional_path,
    points,
    reference,
    seconds,
    shape,
    sorted_once,
)
from datafree.config.protocols import Protocol
from datafree.config.scheme import Bits, Scheme, known_target, named_bits

Numbers = BeforeValidator(comma_separated)
MethodName = Annotated[str | type[Frozen] | Frozen, PlainValidator(reference)]
"""A method by name, by `file.py:Class`, or a class or an instance of one; kept as a name."""
NoneIsEmpty = BeforeValidator(lambda value: {} if value is None else value)
Options = Annotated[dict[str, Any], NoneIsEmpty, Shown(value="NAME=VALUE")]
ShortOptions = Annotated[dict[str, Any], NoneIsEmpty, Shown(value="NAME=VALUE", short="-o")]
METHODS = ("method", "calibrator", "reconstruction", "training")
"""Fields that name a method; `NAME_options` beside each holds its hyper-parameters."""


class TeacherOptions(Frozen):
    """What must be known of a network that does not say it itself."""

    panel: ClassVar[str] = "Model"

    weights_file: Annotated[Path | None, Shown("those the source brings")] = None
    """Weights to load into the model: a .safetensors file, or a checkpoint of a training."""
    input_shape: Annotated[
        tuple[int, ...] | tuple[tuple[int, ...], ...] | None,
        BeforeValidator(shape),
        Shown("the source's own", "C,H,W"),
    ] = None
    """Channels, height and width of its input, where the source does not say: 3,224,224. Of a
    network that takes no image the shape of one item: 1,16000. Of several inputs one each:
    3,32,32;10 on the command line, ((3, 32, 32), (10,)) in Python."""
    mean: Annotated[
        tuple[float, ...] | tuple[tuple[float, ...], ...] | None,
        BeforeValidator(by_channel),
        Shown("the source's own", "M,M,M"),
    ] = None
    """Mean per channel of images scaled to 0..1, which is taken off: 0.485,0.456,0.406, or one
    number for all. Of several inputs those of the images, or of each, separated like shapes."""
    std: Annotated[
        tuple[float, ...] | tuple[tuple[float, ...], ...] | None,
        BeforeValidator(by_channel),
        Shown("the source's own", "S,S,S"),
    ] = None
    """Deviation per channel of images scaled to 0..1, by which they are divided; as mean."""
    classes: Annotated[int | None, Field(ge=1), Shown("read off its output")] = None
    """Number of classes a network from a hub is built with."""
    task: Annotated[Task | None, Shown("guessed from what it returns")] = None
    """What the network says of an image: `classes`, which it is of; `dense`, a class at every
    position; `values`, numbers of any meaning, such as features, boxes or another image."""


class ModelConfig(TeacherOptions):
    """A network, and what must be known of it."""

    source: str
    """As for the model of a run."""


class TargetOptions(Frozen):
    """What is to run the student."""

    panel: ClassVar[str] = "Numbers"

    target: Annotated[str, AfterValidator(known_target), Shown(value="NAME")] = "onnxruntime"
    """What is to execute the student; it binds the numbers and the places of quantizers before
    anything is calibrated: `datafree targets` lists them. `paper` is none: numbers and places as
    the papers have them."""


class BudgetOptions(Frozen):
    """Mixed precision: bits of the weights chosen layer by layer, on the images."""

    panel: ClassVar[str] = "Numbers"

    average_bits: Annotated[float | None, Field(ge=2, le=8), Shown("the same everywhere")] = None
    """Mixed precision: so many bits of weights on average, over the layers whose bits the policy
    leaves free."""
    budget: Annotated[str | None, Shown("no budget", "SIZE")] = None
    """Mixed precision within a size of all weights, 0.5MB or 300kB (1 kB is 1000 bytes), or within
    bit operations of one image, 2.5GBOPs."""
    candidate_bits: Annotated[
        tuple[Bits, ...],
        Numbers,
        Field(min_length=1),
        AfterValidator(sorted_once),
        Shown(value="B,B"),
    ] = (2, 3, 4, 5, 6, 8)
    """Numbers of bits a layer can be given by mixed precision."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.average_bits is not None and self.budget is not None:
            raise ValueError("average_bits and budget exclude each other: give one of them")
        return self

    @property
    def mixed(self) -> bool:
        """Whether bits are chosen layer by layer."""
        return self.average_bits is not None or self.budget is not None


class ImageOptions(Frozen):
    """How images are made."""

    panel: ClassVar[str] = "Images"

    method: Annotated[MethodName, Shown(value="NAME")] = "dsg,psaq,prior"
    """Image method: `datafree methods` lists them. Of several names the first that fits the network
    is taken: `dsg` needs batch norms, `psaq` attention, `prior` neither."""
    method_options: ShortOptions = Field(default_factory=dict)
    """Hyper-parameter of the image method: iterations=200."""
    protocol: Annotated[Protocol | None, Shown("the methods' own")] = None
    """Do as papers do. `paper`: image methods take all the steps of their papers, and change rates
    as these do, instead of ending when the loss moves no more. The name of one paper also settles
    places and grids of quantizers, layer policy, ranges, learning and number of images, all as in
    that paper; options beside it change it, and are told wherever the protocol is."""


class PhotoOptions(Frozen):
    """Pictures that have nothing to do with the network's task, beside the ones that are made."""

    panel: ClassVar[str] = "Images"

    photos: Annotated[Path | None, Shown("all are made", "PATH")] = None
    """Pictures of anything, a folder or an .npz file, some of which stand among the images: they
    need not be what the network was trained on. The run is not strictly without data then, and
    its record says so."""
    photo_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the images that are photos, where there are photos; 1 makes none."""


class ImageCount(Frozen):
    """How many images are made."""

    panel: ClassVar[str] = "Images"

    images: Annotated[int, Field(ge=1), Shown(value="N|FILE")] = 32
    """Number of synthetic images to calibrate with; or a .safetensors file: images that
    `synthesize` wrote, or the generator of a training that is to make them."""


class ImageFile(Frozen):
    """Where images come from that are not made."""

    panel: ClassVar[str] = "Images"

    image_file: Annotated[Path | None, Shown("they are made", hidden=True)] = None
    """File that `synthesize` wrote, whose first images are taken; set by `images`."""


class ExciteOptions(Frozen):
    """What makes images safe for quantizers that set ranges by extremes, logits too."""

    panel: ClassVar[str] = "Images"

    excite: bool = True
    """Go on from the images of the method until the network is as sure of classes, and its ranges
    as wide, as on data: for the quantizers of other tools, which also quantize logits."""
    excite_options: Options = Field(default_factory=dict)
    """Hyper-parameter of that step: steps=200."""


class RangeOptions(Frozen):
    """How activation ranges are chosen."""

    panel: ClassVar[str] = "Ranges and corrections"

    calibrator: Annotated[MethodName, Shown(value="NAME")] = "mse"
    """Rule of the activation ranges: `datafree methods` lists them; `bn_statistics` needs batch
    norms and no images. Of several names the first that fits the network is taken."""
    calibrator_options: Options = Field(default_factory=dict)
    """Parameter of the calibrator: percentile=99.9."""


class CorrectionOptions(Frozen):
    """What is changed in the float network, or in biases, so that quantization loses less."""

    panel: ClassVar[str] = "Ranges and corrections"

    equalize: bool = False
    """Equalize weight ranges across layers first; for one weight grid per tensor."""
    equalize_by: Literal["magnitude", "width"] = "magnitude"
    """What `equalize` makes equal: the largest magnitude of a channel's weights, which symmetric
    grids cover; or the width from its smallest to its largest weight, which affine ones do."""
    replace_relu6: bool = False
    """Take ReLU6 for ReLU where that lets layers be equalized; the float network then computes
    something else where it clipped."""
    absorb_biases: bool = False
    """Let the next layer absorb biases that keep a ReLU from ever cutting off."""
    split_outliers: float = Field(default=0.0, ge=0, le=1)
    """Share of a convolution's input channels that are added by splitting those with the largest
    weights, except in the first and in grouped ones."""
    bias_correction: Literal["auto", "empirical", "analytic", "none"] = "auto"
    """Take the mean shift of every layer's output off its bias, as the images show it (`empirical`)
    or as batch norms tell it without images (`analytic`); `auto` is `analytic` where weights below
    8 bits are rounded to the nearest, and `empirical` there if the network has no batch norm. A
    training can start from `analytic`."""


class RoundingOptions(Frozen):
    """How weights learn their rounding."""

    panel: ClassVar[str] = "Learning"

    reconstruction: Annotated[MethodName, Shown(value="NAME")] = "none"
    """Learn on the images how weights are rounded, instead of to the nearest; a training starts
    from what was learned. `datafree methods` lists them."""
    reconstruction_options: Options = Field(default_factory=dict)
    """Hyper-parameter of the reconstruction: iterations=2000."""


class TrainingOptions(Frozen):
    """How the student is fine-tuned."""

    panel: ClassVar[str] = "Learning"

    training: Annotated[MethodName, Shown(value="NAME")] = "none"
    """Fine-tune the student under its teacher: on images a generator dreams up meanwhile, or, with
    `fixed_set`, `intraq`, `hast` and `synq`, on the images of the run. `datafree methods` lists
    them."""
    training_options: Options = Field(default_factory=dict)
    """Hyper-parameter of the training: iterations=2000."""


class GeneratorOptions(Frozen):
    """What all trainings share."""

    panel: ClassVar[str] = "Learning"

    generator: Annotated[Path | None, Shown("a new one is warmed up")] = None
    """Generator to start from: warm_generator.safetensors of an earlier training."""
    max_time: Annotated[float | str | None, BeforeValidator(seconds), Shown("no limit", "TIME")] = (
        None
    )
    """Time for the whole run, in seconds or as 90s, 30m, 1.5h: images, rounding and training end
    early, with what they have learned, so that judging and files still fit in."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the training: `bf16` computes layers in bfloat16 where that is safe and needs Hugging Face
    accelerate."""


class OutputOptions(Frozen):
    """What is measured and written."""

    panel: ClassVar[str] = "Output"

    data: Annotated[Path | None, Shown("compared without labels")] = None
    """Labelled test images: .npz with images and labels (a class for every pixel where the network
    has classes at every position), folder with labels.csv, CIFAR batches; of detectors a .json file
    of boxes as COCO has them, beside its pictures."""
    limit: Annotated[int | None, Field(ge=1), Shown("all")] = None
    """Use at most this many test images."""
    metric: Annotated[str | None, Shown("by the network", "NAME")] = None
    """What is measured on the test images: `top1`, `miou` (mean IoU), `map` (mean average
    precision of boxes), or `file.py:function`, a measure of your own of what the network returns
    for all of them and of their labels, which returns a number."""
    decode: Annotated[str | None, Shown("the network's own", "FILE:FUNCTION")] = None
    """Of a detector, what makes boxes of what it returns for a batch, for `map`: a function that
    returns for every image a dict of `boxes` (left, top, right, bottom in pixels of the network's
    input), `scores` and `labels`."""
    images_per_batch: Annotated[int | None, Field(ge=1), Shown("by their size")] = None
    """Images that pass through the network together in calibration and evaluation: fewer take less
    memory. Calibrators that average over batches then see other batches."""
    holdout: int = Field(default=256, ge=0)
    """Synthetic images that no stage sees, to compare teacher and student on where there are no
    labelled ones, for the verdict; 0 leaves both out. They are mixtures of 48 that are dreamt in
    few steps."""
    isolate: bool = True
    """Measure what every layer loses by itself, on up to 32 of these images, and propose what to do
    about the weakest one; without held-out images on those it was calibrated on."""
    fail_below: Annotated[Literal["check", "poor"] | None, Shown("never", "WORD")] = None
    """Fail, once all is written, if the verdict is this word or worse: exit code 3, in Python a
    `VerdictError` that has the result."""
    max_drop: Annotated[float | str | None, BeforeValidator(points), Shown("any", "POINTS")] = None
    """Find the cheapest scheme by trying: the fewest bytes of weights whose loss, by the verdict,
    is at most this, in points of top-1: 1 or 1%. Fewer than 8 bits in `bits` are tried first, W4A8
    otherwise; then learned rounding, then the weakest layers at 8 bits, then all."""
    weight_type: Literal["auto", "int8", "uint8"] = "auto"
    """Integer type of 8-bit weights in ONNX: `auto` is signed where zero points are 0, which
    kernels are fast on, else unsigned."""
    input_uint8: bool = False
    """The ONNX file takes images as cameras and decoders give them, uint8 (batch, height, width,
    channels) from 0 to 255, and normalises them itself."""
    any_size: bool = False
    """The ONNX file takes images of any height and width; networks that compute with the size of
    their images cannot."""
    class_names: Annotated[Path | None, Shown("not told", "FILE")] = None
    """Text file with a class's name in every line, to be told by the ONNX file."""
    export: bool = True
    """Write ONNX and .pt2 of the student."""
    keep_teacher: Annotated[bool | None, Shown("yes of a network in memory or of code")] = None
    """Keep the float network as teacher.pt2 in the run's folder, so that the folder can be
    evaluated, exported and repeated where its source is not; about as large as the network."""
    latency: bool = True
    """Measure how long float network and student take in the target's runtime, with one thread and
    all, for 1 and 8 images: about ten seconds. Which layers have integer kernels is told anyway."""
    report: bool = True
    """Write report.html, one page about the run that needs nothing else to be opened: verdict, what
    to change, layers, images, histograms, the whole configuration."""


class BenchmarkOptions(Frozen):
    """How a file is measured in a runtime."""

    panel: ClassVar[str] = "Output"

    runtime: Annotated[MethodName | None, Shown("that of the run's target", "NAME")] = None
    """Runtime to run both files in: `datafree methods` lists them. Files that are not of a run, and
    those for targets that cannot be run here, are run in onnxruntime."""
    threads: Annotated[
        tuple[Annotated[int, Field(ge=1)] | Literal["all"], ...],
        Numbers,
        Field(min_length=1),
        Shown(value="N,all"),
    ] = (1, "all")
    """Numbers of threads, or `all` that this process may use."""
    batch: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...], Numbers, Field(min_length=1), Shown(value="N,N")
    ] = (1, 8)
    """Numbers of images that pass through the network together."""
    seconds: float = Field(default=6.0, gt=0)
    """Time for all runs, loading aside; small networks take less."""
    float_file: Annotated[Path | None, Shown("made from the run's model")] = None
    """ONNX file of the float network to compare with; goes with a student that is a file too."""
    input_shape: Annotated[tuple[int, ...] | None, Numbers, Shown("as the file says", "C,H,W")] = (
        None
    )
    """Shape of one image, where the student's file leaves it open."""
    keep_float: Annotated[bool, Shown(flag=True)] = False
    """Keep the float network as float.onnx in the run's folder."""


class MachineOptions(Frozen):
    """What a run shares with every other computation."""

    panel: ClassVar[str] = "Output"

    seed: int = Field(default=0, ge=0)
    """Every random number follows from it: the same seed gives the same student on the same
    machine."""
    device: Annotated[str, Shown(value="NAME")] = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N; auto is CUDA where there is one."""


class RecipeOptions(Frozen):
    """What other options change."""

    panel: ClassVar[str] = "Model"

    recipe: Annotated[str | None, Shown(value="NAME")] = None
    """All methods at once, which other options then change: `datafree recipes` lists them."""


class FolderOptions(Frozen):
    """Where a run goes."""

    panel: ClassVar[str] = "Output"

    output: Annotated[
        Path | str | None, BeforeValidator(optional_path), Shown("nothing is written", "FOLDER")
    ] = None
    """Folder to write; must not exist."""
    force: Annotated[bool, Shown(flag=True)] = False
    """Replace an earlier run there."""


# Fields of the last base come first.
class QuantizeOptions(
    MachineOptions, OutputOptions, GeneratorOptions, TrainingOptions, RoundingOptions,
    CorrectionOptions, RangeOptions, PhotoOptions, ImageOptions, BudgetOptions, TargetOptions,
    Scheme, TeacherOptions,
):  # fmt: skip
    """The options of a quantization, but for its network and the number of its images."""


def _bits_or_float(value: Any) -> str:
    return "float" if value == "float" else named_bits(value)


class DistillOptions(
    MachineOptions, OutputOptions, GeneratorOptions, RoundingOptions, RangeOptions, TargetOptions,
    Scheme, TeacherOptions,
):  # fmt: skip
    """The options of a distillation, but for its two networks."""

    panel: ClassVar[str] = "Learning"

    bits: Annotated[str, BeforeValidator(_bits_or_float)] = "float"
    """Then quantize the student, from W8A8 to W2A2; `float` leaves it as it is."""
    student_weights_file: Annotated[Path | None, Shown("drawn anew")] = None
    """Weights the student starts from: a .safetensors file, or a checkpoint of a training."""
    training_options: ShortOptions = Field(default_factory=dict)
    """Hyper-parameter of the distillation: warmup=5000."""


class Networks(Frozen):
    """The network of a run, and the one it is distilled into."""

    panel: ClassVar[str] = "Model"

    model: str
    """The network: digits_resnet8, timm:NAME, torchvision:NAME, pytorchcv:NAME, FILE.pt2,
    FILE.onnx, package.module:factory or path/file.py:factory."""
    student: Annotated[str | None, Shown("made from the model", "SOURCE")] = None
    """Network to distill into, a source as for the model; its weights are drawn anew."""
    student_weights_file: Annotated[Path | None, Shown("drawn anew")] = None
    """Weights the student of a distillation starts from: a .safetensors file, or a checkpoint of a
    training."""
    float_student: Annotated[bool, Shown(hidden=True)] = False
    """Leave the distilled student in float."""
