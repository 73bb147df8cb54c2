"""What the parts of a run cost in CPU seconds, beside how large the network is."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import fx

from benchmarks.kinds.base import Bench, Kind
from benchmarks.moments import middle, noting
from benchmarks.networks import load
from benchmarks.place import Place
from datafree.allocation.budget import describe_layers
from datafree.allocation.sensitivity import sensitivities
from datafree.calibrators.base import Calibrator, calibrate
from datafree.config import InputSpec, RunConfig
from datafree.graph.blocks import find_blocks
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.footprint import footprint
from datafree.graph.insert import insert_quantizers
from datafree.graph.settle import settle
from datafree.images import SyntheticSet, batch_size, blank, device_batches
from datafree.models import Teacher
from datafree.progress import silent
from datafree.reconstruction.genie_m import GenieM
from datafree.runs.choices import settled
from datafree.runs.exporting import export_student
from datafree.runs.pipeline import run
from datafree.runs.plan import make_method, make_plan
from datafree.runs.post_training import PostTrained, quantize_weights
from datafree.runs.record import Stopwatch
from datafree.synthesis._generator import ImageGenerator
from datafree.synthesis._images import chunk_of
from datafree.synthesis.base import Synthesizer
from datafree.synthesis.dsg import DSG
from datafree.synthesis.genie import Genie
from datafree.synthesis.zeroq import ZeroQ
from datafree.tensors import fast_copy, fast_layout

Part = Literal[
    "capture", "answer", "zeroq", "dsg", "genie", "calibration", "genie_m", "allocation", "export",
    "run",
]  # fmt: skip
_SMALL = "digits_resnet8"
_ANSWERS = 3  # times that images are answered for
_BITS = (4, 8)  # that are tried for every layer
_CHECKED = 32  # images that files are checked on


class Cost(Kind):
    """CPU seconds of `parts`, one thread, in this process, once it is warm.

    Of the network `macs`, multiply-accumulates of convolutions and linear layers for one image;
    `kept`, bytes of all that layers return for it; `weights`, `layers` (convolutions and linear
    ones), `nodes` of its graph, `blocks`, `pixels` of a side times a side, `generator`, weights of
    Genie's; `passes`, in which a batch of `together` passes, as many images as fit the cache.

    Of a part `seconds` in all. Methods that make images have the median `step` of a batch of
    `together` images or fewer, `genie_m` that of all blocks, one after the other. Images are
    Gaussian where a part takes some: what they show does not change the work.
    """

    parts: tuple[Part, ...]
    """What is measured."""
    steps: int = 12
    """Of ZeroQ and DSG for every batch."""
    generator_steps: int = 6
    """Of Genie for every batch."""
    learned_steps: int = 6
    """Of learned rounding for every block."""
    together: int = 32
    """Images in a batch, at most."""

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        with one_thread(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _warm(bench.place)
            work = Work.of(self, config, bench.network(config).teacher)
            found: dict[str, Any] = facts(work)
            for part in self.parts:
                found[part] = _MEASURES[part](work)
        return found


@dataclass(frozen=True)
class Work:
    """What is measured on.

    Attributes:
        asked: steps and batches.
        config: bits, ranges and number of images; its methods are those that fit the network.
        teacher: the network.
        graph: as it was captured.
    """

    asked: Cost
    config: RunConfig
    teacher: Teacher
    graph: fx.GraphModule

    @classmethod
    def of(cls, asked: Cost, config: RunConfig, teacher: Teacher) -> Work:
        """The work of a cell."""
        graph = capture(teacher.model, teacher.spec)
        return cls(asked, settled(config, graph, given=False).config, teacher, graph)

    @property
    def spec(self) -> InputSpec:
        """What the network takes."""
        return self.teacher.spec

    @property
    def images(self) -> SyntheticSet:
        """Gaussian images, as many as are asked for."""
        return self.gaussian(self.config.images, self.config.seed)

    def gaussian(self, count: int, seed: int) -> SyntheticSet:
        """So many Gaussian images."""
        random = torch.Generator().manual_seed(seed)
        noise = torch.randn(count, *self.spec.shape, generator=random)
        return SyntheticSet(noise, self.spec, metadata={"method": "noise"})

    @property
    def batch(self) -> int:
        """Images of a step."""
        return min(self.asked.together, self.config.images)


@contextmanager
def one_thread() -> Generator[None]:
    """Torch computes with one thread meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def facts(work: Work) -> dict[str, Any]:
    """How large the network is; see `Cost`."""
    graph, spec = work.graph, work.spec
    folded = fold_batch_norms(graph)
    layers = describe_layers(folded, work.config.scheme, spec.shape)
    generator = ImageGenerator(spec.shape, Genie().latent_dim, torch.Generator().manual_seed(0))
    at_once = chunk_of(spec.shape, work.batch, torch.device("cpu"))
    return {
        "macs": sum(layer.macs for layer in layers),
        "kept": footprint(folded, blank(spec, torch.device("cpu"))).kept,
        "weights": sum(layer.elements for layer in layers),
        "layers": len(layers),
        "nodes": len(graph.graph.nodes),
        "blocks": len(find_blocks(folded)),
        "pixels": spec.shape[1] * spec.shape[2],
        "generator": sum(weights.numel() for weights in generator.parameters()),
        "images": work.config.images,
        "batch": work.batch,
        "passes": -(-work.batch // at_once),
    }


def seconds_of(done: Callable[[], object]) -> float:
    """CPU seconds of this process that `done` takes."""
    began = time.process_time()
    done()
    return time.process_time() - began


def _capture(work: Work) -> dict[str, float]:
    return {"seconds": seconds_of(lambda: capture(work.teacher.model, work.spec))}


def _answer(work: Work) -> dict[str, float]:
    """Of one image by the folded network, of a batch that passes at once."""
    folded = fast_copy(fold_batch_norms(work.graph))
    images = work.images.images[: min(work.batch, batch_size(work.spec))]
    images = images.to(memory_format=torch.channels_last)

    def answers() -> None:
        with torch.inference_mode():
            folded(images)

    answers()
    times = [seconds_of(answers) for _ in range(_ANSWERS)]
    return {"seconds": sorted(times)[len(times) // 2] / len(images)}


def _zeroq(work: Work) -> dict[str, float]:
    method = ZeroQ(iterations=work.asked.steps, batch_size=work.asked.together, least_fall=0)
    return _made(method, work)


def _dsg(work: Work) -> dict[str, float]:
    """Its margins are measured on few images, which else take longer than the steps."""
    asked = work.asked
    method = DSG(iterations=asked.steps, batch_size=asked.together, least_fall=0, margin_images=8)
    return _made(method, work)


def _genie(work: Work) -> dict[str, float]:
    asked = work.asked
    return _made(Genie(iterations=asked.generator_steps, batch_size=asked.together), work)


def _made(method: Synthesizer, work: Work) -> dict[str, float]:
    moments: dict[str, list[float]] = {}
    count = work.config.images
    spent = seconds_of(
        lambda: method.generate(work.graph, work.spec, count, progress=noting(moments))
    )
    return {"seconds": spent, "step": middle(moments[f"{method.name} images"])}


def _quantized(work: Work) -> PostTrained:
    config, images = work.config, work.images
    plan = make_plan(config, work.graph, work.spec, given=True)
    return quantize_weights(work.graph, config, plan, images, None, Stopwatch(), silent)


def _calibration(work: Work) -> dict[str, float]:
    return {"seconds": seconds_of(lambda: _quantized(work))}


def _genie_m(work: Work) -> dict[str, float]:
    """Beside steps: passing all images through every block, before it is learned and after."""
    method = GenieM(iterations=work.asked.learned_steps, batch_size=work.asked.together)
    learned = work.config.model_copy(update={"reconstruction": "genie_m"})
    folded = fast_layout(fold_batch_norms(work.graph))
    images = work.images
    student = fast_layout(insert_quantizers(folded, learned.scheme, work.spec))
    rule = make_method(work.config.calibration, "calibrators", Calibrator)
    calibrate(student, device_batches(images, torch.device("cpu")), rule, observe="float")
    moments: dict[str, list[float]] = {}
    spent = seconds_of(
        lambda: method.reconstruct(folded, student, images.images, progress=noting(moments))
    )
    (noted,) = moments.values()
    noted, count = noted[1:], method.iterations  # what was done before: nothing
    blocks = [noted[start : start + count] for start in range(0, len(noted), count)]
    return {"seconds": spent, "step": sum(middle(block) for block in blocks)}


def _allocation(work: Work) -> dict[str, float]:
    """What every layer loses at each of two widths, one by one."""
    folded = fast_layout(fold_batch_norms(work.graph))
    images, scheme = work.images.images, work.config.scheme
    return {"seconds": seconds_of(lambda: sensitivities(folded, scheme, images, _BITS))}


def _export(work: Work) -> dict[str, float]:
    """Both files of a run, each checked on some images."""
    images = work.gaussian(min(work.config.images, _CHECKED), 0)
    student = settle(_quantized(work).student)
    with TemporaryDirectory() as name:
        return {"seconds": seconds_of(partial(_files, work, student, images, Path(name)))}


def _files(work: Work, student: fx.GraphModule, images: SyntheticSet, folder: Path) -> None:
    export_student(folder, student, work.spec, work.config, images, "")


def _run(work: Work) -> dict[str, float]:
    """From the network in memory to all files."""
    with TemporaryDirectory() as name:
        folder = Path(name) / "run"
        return {
            "seconds": seconds_of(lambda: run(work.config, teacher=work.teacher, folder=folder))
        }


_MEASURES: dict[Part, Callable[[Work], dict[str, float]]] = {
    "capture": _capture, "answer": _answer, "zeroq": _zeroq, "dsg": _dsg, "genie": _genie,
    "calibration": _calibration, "genie_m": _genie_m, "allocation": _allocation,
    "export": _export, "run": _run,
}  # fmt: skip


@cache
def _warm(place: Place) -> None:
    """Import and compute once whatever the first of all parts would pay for."""
    config = RunConfig(model=_SMALL, method="zeroq", images=4, holdout=0, latency=False)
    config = config.model_copy(update={"method_options": {"iterations": 2}})
    work = Work.of(Cost(parts=()), config, load(_SMALL, place).teacher)
    _capture(work)
    _run(work)
