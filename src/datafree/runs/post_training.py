"""The stages of post-training: bits for every layer, ranges, rounding, biases."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import fx

from datafree.allocation.allocate import allocate
from datafree.calibrators.base import ImagelessRule, calibrate
from datafree.config import RunConfig
from datafree.corrections.analytic_bias import correct_biases_analytically
from datafree.corrections.bias_correction import correct_biases
from datafree.corrections.prepare import prepare
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.graph.statistics import Statistics
from datafree.images import SyntheticSet, device_batches
from datafree.jsons import from_json
from datafree.progress import Progress
from datafree.progress.deadline import NEVER, Deadline
from datafree.runs.folder import ALLOCATION, FRONTIER, STUDENT, UNFINISHED
from datafree.runs.plan import Plan
from datafree.runs.portions import passing
from datafree.runs.record import Stopwatch
from datafree.tensors import device_of, fast_layout, release_memory


@dataclass(frozen=True)
class PostTrained:
    """A student, the float network it was made from, and what was measured on the way."""

    student: fx.GraphModule
    folded: fx.GraphModule
    metrics: dict[str, Any]


def allocated(
    graph: fx.GraphModule,
    config: RunConfig,
    images: SyntheticSet,
    folder: Path | None,
    progress: Progress,
    *,
    branches: bool = True,
) -> dict[str, Any]:
    """The summary of a run's allocation: the one an interrupted run left in `folder`, or a new one.

    Args:
        graph: canonical graph of the teacher.
        config: of the run.
        images: sensitivities are measured on.
        folder: of the run, or None.
        progress: shown while they are measured.
        branches: False where the student keeps its batch norms and its branches with them.
    """
    if folder is not None and (folder / ALLOCATION).exists():
        return from_json((folder / ALLOCATION).read_text(encoding="utf-8"))["chosen"]
    # How outliers are split depends on the bits: they are chosen before.
    without = config.model_copy(update={"split_outliers": 0.0})
    # A student that keeps its batch norms has no corrections either.
    base = prepare(graph, without)[0] if branches else fold_batch_norms(graph, branches=False)
    folded = fast_layout(base)
    found = allocate(folded, config.scheme, images.images, config, progress=progress)
    if folder is not None:
        found.save_picture(folder / FRONTIER)
        found.save(folder / ALLOCATION)
    return found.summary()


def quantize_weights(  # noqa: PLR0913 - what a run hands over
    graph: fx.GraphModule,
    config: RunConfig,
    plan: Plan,
    images: SyntheticSet,
    folder: Path | None,
    watch: Stopwatch,
    progress: Progress,
    deadline: Deadline = NEVER,
) -> PostTrained:
    """Quantize the weights as they are: calibrate, learn the rounding, correct biases.

    Args:
        graph: canonical graph of the teacher.
        config: of the run, bits of layers allocated.
        plan: its methods.
        images: to calibrate and learn on; none where no stage needs any.
        folder: of the run, where an interrupted reconstruction is kept.
        watch: takes the time of every stage.
        progress: shown during long stages.
        deadline: when learned rounding ends early.
    """
    metrics: dict[str, Any] = {}
    with watch.stage("calibration"):
        folded, statistics = prepare(graph, config)
        folded = fast_layout(folded)
        release_memory(folded)  # of the steps in between, each of which copies what it changes
        # Learned rounding writes into the student's weights; all else replaces them.
        share = plan.reconstructor is None
        student = insert_quantizers(folded, config.scheme, images.spec, share=share)
        student = fast_layout(student)
        if isinstance(plan.rule, ImagelessRule):
            plan.rule.set_ranges(student, folded, statistics, images.spec)
        else:
            observe = "quantized" if plan.reconstructor is None else "float"
            portion = passing("calibration", graph, images.spec, config)
            rule = plan.rule

            def ranges(size: int) -> None:
                batches = device_batches(images, device_of(graph), size)
                calibrate(student, batches, rule, observe=observe)

            portion.fit(ranges)
            metrics["batches"] = {"calibration": portion.size}
    if plan.reconstructor is not None:
        with watch.stage("reconstruction"):
            outcomes = plan.reconstructor.reconstruct(
                folded, student, images.images, unfolded=graph, seed=config.seed,
                progress=progress,
                checkpoint=None if folder is None else folder / UNFINISHED / STUDENT,
                deadline=deadline,
            )  # fmt: skip
        metrics["reconstruction"] = [asdict(outcome) for outcome in outcomes]
    if config.bias_rule is not None:
        with watch.stage("bias correction"):
            metrics |= _correct_biases(folded, student, statistics, config, images, progress)
    return PostTrained(student, folded, metrics)


def _correct_biases(
    folded: fx.GraphModule,
    student: fx.GraphModule,
    statistics: Statistics,
    config: RunConfig,
    images: SyntheticSet,
    progress: Progress,
) -> dict[str, Any]:
    """Correct the student's biases; what is to be told of it as metrics."""
    if config.bias_rule == "empirical":
        correct_biases(folded, student, images.images, progress=progress)
        return {}
    corrected = correct_biases_analytically(folded, student, statistics, images.spec)
    # Whoever did not ask for it is not bothered with what it could not do.
    asked = config.bias_correction == "analytic"
    return {"bias_not_corrected": list(corrected.skipped)} if asked else {}
