"""How long a run will take and how much memory, from the first steps of its stages, really taken.

A stage that counts steps is begun and left after a few (`datafree.runs.trials`); what has no steps
is done with a few images. Writing the files is Python's work, much the same for every layer: it is
foretold from their number and from how fast Python is here.
"""

from __future__ import annotations

import resource
import statistics
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from datafree.graph.blocks import find_blocks
from datafree.progress import in_words
from datafree.runs.judging import holds_out
from datafree.runs.limits import shortened
from datafree.runs.opening import Opened
from datafree.runs.trials import (
    Quantized,
    answer_seconds,
    best_time,
    quantizing_seconds,
    synthesis_seconds,
    training_seconds,
)
from datafree.synthesis.probe import Probe
from datafree.targets import load_target
from datafree.tensors import device_of
from datafree.verdict.held_out import DREAMT

_WORTH_SPLITTING = 5.0  # seconds
_WORTH_NAMING = 1.0
# Seconds of writing a layer over those of `python_seconds`, and of loading the float network in a
# runtime: from the records of benchmarks/tables/forecast.yaml; `_OTHER` from other networks.
_ONNX_AND_PT2, _OTHER, _FLOAT = 27.0, 50.0, 8.0
_BACK, _PREPARED = 2.0, 0.5  # times of going back over going there; seconds of folding
_KEPT = 0.5  # times of writing the teacher over that of capturing it
_IMPORTS = 1.0
_WORK, _TIMES = 200_000, 9
_ASKED = 5.0  # times that teacher and student answer for every image files are checked on
_TIMED = 6.0  # seconds that files are timed for at most, see `datafree.runs.runtime.Settings`
_LEAST_TIMED = 0.3
_COMPARED = 1.75  # answers for a held-out image: of both networks, and of the teacher to choose it
_ROUNDS = 25 * 9 * 2  # forward passes of both files: rounds, images, numbers of threads
_EXPORT_BYTES = 150e6  # what torch.onnx and onnxruntime take beside the network
_COPIES = 4  # of the weights: student, program, file, session


@dataclass(frozen=True)
class Forecast:
    """What a run will take here.

    Attributes:
        seconds: by stage, in their order; that of capture has passed.
        memory: bytes of the process at most, about; on a GPU those of the GPU.
    """

    seconds: Mapping[str, float]
    memory: float

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    @property
    def parts(self) -> str:
        """The stages worth naming, as words."""
        return ", ".join(
            f"{stage} {in_words(seconds)}"
            for stage, seconds in self.seconds.items()
            if seconds >= _WORTH_NAMING
        )

    def __str__(self) -> str:
        """As a sentence."""
        if self.total < _WORTH_SPLITTING:
            return "expected to take a few seconds here"
        return f"expected to take about {in_words(self.total)} here ({self.parts})"


def foretell(begun: Opened, capture: float, *, written: bool) -> Forecast:
    """Foretell a run on this machine as it is now.

    Args:
        begun: the run.
        capture: seconds it has taken so far.
        written: it has a folder, so that files are written.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever a trial warns of the run itself will warn of
        seconds = {"capture": capture, **_long_stages(begun)}
        seconds |= _files(begun, seconds.pop("answer"), written=written)
    seconds = shortened(seconds, begun.config.max_seconds)
    return Forecast(seconds, _memory(begun, written=written))


def roughly(begun: Opened, capture: float, *, written: bool) -> Forecast:
    """As `foretell`, from the number of images every stage sends through the network: in a second.

    For runs whose time is limited, which is not to be spent on trials.
    """
    config, plan, graph = begun.config, begun.plan, begun.graph
    answer = answer_seconds((graph, graph), begun.spec, device_of(graph))
    each = 0.5 * answer * (1 + _BACK)
    count = len(begun.images) if begun.images is not None else config.images
    seconds = {"capture": capture}
    if plan.synthesizer is not None:
        tried = plan.synthesizer.for_scheme(config.scheme)
        seconds["synthesis"] = each * tried.passes(config.images - config.photo_count)
    if holds_out(config):
        dreamt = min(config.holdout, DREAMT)
        seconds["holdout"] = each * Probe().passes(dreamt) if Probe.fits(graph) else 0.0
    if config.mixed:
        seconds["allocation"] = 0.5 * _layers(begun) * len(config.candidate_bits) * count * answer
    if plan.trainer is None:
        seconds["calibration"] = _PREPARED + 2 * count * answer
    learned = 0.0
    if plan.reconstructor is not None:
        learned = each * plan.reconstructor.passes(count, len(find_blocks(graph)))
    if plan.trainer is not None:
        seconds["training"] = learned + each * plan.trainer.passes()
    elif plan.reconstructor is not None:
        seconds["reconstruction"] = learned
    seconds["evaluation"] = count * answer + _COMPARED * config.holdout * answer
    seconds |= _files(begun, answer, written=written)
    seconds = shortened(seconds, config.max_seconds)
    return Forecast(seconds, _memory(begun, written=written))


def _long_stages(begun: Opened) -> dict[str, float]:
    """Seconds up to the evaluation; under ``answer`` what teacher and student take for an image."""
    config, plan, graph, spec = begun.config, begun.plan, begun.graph, begun.spec
    trainer = plan.trainer
    given = len(begun.images) if begun.images is not None else config.images
    count = given if trainer is None or trainer.from_images else trainer.calibration_images
    found: dict[str, float] = {}
    if plan.synthesizer is not None:
        tried = plan.synthesizer.for_scheme(config.scheme)
        made = config.images - config.photo_count
        found["synthesis"] = synthesis_seconds(tried, graph, spec, made) if made else 0.0
    if holds_out(config):
        dreamt, fits = min(config.holdout, DREAMT), Probe.fits(graph)
        found["holdout"] = synthesis_seconds(Probe(), graph, spec, dreamt) if fits else 0.0
    quantized: Quantized | None = None
    if trainer is None or plan.reconstructor is not None:
        quantized = quantizing_seconds(begun)
    answer = (
        answer_seconds((graph, graph, graph), spec, device_of(graph))
        if quantized is None
        else quantized.per_answer
    )
    if config.mixed:
        found["allocation"] = 0.5 * _layers(begun) * len(config.candidate_bits) * count * answer
    prepared = {} if quantized is None else _quantizing(begun, quantized, count)
    if trainer is None:
        found |= prepared
    else:
        phases = sum(training_seconds(begun).values())
        checks = trainer.checks * trainer.holdout * answer
        found["training"] = sum(prepared.values()) + phases + checks
    found["evaluation"] = _evaluation(begun, count, answer)
    return found | {"answer": answer}


def _quantizing(begun: Opened, tried: Quantized, count: int) -> dict[str, float]:
    """Seconds of the stages that quantize the weights of a student on `count` images."""
    found = tried.seconds(count)
    if begun.plan.reconstructor is not None:
        found["reconstruction"] += tried.per_pass * begun.plan.reconstructor.passes(count)
    return found


def _evaluation(begun: Opened, count: int, answer: float) -> float:
    """Seconds to measure teacher and student."""
    config, trainer = begun.config, begun.plan.trainer
    noise = count * answer
    if begun.test_images:
        return noise + begun.test_images * answer * (1.0 if trainer is None else 1.5)
    return noise + _COMPARED * config.holdout * answer


def _files(begun: Opened, answer: float, *, written: bool) -> dict[str, float]:
    """Seconds to write the files of a run, and to open and time them in a runtime."""
    config, traced = begun.config, begun.traced
    if not written:
        return {}
    kept = _KEPT * traced if begun.program is not None else 0.0
    if not config.export:
        return {"export": kept}
    own = load_target(config.target).suffix not in (".onnx", ".pt2")
    checked = config.images if begun.images is None else len(begun.images)
    each = python_seconds() * _layers(begun)
    export = _IMPORTS + (_ONNX_AND_PT2 + _OTHER * own) * each + kept
    export += _ASKED * checked * answer
    timed = min(_TIMED, _LEAST_TIMED + _ROUNDS * answer) if config.latency else 0.0
    return {"export": export, "runtime": timed + _FLOAT * each * config.latency + 0.5}


def _layers(begun: Opened) -> int:
    return sum(isinstance(m, torch.nn.Conv2d | torch.nn.Linear) for m in begun.graph.modules())


def python_seconds() -> float:
    """Seconds of a fixed piece of Python's work, the median of several times."""
    times = [best_time(lambda: sum(n * n for n in range(_WORK)), 1) for _ in range(_TIMES)]
    return statistics.median(times)


def _memory(begun: Opened, *, written: bool) -> float:
    """Bytes that the run needs: what its first steps needed, and what comes later."""
    weights = sum(p.numel() * p.element_size() for p in begun.graph.parameters())
    device = device_of(begun.graph)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) + 2.0 * weights
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    used = peak * (1.0 if sys.platform == "darwin" else 1024.0)
    later = _EXPORT_BYTES if written and begun.config.export else 0.0
    return used + later + _COPIES * weights
