"""Images that were made before and kept in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from datafree.config import InputSpec
from datafree.errors import ConfigError, DataError
from datafree.files import sha256
from datafree.graph.taps import batch_norms
from datafree.images import SyntheticSet
from datafree.synthesis.base import Batch, Synthesizer
from datafree.synthesis.dsg import DSG
from datafree.synthesis.noise import Noise


class FromFile(Synthesizer):
    """Take the first images of a file that `datafree synthesize` wrote, in order.

    Images normalised otherwise than the network wants it are brought into its space. Held-out
    images, which a file has none of, are made by `dsg`, or by `noise` where there is no batch norm.
    """

    citation: ClassVar[str] = "No paper of its own; the images are those of the method in the file."

    path: Path | None = None
    """File of the images, as `synthesize` writes it; has to be given."""
    digest: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """SHA-256 the file must have, in hexadecimal digits; None takes any. Metadata of images always
    have it."""

    def passes(self, count: int) -> float:
        """The network is not asked."""
        del count
        return 0.0

    def for_held_out(self, teacher: nn.Module) -> Synthesizer:
        """A method that makes other images than those of the file."""
        return DSG() if batch_norms(teacher) else Noise()

    def check(self, teacher: nn.Module) -> None:
        """Refuse to go on without the file.

        Raises:
            ConfigError: no file was named.
            DataError: there is no such file, or it is not the one that `digest` says.
        """
        super().check(teacher)
        found = _digest(self._file())
        if self.digest not in (None, found):
            raise DataError(
                f"{self.path} holds other images: its SHA-256 is {found}, not {self.digest}"
            )

    def describe(self) -> dict[str, Any]:
        """As in the base class, with the digest of the file that `path` names."""
        return {**super().describe(), "digest": _digest(self._file())}

    def prepare(
        self, teacher: nn.Module, spec: InputSpec, generator: torch.Generator
    ) -> SyntheticSet:
        """Load the images.

        Raises:
            DataError: the file holds no images, or none of the network's shape.
        """
        del teacher, generator
        loaded = SyntheticSet.load(self._file())
        if loaded.spec.shape != spec.shape:
            raise DataError(
                f"{self.path} holds images of shape {loaded.spec.shape}, and the network takes"
                f" {spec.shape}: synthesize some for it"
            )
        return loaded

    def make_batch(
        self, teacher: nn.Module, spec: InputSpec, batch: Batch, state: SyntheticSet
    ) -> tuple[Tensor, Tensor | None]:
        """The next images; see the base class.

        Raises:
            DataError: the file holds fewer.
        """
        del teacher
        end = batch.start + batch.size
        if end > len(state):
            raise DataError(
                f"{self.path} holds {len(state)} images, and {end} are wanted: ask for fewer, or"
                " synthesize more"
            )
        batch.step(1)
        targets = None if state.targets is None else state.targets[batch.start : end]
        return _normalised_for(state.images[batch.start : end], state.spec, spec), targets

    def _file(self) -> Path:
        if self.path is None:
            raise ConfigError(
                "the method file takes images that were made before: name their file with the"
                " option path"
            )
        return self.path


def _normalised_for(images: Tensor, own: InputSpec, wanted: InputSpec) -> Tensor:
    if (own.mean, own.std) == (wanted.mean, wanted.std):
        return images
    mean, std, new_mean, new_std = (
        torch.tensor(v).view(1, -1, 1, 1) for v in (own.mean, own.std, wanted.mean, wanted.std)
    )
    return (images * std + mean - new_mean) / new_std


def _digest(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise DataError(f"cannot read images {path}: {error.strerror}") from None
