"""What every runtime shares: open a file, say which layers got integer kernels, time its runs."""

from __future__ import annotations

import importlib
import statistics
import textwrap
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar

from datafree.config import Frozen
from datafree.errors import InferenceError
from datafree.progress import Progress, silent
from datafree.registry import method_name
from datafree.runtimes._timing import Cell, Given, available_threads, timed

_PLACES = ("Exception from ", "Check '")  # where in its source a runtime was
_SAID = 300
UNKNOWN = "the runtime does not say why"
"""The reason of a float layer that none of the known ones explains."""
KEPT = "kept in float as asked"
"""The reason of a layer that `keep_float` names."""
Call = Callable[[Given], object]
"""Runs a loaded file once, on images in the form it takes; on several inputs by their names."""


@dataclass(frozen=True)
class FloatLayer:
    """A layer that a runtime carries out in float.

    Attributes:
        name: of the node in the file, or of its weight where the node's name says nothing.
        op: its operator.
        reason: why, in words that layers with the same cause share.
        detail: what is particular to this one; empty if nothing is.
        share: of the time of one run with one image, its weights' DequantizeLinear included; None
            where the runtime does not tell.
    """

    name: str
    op: str
    reason: str
    detail: str = ""
    share: float | None = None


@dataclass(frozen=True)
class Kernels:
    """Which layers of a file a runtime carries out with integer kernels.

    Layers are convolutions, matrix products with a constant operand, and recurrent layers.

    Attributes:
        integer: number of layers with integer kernels.
        total: number of layers.
        floats: the others, in the file's order.
        integer_products: products of two activations, as in attention, with integer kernels.
        products: number of these products.
        depthwise: number of layers that are depthwise convolutions.
        shifted: number of integer layers whose weights are unsigned or have zero points other than
            0: their kernels are slower.
        scattered: number of integer depthwise convolutions whose zero points of weights differ from
            channel to channel: onnxruntime takes some forty times as long for them.
    """

    integer: int
    total: int
    floats: tuple[FloatLayer, ...]
    integer_products: int = 0
    products: int = 0
    depthwise: int = 0
    shifted: int = 0
    scattered: int = 0


@dataclass(frozen=True)
class Latency:
    """How long one run of a file took.

    Attributes:
        file: what the caller calls the file.
        threads: threads of the runtime.
        batch: images of a run.
        milliseconds: median of all runs; of the whole batch.
        low: first quartile, in milliseconds.
        high: third quartile.
        runs: number of timed runs.
        processor: seconds of processor time per second in this setting; with one thread 1 on a
            machine that does nothing else.
    """

    file: str
    threads: int
    batch: int
    milliseconds: float
    low: float
    high: float
    runs: int
    processor: float = 1.0


class Runtime(Frozen):
    """Base of all runtimes: a runtime implements `kernels` and `opened`."""

    package: ClassVar[str]
    """Name under which it is imported and installed."""
    extra: ClassVar[str] = ""
    """Extra of datafree that installs it; empty where datafree needs it anyway."""

    processor_time: ClassVar[bool] = False
    """It computes within this process, so that with one thread processor time is its latency."""

    @property
    def name(self) -> str:
        """The runtime's name: the stem of its file."""
        return method_name(type(self))

    @property
    def version(self) -> str:
        """Of the installed package.

        Raises:
            InferenceError: it is not installed.
        """
        try:
            importlib.import_module(self.package)
            return version(self.package)
        except (ImportError, PackageNotFoundError) as error:
            wanted = f"datafree[{self.extra}]" if self.extra else self.package
            raise InferenceError(
                f"{self.package} is not installed ({error}): pip install '{wanted}'"
            ) from None

    @abstractmethod
    def kernels(self, path: Path, shape: Sequence[int] | None = None) -> Kernels:
        """Read off the graph the runtime made of a file which layers are integer ones.

        Args:
            path: ONNX file.
            shape: of one image, (C, H, W), to learn shares of time by a run; None runs nothing.

        Raises:
            InferenceError: it is not installed, or cannot load or run the file.
        """

    @abstractmethod
    def opened(self, path: Path, threads: int) -> Call:
        """Load a file, ready to run.

        Args:
            path: ONNX file with one input.
            threads: to compute with.

        Raises:
            InferenceError: it is not installed or cannot load the file; the call raises it where
                the file cannot be run.
        """

    def measure(
        self,
        files: Mapping[str, Path],
        shape: Sequence[int],
        *,
        batches: Sequence[int] = (1, 8),
        threads: Sequence[int | None] = (1, None),
        seconds: float = 8.0,
        progress: Progress = silent,
    ) -> tuple[Latency, ...]:
        """Time one run of each of `files`, in turn, so that what else the machine does hits all.

        With one thread and `processor_time` it is the time that this process had a processor, which
        other programs do not lengthen.

        Args:
            files: by what they are called.
            shape: of one image, (C, H, W).
            batches: images of a run; a file whose batch is fixed is run with that.
            threads: of the runtime; None takes all this process may use.
            seconds: to spend in all, loading aside. Small networks take far less; a batch that
                would take more is left out, but for the first.
            progress: shown meanwhile.

        Returns:
            One entry per file, number of threads and batch.

        Raises:
            InferenceError: as `opened` does.
        """
        from datafree.runtimes._graph import load_graph

        graphs = {name: load_graph(path) for name, path in files.items()}
        known = (graph.input_shape()[0] for graph in graphs.values())
        fixed = next((batch for batch in known if batch is not None), None)
        batches = batches if fixed is None else (fixed,)
        counts = dict.fromkeys(available_threads() if n is None else n for n in threads)
        cells = [Cell(count, batch) for count in counts for batch in batches]
        with progress(f"latency in {self.name}", len(cells)) as step:
            found = timed(
                lambda count: {name: self.opened(path, count) for name, path in files.items()},
                cells, tuple(shape), seconds, step, processor=self.processor_time,
                given={name: graph.given for name, graph in graphs.items()},
            )  # fmt: skip
        return tuple(
            _latency(name, cell, times, done.processor)
            for cell, done in found
            for name, times in done.seconds.items()
        )

    def image_shape(self, path: Path) -> tuple[int, ...]:
        """Shape of one image, as a file tells it.

        Raises:
            InferenceError: the file leaves it open, has several inputs, or is not ONNX.
        """
        from datafree.runtimes._graph import load_graph

        _, *shape = load_graph(path).input_shape()
        known = tuple(size for size in shape if size is not None)
        if len(known) < len(shape):
            raise InferenceError(
                f"{path} does not say what size its images have: give it with --input-shape C,H,W"
            )
        return known


def _latency(name: str, cell: Cell, times: Sequence[float], processor: float) -> Latency:
    """Seconds of single runs as milliseconds in the middle."""
    low, _, high = (
        statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else [times[0]] * 3
    )
    middle = statistics.median(times)
    return Latency(
        name, cell.threads, cell.batch, 1e3 * middle, 1e3 * low, 1e3 * high, len(times), processor
    )


def refusal(runtime: Runtime, path: Path, what: str, error: BaseException) -> InferenceError:
    """The error for a file that a runtime cannot `load` or `run`, with what it said in one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = " ".join(line for line in lines if line and not line.startswith(_PLACES))
    said = textwrap.shorten(said or type(error).__name__, _SAID, placeholder=" …")
    return InferenceError(
        f"{runtime.name} {runtime.version} cannot {what} {path}: {said}; write the file once more"
        " with datafree export, or measure in another runtime (--runtime)"
    )
