"""What every export target shares: write a file, run it, keep it only if it computes the same."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from datafree.config import Frozen, InputSpec
from datafree.errors import ExportError, ParityError
from datafree.export._differs import Differs
from datafree.export._notes import float_notes
from datafree.export._optional import needed
from datafree.export._parity import (
    Parity,
    Predictor,
    alike,
    compare_outputs,
    predict,
    sensitivity,
)
from datafree.files import atomic_path, refuse_existing
from datafree.graph.capture import to_device
from datafree.graph.floats import computations
from datafree.graph.inputs import fed
from datafree.graph.integer import returns_mean
from datafree.graph.outputs import separate, together
from datafree.losses import unpack
from datafree.quant.modules import QUANTIZED, ActivationQuantizer, Quantizer
from datafree.registry import method_name
from datafree.tensors import release_memory

About = Mapping[str, str]
"""What a file says of itself: texts by name."""
NOTHING_MORE: About = MappingProxyType({})

CHECK_IMAGES = 32
LAST_STEP = 1e-6
"""Relative; of a mean in float32 after the last codes. Another code would be far more."""
_OWN = 4  # so often the student's own noise is allowed


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: the file.
        bytes: its size.
        weight_bytes: size of the weights in it: codes, scales and zero points of quantized layers,
            and all that stays in float; no biases.
        float_weight_bytes: size of the same weights in float32.
        unquantized_bytes: what stays in float, part of both sizes.
        opset: ONNX opset; None for other formats.
        parity: the file, run by its runtime, against the student.
        saturates: whether the runtime's default settings compute something else on this machine.
        notes: what the user should know or set, one sentence each.
    """

    path: Path
    bytes: int
    weight_bytes: int
    float_weight_bytes: int
    unquantized_bytes: int
    opset: int | None
    parity: Parity
    saturates: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Written:
    """What an exporter knows about the file it wrote; fields as in `ExportReport`.

    Attributes:
        weight_bytes: size of the quantized layers' weights alone.
        bytes: of all files, where there are several.
        opset: as there.
        notes: as there.
    """

    weight_bytes: int
    opset: int | None = None
    notes: tuple[str, ...] = ()
    bytes: int | None = None


@dataclass(frozen=True)
class Findings:
    """What running a file showed beyond parity; fields as in `ExportReport`."""

    saturates: bool = False
    notes: tuple[str, ...] = ()


class Exporter(Frozen):
    """Base of all export targets: `export` writes, runs and compares.

    A target implements `write` and `run`. The file appears under its name only if it passed.
    """

    suffix: ClassVar[str]
    """Of its files, with the dot."""
    citation: ClassVar[str] = ""
    """Where the format is described."""
    package: ClassVar[str] = ""
    """What writes and runs its files, if the project does not bring it along: its import name."""
    extra: ClassVar[str] = ""
    """The extra of this project that brings `package`."""
    targets: ClassVar[tuple[str, ...]] = ()
    """Targets whose students it can write, with quantized activations; empty for all students."""

    tolerance: float = Field(default=0.99, ge=0, le=1)
    """Smallest share of identical predictions, those aside that the noise between file and student
    explains. Two images more may always differ. A file whose runtime computes whole numbers may
    differ in nothing, whatever is given here."""
    noise: float = Field(default=0.1, ge=0)
    """Largest deviation of what the file returns from what the student does, over the deviation of
    that. Four times what the student's own values move is added, if all that its quantizers read
    moves by a millionth or its sums take another order."""

    @property
    def name(self) -> str:
        """The target's name: the stem of its file."""
        return method_name(type(self))

    def export(
        self,
        student: fx.GraphModule,
        spec: InputSpec,
        path: Path | str,
        *,
        check: Tensor | None = None,
        about: About = NOTHING_MORE,
        force: bool = False,
    ) -> ExportReport:
        """Write `student` to `path` and check that the file computes the same.

        Args:
            student: with calibrated quantizers, in eval mode; not changed.
            spec: its input.
            path: file to write; its suffix is kept as given.
            check: normalised images (B, C, H, W) to compare on; None takes 32 Gaussian ones.
            about: what is said of the student, by name, and kept in the file where the format
                allows: `datafree.runs.exporting.about`.
            force: replace a file that exists.

        Raises:
            OutputExistsError: `path` exists and `force` is not set.
            OutputError: `path` is no regular file, or cannot be written.
            ExportError: the student has no ranges yet, or the format cannot express it.
            ParityError: the file does not hold the student's numbers, or does not compute what it
                does; it is not left behind.
        """
        path = Path(path)
        refuse_existing(path, force=force)
        check_ready(student)
        self.check_target(student)
        student = plain_copy(together(student))
        if check is None:
            check = torch.randn(
                CHECK_IMAGES, *spec.shape, generator=torch.Generator().manual_seed(0)
            )
        stored = self.prepared(student)
        check = self.accepted(check, spec)
        with atomic_path(path) as temporary:
            written = self.write(separate(stored), spec, temporary, about)
            try:
                self.verify(stored, temporary)
            except Differs as found:
                raise found.refusal(path) from found
            release_memory(student)  # of tracing, several times the weights
            expected = predict(self.expected(student), check)
            file = fed(self.run(temporary), spec.inputs)
            release_memory(student)  # of reading
            actual = predict(file, check)
            del file
            parity = compare_outputs(expected, actual, spec.outputs)
            exact = self.exact(student)
            own = None if exact else sensitivity(student, check, spec.outputs)
            self.judge(parity, own, path, rounded=returns_mean(student))
            findings = self.inspect(stored, temporary, check, actual)
            size = written.bytes or temporary.stat().st_size
        steps = computations(stored, spec.shape)
        rest = sum(step.bytes for step in steps if not step.quantized)
        return ExportReport(
            path=path,
            bytes=size,
            weight_bytes=written.weight_bytes + rest,
            float_weight_bytes=float_weight_bytes(student) + rest,
            unquantized_bytes=rest,
            opset=written.opset,
            parity=parity,
            saturates=findings.saturates,
            notes=(*written.notes, *findings.notes, *alike(expected), *float_notes(steps)),
        )

    def check_target(self, student: fx.GraphModule) -> None:
        """Refuse a student made for others, or a machine without the runtime.

        Raises:
            ExportError: one of `targets` has to be chosen, or `package` to be installed.
        """
        if self.package:
            needed(self.package, f"{self.suffix} files", self.extra)
        target = str(student.meta.get("target", "paper"))
        if self.targets and target not in self.targets:
            raise ExportError(
                f"{self.suffix} files hold students made for {' or '.join(self.targets)}, this one"
                f" is made for {target}: quantize with --target {self.targets[0]}"
            )
        quantizers = [m for m in student.modules() if isinstance(m, ActivationQuantizer)]
        if self.targets and not any(quantizer.enabled for quantizer in quantizers):
            raise ExportError(
                f"{self.suffix} files hold integer activations, and this student's are float:"
                " quantize with --bits W8A8"
            )

    def prepared(self, student: fx.GraphModule) -> fx.GraphModule:
        """The form of `student` that is written; the file is compared with `student` itself.

        Args:
            student: as in `export`, on the CPU; not changed.
        """
        return student

    def accepted(self, images: Tensor, spec: InputSpec) -> Tensor:
        """Those normalised images next to `images` (B, C, H, W) that the file can be given."""
        del spec
        return images

    def expected(self, student: fx.GraphModule) -> Predictor:
        """What the file is compared with: the student as it is, unless its arithmetic is known."""
        return student

    def exact(self, student: fx.GraphModule) -> bool:
        """Whether sums in another order change nothing in the file's runtime."""
        del student
        return False

    @abstractmethod
    def write(self, student: fx.GraphModule, spec: InputSpec, path: Path, about: About) -> Written:
        """Write the file.

        Args:
            student: as `prepared` returned it, but that it returns a tuple of tensors where the
                network does not return logits: a tensor for each of ``spec.outputs``; and takes a
                tensor for each of ``spec.inputs`` where there are some.
            spec: as in `export`.
            path: a temporary file that may be overwritten.
            about: as in `export`.
        """

    def verify(self, student: fx.GraphModule, path: Path) -> None:
        """Compare what the file stores with `student`, number by number; nothing is run.

        Args:
            student: as `prepared` returned it.
            path: the file.

        Raises:
            Differs: a number is another.
        """

    @abstractmethod
    def run(self, path: Path) -> Callable[..., Tensor]:
        """The file on the CPU, computed by the format's runtime.

        Returns:
            A function of images (B, C, H, W), or of a tensor for each of ``spec.inputs``, to
            (B, numbers).
        """

    def judge(
        self, parity: Parity, own: Parity | None, path: Path, *, rounded: bool = False
    ) -> None:
        """Accept or refuse the file.

        A few bits make a network chaotic: a sum rounded in another order tips an activation to the
        next code, and the difference grows from layer to layer. A runtime cannot be asked for more
        than the student manages itself, so that is added to what is allowed.

        Args:
            parity: the file against the student.
            own: the student against itself, see `sensitivity`; None where the file's runtime
                computes whole numbers, of which there is one right result.
            path: for the message.
            rounded: of these a mean is returned, which is taken in float.

        Raises:
            ParityError: predictions or logits differ beyond `tolerance` or `noise`.
        """
        if own is None:
            if not parity.relative <= (LAST_STEP if rounded else 0.0):
                raise ParityError(
                    f"{path} does not compute what the student computes: {parity} (allowed: no"
                    " difference at all, since all between quantizers are whole numbers); the file"
                    " was not kept"
                )
            return
        spared = math.floor((1 - self.tolerance) * parity.rows)
        allowed = 2 * (parity.rows == parity.images) + spared + 2 * own.mismatches
        noise = self.noise + _OWN * own.noise
        if parity.mismatches > allowed or not parity.noise <= noise:
            raise ParityError(
                f"{path} does not compute what the student computes: {parity} (allowed: {allowed}"
                f" other predictions, noise {100 * noise:.2g} %); the file was not kept"
            )

    def inspect(
        self, student: fx.GraphModule, path: Path, images: Tensor, logits: Tensor
    ) -> Findings:
        """Look at the accepted file once more, for advice to the user.

        Args:
            student: as `prepared` returned it.
            path: the file.
            images: what it was checked on.
            logits: what it computed.
        """
        del student, path, images, logits
        return Findings()


def trace(module: fx.GraphModule, spec: InputSpec, *, any_size: bool = False) -> ExportedProgram:
    """`module`, on the CPU, as a program that takes batches of any size.

    Args:
        module: the network.
        spec: its input.
        any_size: leave height and width of the images open as well.

    Raises:
        ExportError: they cannot be left open, since the network computes with them.
    """
    given = unpack(torch.zeros(2, *spec.shape), spec.inputs)
    sides: dict[int, Any] = {0: Dim("batch", min=1)}
    if any_size:
        sides |= {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    try:
        with torch.no_grad():
            return torch.export.export(
                module, given, dynamic_shapes=(sides,) * len(given), strict=False
            )
    except Exception as error:
        if not any_size:
            raise
        raise bound_to_size(given[0]) from error


def larger(images: Tensor) -> Tensor:
    """`images` (B, C, H, W), 32 pixels higher and 64 wider."""
    return F.pad(images, (0, 64, 0, 32), mode="replicate")


def check_any_size(network: Predictor, images: Tensor) -> Tensor:
    """Logits of `images` made larger.

    Args:
        network: on the CPU.
        images: (B, C, H, W) of the size that it is made for.

    Raises:
        ExportError: it cannot take them.
    """
    try:
        return predict(network, larger(images))
    except RuntimeError as error:
        raise bound_to_size(images) from error


def bound_to_size(images: Tensor) -> ExportError:
    """The error for a network that takes images of one size alone."""
    height, width = images.shape[2:]
    return ExportError(
        f"this network computes with the size of its images, {height} x {width}, so that files of"
        " it cannot take others: leave any_size out"
    )


def check_ready(student: nn.Module) -> None:
    """Refuse a student that cannot run yet.

    Raises:
        ExportError: an enabled quantizer has no range; the message names it.
    """
    for name, module in student.named_modules():
        if isinstance(module, Quantizer) and module.enabled and not module.has_range:
            raise ExportError(
                f"the quantizer {name} has no range yet: calibrate the student before exporting it"
            )


def plain_copy(student: fx.GraphModule) -> fx.GraphModule:
    """A copy on the CPU, in the memory layout all formats store: channels first."""
    copied = to_device(student, torch.device("cpu")).eval()
    for parameter in copied.parameters():
        parameter.data = parameter.data.contiguous()
    return copied


def float_weight_bytes(student: nn.Module) -> int:
    """Size in float32 of the weights of all quantized layers, without biases."""
    layers = [m for m in student.modules() if isinstance(m, QUANTIZED)]
    weights = {id(m.weight): m.weight for m in layers if m.weight_quantizer.enabled}
    return sum(4 * weight.numel() for weight in weights.values())
