"""The fine-tuning stage of a run: its networks, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram

from datafree.calibrators.base import Calibrator
from datafree.config import InputSpec, ModelConfig, RunConfig, outputs
from datafree.config.inputs import told_of
from datafree.corrections.prepare import prepare
from datafree.errors import ModelError
from datafree.generators import Generator, generate, save_generator
from datafree.graph.capture import capture, to_device
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.graph.normalisation import behind_normalisation
from datafree.images import SyntheticSet
from datafree.models import from_module, load_teacher
from datafree.models.hubs import HUBS
from datafree.progress import Progress, silent
from datafree.progress.deadline import NEVER, Deadline
from datafree.reconstruction.base import Reconstructor
from datafree.runs.folder import GENERATOR, WARM_GENERATOR
from datafree.runs.notes import warn_of
from datafree.tensors import device_of, random_numbers
from datafree.training import Task, Team, Trained, train
from datafree.training.base import Trainer
from datafree.training.dfqf import forgotten


@dataclass(frozen=True)
class Tuned:
    """What the stage leaves.

    Attributes:
        trained: student, generator and what was measured while they learned.
        folded: float network whose layers are the student's; None where it is distilled and float.
    """

    trained: Trained
    folded: fx.GraphModule | None


def tune(  # noqa: PLR0913 - what a run hands over
    trainer: Trainer,
    graph: fx.GraphModule,
    spec: InputSpec,
    config: RunConfig,
    rule: Calibrator,
    images: SyntheticSet | None,
    companion: fx.GraphModule | None = None,
    reconstructor: Reconstructor | None = None,
    *,
    checkpoint: Path | None = None,
    progress: Progress = silent,
    team: Team | None = None,
    deadline: Deadline = NEVER,
) -> Tuned:
    """Fine-tune a student as `config` says.

    Args:
        trainer: the method.
        graph: canonical graph of the teacher, on the device to train on.
        spec: its input.
        config: of the run.
        rule: sets the activation ranges it starts from.
        images: given images the ranges are set on, and that a trainer without a generator learns
            from; None takes the generator's.
        companion: network to distill into, canonical, as `find_companion` returns it.
        reconstructor: learns the rounding training starts from.
        checkpoint: folder for an interrupted training.
        progress: shown while it runs.
        team: the processes that train together.
        deadline: when it ends early.
    """
    if companion is not None:
        companion = to_device(companion, device_of(graph))
    folded, statistics = prepare(graph, config)
    task = Task(
        teacher=graph, folded=folded, spec=spec, rule=rule, seed=config.seed,
        statistics=statistics if config.bias_rule else None,
        scheme=None if config.float_student else config.scheme,
        images=None if images is None else images.images,
        targets=None if images is None else images.targets,
        made_by="none" if images is None else _origin(images),
        generator=config.generator, companion=companion, reconstructor=reconstructor,
    )  # fmt: skip
    trained = train(
        trainer,
        task,
        progress=progress,
        checkpoint=checkpoint,
        deadline=deadline,
        team=team,
    )
    counterpart = folded if trainer.folds else graph
    return Tuned(trained, counterpart if companion is None else None)


def _origin(images: SyntheticSet) -> str:
    """Who made images, as records say it: a method, `real`, `given`, with photos among them."""
    made = str(images.metadata.get("method", "given"))
    return f"{made} and photos" if "photos" in images.metadata else made


def find_companion(
    student: nn.Module | ExportedProgram | None, config: RunConfig, spec: InputSpec
) -> fx.GraphModule | None:
    """The network to distill into: the one in memory, or the one `config` names, or none.

    Raises:
        ModelError: it does not fit the teacher, or has nothing to learn.
    """
    if student is not None:
        own = from_module(student, **_taken(spec), task=_task(spec))
        warn_of(own.notes)
        _fits(own.name, own.spec, spec)
        graph = capture(own.model, spec)
    elif config.companion is not None:
        graph = other_network(config.companion, spec, config.seed)
    else:
        return None
    if next(graph.parameters(), None) is None:
        raise ModelError("the network to distill into has no parameters: nothing could be learned")
    return graph


def other_network(described: ModelConfig, spec: InputSpec, seed: int) -> fx.GraphModule:
    """The canonical graph of a network to distill into, with weights drawn anew.

    Args:
        described: where it comes from; weights it names are loaded instead. What it does not say of
            its input is the teacher's.
        spec: input of the teacher.
        seed: of its weights.

    Raises:
        ModelError: it does not take the teacher's images or has other classes.
    """
    known = _taken(spec)
    missing = {key: value for key, value in known.items() if getattr(described, key) is None}
    if described.source.partition(":")[0] in HUBS and described.weights_file is None:
        missing["classes"] = spec.classes
    found = load_teacher(described.model_copy(update=missing), pretrained=False)
    warn_of(found.notes)
    _fits(described.source, found.spec, spec)
    graph = capture(found.model, spec)
    return graph if described.weights_file is not None else forgotten(graph, seed)


def _fits(name: str, own: InputSpec, spec: InputSpec) -> None:
    taken = [one.shape for one in own.inputs] == [one.shape for one in spec.inputs]
    if (own.shape, own.heads) != (spec.shape, spec.heads) or not taken:
        raise ModelError(
            f"{name} maps images of {own.shape} to {_told(own)} and its teacher {spec.shape} to"
            f" {_told(spec)}: choose a student that fits"
        )


def _taken(spec: InputSpec) -> dict[str, Any]:
    """What the user would say of the network's input."""
    if spec.inputs:
        return told_of(spec.inputs)
    return {"input_shape": spec.shape, "mean": spec.mean, "std": spec.std}


def _told(spec: InputSpec) -> str:
    if not spec.outputs:
        return f"{spec.classes} classes"
    return ", ".join(f"{head.name} {head.shape}" for head in spec.outputs)


def _task(spec: InputSpec) -> outputs.Task:
    """What the user would say of the network."""
    kind = spec.principal.kind
    return {"values": "values", "dense_classes": "dense"}.get(kind, "classes")  # pyright: ignore


def blank_student(
    graph: fx.GraphModule, spec: InputSpec, config: RunConfig, trainer: Trainer | None
) -> fx.GraphModule:
    """A student as `config` makes it, before anything is learned: to load a state into.

    Args:
        graph: canonical graph of the teacher.
        spec: its input.
        config: of the run.
        trainer: its fine-tuning method, if it has one.
    """
    unfolded = trainer is not None and not trainer.folds
    if config.companion is not None:
        graph = other_network(config.companion, spec, config.seed)
        if config.float_student:
            return graph
        base = graph if unfolded else fold_batch_norms(graph)
    else:
        base = graph if unfolded else prepare(graph, config)[0]
    return insert_quantizers(base, config.scheme, spec)


def dreamt(
    generator: Generator, graph: fx.GraphModule, spec: InputSpec, config: RunConfig
) -> SyntheticSet:
    """The images of a run whose generator learned from `graph`: for pictures and checks."""
    _, inner = behind_normalisation(graph, spec)
    return _dreamt(generator, inner, config, config.images, "images").fitted(spec)


def save_generators(trained: Trained, folder: Path, config: RunConfig) -> None:
    """Write the generator, and as it was after the warm-up, for other bit widths to start from.

    Nothing is written where the student learned from given images.
    """
    told: dict[str, Any] = {"teacher": config.model, "seed": config.seed}
    if trained.generator is not None:
        save_generator(trained.generator, folder / GENERATOR, **told)
    if trained.warm is not None:
        save_generator(trained.warm, folder / WARM_GENERATOR, **told)


def _dreamt(
    generator: Generator, spec: InputSpec, config: RunConfig, count: int, purpose: str
) -> SyntheticSet:
    images, labels = generate(generator, count, random_numbers(config.seed, purpose))
    described = {"method": "generator", "seed": config.seed, "count": count}
    return SyntheticSet(images.contiguous(), spec, labels, described)
