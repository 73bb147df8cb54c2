"""The cheapest scheme whose loss stays within bounds, found by trying."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datafree.config import RunConfig, build
from datafree.errors import ConfigError, VerdictError
from datafree.files import write_text
from datafree.images import SyntheticSet
from datafree.jsons import to_json
from datafree.models import Teacher, load_teacher
from datafree.progress import Progress, silent
from datafree.recipes import RECIPES
from datafree.runs.accuracy import Metric
from datafree.runs.folder import SEARCH, locked, refuse
from datafree.runs.pipeline import Result, run
from datafree.verdict.estimate import Verdict

WIDE = "W8A8"
_LEARNED = ("reconstruction", "reconstruction_options", "calibrator_options")
_QUICK: dict[str, Any] = {
    "max_drop": None, "fail_below": None, "export": False, "report": False, "latency": False,
}  # fmt: skip


@dataclass(frozen=True)
class Tried:
    """A scheme that was tried.

    Attributes:
        what: in words.
        within: whether its loss is within the bound.
        verdict: on its student.
        seconds: it took.
        result: of the run; None where it is no longer needed.
    """

    what: str
    within: bool
    verdict: Verdict
    seconds: float
    result: Result = field(repr=False)

    def told(self) -> dict[str, Any]:
        """As plain values."""
        kept = self.verdict.model_dump(mode="json", include={"word", "loss", "low", "high"})
        return {"what": self.what, "within": self.within, **kept, "seconds": self.seconds}


@dataclass
class _Search:
    """Runs of one network with the same images."""

    config: RunConfig
    teacher: Teacher
    images: SyntheticSet | None
    metric: Metric | None
    progress: Progress
    tell: Callable[[str], None]
    tries: list[Tried] = field(default_factory=list)

    def attempt(self, what: str, config: RunConfig, *, isolate: bool = False) -> Tried:
        """Quantize as `config` says, without writing anything."""
        started = time.perf_counter()
        quick = _changed(config, {**_QUICK, "isolate": isolate})
        result = run(
            quick, teacher=self.teacher, images=self.images, metric=self.metric,
            progress=self.progress,
        )  # fmt: skip
        self.images = result.images if len(result.images) else self.images
        verdict = result.verdict
        if verdict is None:
            raise ConfigError("max_drop goes by a verdict, and there is none here: give bits")
        within = verdict.loss <= _bound(self.config)
        spent = time.perf_counter() - started
        found = Tried(what, within, verdict, spent, result)
        self.tries.append(found)
        self.tell(f"tried {what}: {verdict.why}")
        return found


def carry_out(  # noqa: PLR0913 - one door, what a caller may bring
    config: RunConfig,
    *,
    teacher: Teacher | None = None,
    images: SyntheticSet | None = None,
    metric: Metric | None = None,
    folder: Path | None = None,
    force: bool = False,
    progress: Progress = silent,
    tell: Callable[[str], None] | None = None,
) -> Result:
    """`run`, or where ``config.max_drop`` is given the run of the cheapest scheme within it.

    Weights of few bits are tried first, rounded to the nearest and then with learned rounding, then
    layers at 8 bits, the weakest first and as few as will do, and at last 8 bits everywhere. Which
    of several schemes is cheapest is a matter of the bytes of weights; seconds of the search come
    after that. All tries share their images. What was tried is ``metrics["search"]``, and
    ``search.json`` in the folder; ``config.yaml`` there repeats the scheme that was found.

    Args:
        config: the run.
        teacher: as of `run`.
        images: as of `run`.
        metric: as of `run`.
        folder: as of `run`.
        force: as of `run`.
        progress: as of `run`.
        tell: called with a line for every try.

    Raises:
        ConfigError: `max_drop` goes with what leaves nothing to search, or nothing to judge by.
        DatafreeError: whatever a stage refuses.
    """
    given: dict[str, Any] = {"metric": metric, "progress": progress, "tell": tell}
    if config.max_drop is None:
        return run(config, teacher=teacher, images=images, folder=folder, force=force, **given)
    _check(config, metric)
    if folder is None:
        return _searched(config, teacher, images, None, False, given)
    refuse(folder, config, force)
    with locked(folder):
        return _searched(config, teacher, images, folder, force, given)


def _searched(
    config: RunConfig,
    teacher: Teacher | None,
    images: SyntheticSet | None,
    folder: Path | None,
    force: bool,
    given: Mapping[str, Any],
) -> Result:
    """The run of the cheapest scheme within ``config.max_drop``; arguments as of `carry_out`."""
    teacher = teacher or load_teacher(config.teacher)
    tell = given["tell"] or _unheard
    search = _Search(config, teacher, images, given["metric"], given["progress"], tell)
    scheme, what = _found(search)
    search.tell(f"taken: {what}")
    chosen = _changed(scheme, {"max_drop": None})
    told = {"max_drop": _bound(config), "taken": what, "tries": [t.told() for t in search.tries]}
    try:
        result = run(
            chosen, teacher=teacher, images=search.images, folder=folder, force=force,
            reserved=True, **given,
        )  # fmt: skip
    except VerdictError as error:  # all is written, what was tried has to be too
        _note(error.result, told)
        raise
    return _note(result, told)


def _note(result: Result, told: dict[str, Any]) -> Result:
    """Put what was tried into a result and its folder."""
    result.metrics["search"] = told
    if result.folder is not None:
        write_text(result.folder / SEARCH, to_json(told, SEARCH, indent=2) + "\n")
    return result


def _found(search: _Search) -> tuple[RunConfig, str]:
    """The cheapest scheme within the bound, or 8 bits where none is, and what it is in words."""
    narrow = _narrow(search.config)
    wide = _changed(search.config, {"bits": WIDE})
    if narrow is None:
        last = search.attempt(WIDE, wide)
        return wide, WIDE if last.within else f"{WIDE}, which loses more than was asked for"
    label = narrow.scheme.label
    plain = search.attempt(label, narrow, isolate=True)
    if plain.within:
        return narrow, label
    learned = _learned(narrow)
    if learned is not None:
        what = f"{label} with rounding learned by {learned.reconstruction}"
        if search.attempt(what, learned).within:
            return learned, what
    if not search.attempt(WIDE, wide).within:
        return wide, f"{WIDE}, which loses more than was asked for, as all that was tried"
    return _fewest_wide_layers(search, narrow, plain) or (wide, WIDE)


def _fewest_wide_layers(
    search: _Search, narrow: RunConfig, plain: Tried
) -> tuple[RunConfig, str] | None:
    """`narrow` with the weakest layers at 8 bits, as few as bring it within the bound."""
    order = by_blame(plain.result.metrics.get("isolation", {}))
    best: tuple[RunConfig, str] | None = None
    fewest, most = 1, len(order) - 1
    while fewest <= most:
        count = (fewest + most) // 2
        bits = {**dict.fromkeys(order[:count], WIDE), **narrow.layer_bits}
        tried = _changed(narrow, {"layer_bits": bits})
        what = f"{narrow.scheme.label} with {count} of {len(order)} layers at 8 bits"
        if search.attempt(what, tried).within:
            best, most = (tried, what), count - 1
        else:
            fewest = count + 1
    return best


def by_blame(isolation: Mapping[str, Any]) -> list[str]:
    """Layers that were measured one by one, those that lose most first."""
    shares = isolation.get("by_layer", {})
    return sorted(shares, key=lambda path: shares[path]["without"] - shares[path]["alone"])


def _narrow(config: RunConfig) -> RunConfig | None:
    """The scheme with the fewest bits of weights to try; None where the target has 8 alone."""
    if config.scheme.weights < 8:
        return config
    from datafree.targets import load_target

    target = load_target(config.target)
    return _changed(config, {"bits": "W4A8"}) if 4 in target.weight_widths else None


def _learned(config: RunConfig) -> RunConfig | None:
    """The same with learned rounding; None where it has some."""
    if config.rounding is not None:
        return None
    recipe = RECIPES["balanced"].fields
    return _changed(config, {name: recipe[name] for name in _LEARNED if name in recipe})


def _changed(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    return build(RunConfig, {**config.model_dump(), **changes}, "max_drop")


def _bound(config: RunConfig) -> float:
    assert config.max_drop is not None  # noqa: S101 - asked for by the caller
    return float(config.max_drop)


def _check(config: RunConfig, metric: Metric | None) -> None:
    """Refuse what leaves nothing to search, or nothing to judge by."""
    why = None
    if config.mixed:
        why = "average_bits and budget choose bits as well"
    elif config.tuning is not None:
        why = "a training takes too long to be tried several times"
    elif config.data is None and not config.holdout:
        why = "nothing would be compared without holdout"
    elif config.data is not None and (metric is not None or config.metric is not None):
        why = "a measure of your own has no scale that is known"
    if why is not None:
        raise ConfigError(f"max_drop chooses a scheme by its verdict, and {why}: drop one")


def _unheard(_line: str) -> None:
    """For whoever does not listen."""
