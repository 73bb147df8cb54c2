"""What is measured on a student in torch: accuracy or differences, noise, every layer by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from datafree.config import RunConfig
from datafree.evaluate import Predictor, layer_sqnr
from datafree.graph.chosen import kept_in_float
from datafree.graph.integer import as_computed
from datafree.graph.settle import settle
from datafree.images import SyntheticSet, device_batches
from datafree.progress import Progress
from datafree.runs.accuracy import Metric, accuracy
from datafree.runs.judging import judged, measured_verdict
from datafree.runs.plan import resolve_device
from datafree.runs.portions import passing
from datafree.runs.record import Stopwatch
from datafree.runs.weakest import weakest_layer


@dataclass(frozen=True)
class Made:
    """A student as the stages leave it.

    Attributes:
        student: the quantized network.
        folded: the float network its layers are those of; None of another architecture.
        metrics: what was measured on the way.
        last: of a training, the student after its last step.
    """

    student: fx.GraphModule
    folded: fx.GraphModule | None
    metrics: dict[str, Any]
    last: fx.GraphModule | None = None

    def settle(self) -> None:
        """Give the students the numbers that their target has."""
        for student in (self.student, self.last):
            if student is not None:
                settle(student)


def evaluated(  # noqa: PLR0913 - what a run hands over
    graph: fx.GraphModule,
    made: Made,
    config: RunConfig,
    images: SyntheticSet,
    held: SyntheticSet | None,
    metric: Metric | None,
    watch: Stopwatch,
    progress: Progress,
) -> dict[str, Any]:
    """Everything that is measured on a student in torch, as entries of its record.

    Args:
        graph: canonical graph of the teacher.
        made: the student.
        config: of the run.
        images: it was calibrated with.
        held: images that no stage has seen; None where there are labelled ones, or none are wanted.
        metric: measures on labelled images, where it is no measure of classes.
        watch: times the stages.
        progress: shown meanwhile.

    Raises:
        DatafreeError: labelled images do not fit, or what a network returns is not finite.
    """
    with watch.stage("evaluation"):
        measured = _measured(graph, made, config, images, held, metric, progress)
    if config.isolate and made.folded is not None and len(images):
        spent = sum(watch.seconds.values())
        shown = images if held is None else held
        with watch.stage("layers"):
            found = weakest_layer(made.folded, made.student, shown, config, spent, progress)
        measured["isolation"] = found
    return measured


def _measured(  # noqa: PLR0913 - all that `evaluated` has
    graph: fx.GraphModule,
    made: Made,
    config: RunConfig,
    images: SyntheticSet,
    held: SyntheticSet | None,
    metric: Metric | None,
    progress: Progress,
) -> dict[str, Any]:
    """What student and teacher reach or differ by."""
    spec, device = images.spec, resolve_device(config.device)
    portion = passing("evaluation", graph, spec, config)
    # Folding and equalizing keep the function and make it faster; these two change it a little.
    changed = config.replace_relu6 or config.absorb_biases
    teacher = graph if changed or made.folded is None else made.folded
    kept = kept_in_float(made.student)
    measured: dict[str, Any] = {"keep_float": list(kept)} if kept else {}
    if len(images) and made.folded is not None:
        folded = made.folded
        measured["sqnr_db"] = portion.fit(
            lambda size: layer_sqnr(folded, made.student, device_batches(images, device, size))
        )
    if config.data is not None:
        networks: dict[str, Predictor] = {"teacher": teacher, "student": as_computed(made.student)}
        if made.last is not None:
            networks["student after the last step"] = as_computed(made.last)
        found = portion.fit(
            lambda size: accuracy(
                networks, graph, spec, config.model_copy(update={"images_per_batch": size}),
                metric, progress,
            )
        )  # fmt: skip
        measured["batches"] = {"evaluation": portion.size}
        return measured | found | measured_verdict(found)
    if held is None:
        return measured
    student, noise = as_computed(made.student), measured.get("sqnr_db", {})
    measured |= portion.fit(lambda size: judged(held, teacher, student, config, noise, size))
    measured["batches"] = {"evaluation": portion.size}
    return measured
