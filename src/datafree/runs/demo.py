"""The demonstration: the built-in digits network with all image methods side by side."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from torch import fx

from datafree.calibrators.base import Calibrator, calibrate
from datafree.config import InputSpec, Method, RunConfig, Scheme
from datafree.data import calibration_set, open_labelled
from datafree.evaluate import top1
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.graph.integer import as_computed
from datafree.graph.settle import settle
from datafree.images import SyntheticSet
from datafree.models import load_teacher
from datafree.progress import Progress, silent
from datafree.runs.pipeline import Result, run
from datafree.runs.plan import make_method
from datafree.synthesis.base import Synthesizer
from datafree.zoo import ZOO

COLUMNS = ("images", "W8A8 top-1 %", "W4A4 top-1 %")

_NETWORK = "digits_resnet8"
_TARGET = "onnxruntime"
_SCHEMES = (Scheme(target=_TARGET), Scheme(target=_TARGET, bits="W4A4"))
_SOURCES = ("noise", "zeroq", "dsg", "real")
_SEEDS = (0, 1, 2)
_IMAGES = 32
_ITERATIONS = 200
_CALIBRATOR = Method(name="mse")


@dataclass(frozen=True)
class Demo:
    """What the demonstration found.

    Attributes:
        title: of the table; states network, float accuracy, policy, target, calibrator and seeds.
        rows: cells of the table, one row per image source.
        explanation: how to read it.
        run: the integer model that was written at the end.
    """

    title: str
    rows: list[tuple[str, ...]]
    explanation: str
    run: Result


def run_demo(folder: Path, *, force: bool = False, progress: Progress = silent) -> Demo:
    """Compare image methods on the digits network and write one integer model.

    Args:
        folder: the W8A8 run goes to it, with a picture of every method's images beside.
        force: replace an earlier demonstration there.
        progress: shown while it runs.

    Raises:
        OutputExistsError: `folder` exists and `force` was not given.
    """
    config = RunConfig(
        model=_NETWORK,
        method="dsg",
        method_options={"iterations": _ITERATIONS},
        images=_IMAGES,
        calibrator=_CALIBRATOR.name,
    )
    entry = ZOO[_NETWORK]
    teacher = load_teacher(config.teacher)
    with (
        resources.as_file(entry.test_split) as test,
        resources.as_file(entry.train_sample) as sample,
    ):
        config = config.model_copy(update={"data": test})
        result = run(config, folder=folder, force=force, progress=progress)
        graph = capture(teacher.model, teacher.spec)
        sets = {
            (source, seed): _images(source, graph, teacher.spec, seed, sample, progress)
            for source in _SOURCES
            for seed in _SEEDS
        }
        base, accuracies = _measure(graph, teacher.spec, sets, test)
    for source in _SOURCES:
        sets[source, 0].save_grid(folder / f"images_{source}.png")
    rows = [
        (source, *(_spread(accuracies[source, s.label]) for s in _SCHEMES)) for source in _SOURCES
    ]
    title = (
        f"{_NETWORK}: float {base:.2f} %; policy {config.policy}, target {config.target},"
        f" calibrator {_CALIBRATOR.name}, {_IMAGES} images a set,"
        f" {_ITERATIONS} iterations, mean ± spread of seeds 0, 1, 2"
    )
    explanation = (
        "noise is the floor, real (training digits) what data would give; zeroq and dsg saw none."
        f" Pictures of all four: {folder}/images_*.png"
    )
    return Demo(title, rows, explanation, result)


def _method(source: str) -> Method:
    return Method(name=source, options={} if source == "noise" else {"iterations": _ITERATIONS})


def _images(
    source: str, graph: fx.GraphModule, spec: InputSpec, seed: int, sample: Path, progress: Progress
) -> SyntheticSet:
    if source == "real":
        return calibration_set(sample, spec, _IMAGES, seed)
    synthesizer: Synthesizer = make_method(_method(source), "synthesis", Synthesizer)
    return synthesizer.generate(graph, spec, _IMAGES, seed=seed, progress=progress)


def _measure(
    graph: fx.GraphModule, spec: InputSpec, sets: dict[tuple[str, int], SyntheticSet], test: Path
) -> tuple[float, dict[tuple[str, str], list[float]]]:
    """Float accuracy, and by source and scheme the accuracies of all seeds, in percent."""
    folded = fold_batch_norms(graph)
    batches = list(open_labelled(test, spec).batches(256))
    calibrator: Calibrator = make_method(_CALIBRATOR, "calibrators", Calibrator)
    found: dict[tuple[str, str], list[float]] = {}
    for (source, _), images in sets.items():
        for scheme in _SCHEMES:
            student = insert_quantizers(folded, scheme, spec)
            calibrate(student, [images.images], calibrator)
            accuracy = top1({"student": as_computed(settle(student))}, batches).top1["student"]
            found.setdefault((source, scheme.label), []).append(accuracy)
    return top1({"float": folded}, batches).top1["float"], found


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
