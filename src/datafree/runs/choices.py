"""What a run leaves to the network it meets: the image method, and how biases are corrected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from datafree.calibrators.base import ImagelessRule, RangeRule
from datafree.config import RunConfig
from datafree.graph.inputs import inputs_of
from datafree.graph.taps import batch_norms
from datafree.registry import load
from datafree.synthesis.base import Synthesizer
from datafree.training.base import Trainer

_IMAGES = "images by"


@dataclass(frozen=True)
class Settled:
    """A run whose methods are those of one network.

    Attributes:
        config: the run, one name for each method.
        notes: a sentence for each choice that a network without batch norms made, for people.
    """

    config: RunConfig
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All notes in one line; empty without any."""
        return f"no batch norms in this network: {', '.join(self.notes)}" if self.notes else ""

    @property
    def images(self) -> str:
        """The note on the image method alone, likewise."""
        alone = tuple(note for note in self.notes if note.startswith(_IMAGES))
        return Settled(self.config, alone).text if len(alone) < len(self.notes) else self.text


def settled(config: RunConfig, graph: fx.GraphModule, *, given: bool = False) -> Settled:
    """`config` with all that it leaves to the network decided.

    Of several image methods or calibrators the first that fits is taken, the last if none does. On
    a network without batch norms, biases that these were to correct are corrected on images. The
    protocol of papers becomes options of the method.

    Args:
        config: of the run.
        graph: the captured network.
        given: images are given, so that no method is to make any.

    Raises:
        UnknownNameError: there is no method of one of the names.
    """
    changes: dict[str, Any] = {}
    notes: list[str] = []
    plain = not batch_norms(graph)
    method, calibrator = str(config.method), str(config.calibrator)
    if "," in method:
        changes["method"], fits = _image_method(method, graph)
        if fits and not given and learns_from_images(config):
            notes.append(f"{_IMAGES} {changes['method']}")
    if "," in calibrator:
        changes["calibrator"] = _calibrator(calibrator, plain=plain)
        notes.append(f"ranges by {changes['calibrator']}")
    if config.protocol is not None:
        cls = load("datafree.synthesis", changes.get("method", method), Synthesizer)
        changes["method_options"] = {**cls.paper_options, **config.method_options}
    if plain and config.tuning is None and _analytic(config):
        changes["bias_correction"] = "empirical"
        notes.append("biases corrected on images")
    made = config.model_copy(update=changes) if changes else config
    return Settled(made, tuple(notes) if plain else ())


def learns_from_images(config: RunConfig) -> bool:
    """Whether a run takes images that are made before; most trainings dream their own."""
    if config.tuning is None:
        return True
    cls: type[Trainer] = load("datafree.training", str(config.training), Trainer)
    return cls.from_images


def _image_method(names: str, graph: fx.GraphModule) -> tuple[str, bool]:
    """The first of `names` whose method fits `graph`, and True; the last and False if none does."""
    given = names_in(names)
    classes = [load("datafree.synthesis", name, Synthesizer) for name in given]
    found = [name for name, cls in zip(given, classes, strict=True) if cls.fits(graph)]
    if not found and len(given) > 1 and inputs_of(graph):
        return "noise", True  # the others make pictures
    return (found[0], True) if found else (given[-1], False)


def _calibrator(names: str, *, plain: bool) -> str:
    """The first of `names` that can tell ranges; the last if none can."""
    given = names_in(names)
    classes = [load("datafree.calibrators", name, RangeRule) for name in given]
    found = (
        name
        for name, cls in zip(given, classes, strict=True)
        if not (plain and issubclass(cls, ImagelessRule))
    )
    return next(found, given[-1])


def names_in(names: str) -> list[str]:
    """The methods that are named where the first that fits is to be taken."""
    return [name.strip() for name in names.split(",") if name.strip()] or [names]


def _analytic(config: RunConfig) -> bool:
    """Whether batch norms are to correct biases, or would be once bits are allocated."""
    if config.bias_rule == "analytic":
        return True
    return config.mixed and config.bias_correction == "auto" and config.rounding is None
