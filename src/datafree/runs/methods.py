"""The methods a run can choose from: listed, and explained one by one."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from datafree.adapters.excite import Excite
from datafree.calibrators.base import RangeRule
from datafree.config import Frozen
from datafree.config.fields import Described, described
from datafree.errors import ConfigError, UnknownNameError
from datafree.export.base import Exporter
from datafree.reconstruction.base import Reconstructor
from datafree.registry import KINDS, available, load
from datafree.runtimes import Runtime
from datafree.synthesis.base import Synthesizer
from datafree.training.base import Trainer

BASES: dict[str, type[Frozen]] = {
    "datafree.synthesis": Synthesizer,
    "datafree.calibrators": RangeRule,
    "datafree.reconstruction": Reconstructor,
    "datafree.training": Trainer,
    "datafree.export": Exporter,
    "datafree.runtimes": Runtime,
}
"""What every method of a package derives from."""
STEPS: dict[str, type[Frozen]] = {"excite": Excite}
"""Steps with hyper-parameters that there is one of, so that nothing is chosen."""


@dataclass(frozen=True)
class Explained:
    """One method, for people.

    Attributes:
        name: as it is chosen.
        kind: such as `image method`.
        text: what it does, with its equations.
        citation: where it comes from; empty if it does not say.
        fields: its hyper-parameters.
    """

    name: str
    kind: str
    text: str
    citation: str
    fields: tuple[Described, ...]

    @property
    def what(self) -> str:
        """The first sentence of the text."""
        return self.text.partition("\n\n")[0].replace("\n", " ")


def listed() -> list[tuple[str, list[tuple[str, str]]]]:
    """Every kind of method with the names and first sentences of its methods."""
    return [
        (f"{KINDS[package]}s", [(name, _what(package, name)) for name in available(package)])
        for package in BASES
    ]


def explained(name: str) -> list[Explained]:
    """The methods called `name`: papers have images and a training of their own, under one name.

    Args:
        name: as `datafree methods` lists it, ``path/to/file.py:Class`` or ``package.module:Class``.

    Raises:
        UnknownNameError: no such method; the nearest names are offered.
        ConfigError: a class from outside that is no method.
    """
    if name in STEPS:
        return [_explained(name, "last step of synthesize", STEPS[name])]
    if ":" not in name:
        found = [explain(package, name) for package in BASES if name in available(package)]
        if found:
            return found
        known = [*STEPS, *(n for p in BASES for n in available(p))]
        raise UnknownNameError("method", name, known)
    refused: list[str] = []
    for package in BASES:
        try:
            return [explain(package, name)]
        except ConfigError as error:
            refused.append(str(error))
    kinds = ", ".join(KINDS.values())
    unlike = all("must be a class derived" in text for text in refused)
    raise ConfigError(f"{name} is no method of any kind ({kinds})" if unlike else refused[0])


def explain(package: str, name: str) -> Explained:
    """Method `name` of `package`; raises as `datafree.registry.load` does."""
    return _explained(name, KINDS[package], load(package, name, BASES[package]))


def _explained(name: str, kind: str, cls: type[Frozen]) -> Explained:
    return Explained(
        name=name,
        kind=kind,
        text=inspect.getdoc(cls) or "",
        citation=str(getattr(cls, "citation", "")),
        fields=tuple(described(cls).values()),
    )


def _what(package: str, name: str) -> str:
    try:
        return explain(package, name).what
    except ConfigError as error:  # one broken package must not hide all methods
        return f"cannot be used: {error}"
