"""Images from a generator that was trained before and kept in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from datafree.config import InputSpec
from datafree.errors import ConfigError, DataError
from datafree.files import sha256
from datafree.generators import Generator, generate, load_generator
from datafree.synthesis.base import Batch, Synthesizer, even_batches
from datafree.tensors import device_of


class FromGenerator(Synthesizer):
    """Ask a saved generator for images; it must fit the network in shape and classes.

    ``x = G(z, y)`` with z from N(0, 1) and classes y, all equally likely, which are the targets;
    ``x = G(z)`` and no targets where the generator takes no class.
    """

    citation: ClassVar[str] = (
        "No paper of its own; the images are those of the method that trained the generator."
    )

    needs_file: ClassVar[bool] = True

    path: Path | None = None
    """File of the generator, as `datafree.generators.save_generator` writes it; has to be given."""
    digest: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """SHA-256 the file must have, in hexadecimal digits; None takes any. Metadata of images always
    have it."""
    batch_size: int = Field(default=128, ge=1)
    """Images made together, at most; in mode `train` they are normalised together."""
    mode: Literal["train", "eval"] = "train"
    """What the generator's batch norms normalise by: `train`, the statistics of each batch, as GDFQ
    makes images; `eval`, those gathered in training."""

    def passes(self, count: int) -> float:
        """The network is not asked."""
        del count
        return 0.0

    def batch_images(self, teacher: nn.Module, count: int) -> int:
        """Size of the fewest batches of at most `batch_size` images that are about equal."""
        del teacher
        return even_batches(count, self.batch_size)

    def check(self, teacher: nn.Module) -> None:
        """Refuse to go on without the generator.

        Raises:
            ConfigError: no file was named.
            DataError: there is no such file, or it is not the one that `digest` says.
        """
        super().check(teacher)
        found = _digest(self._file())
        if self.digest not in (None, found):
            raise DataError(
                f"{self.path} is another generator: its SHA-256 is {found}, not {self.digest}"
            )

    def describe(self) -> dict[str, Any]:
        """As in the base class, with the digest of the file that `path` names."""
        return {**super().describe(), "digest": _digest(self._file())}

    def prepare(self, teacher: nn.Module, spec: InputSpec, generator: torch.Generator) -> Generator:
        """Load the generator, to the device of the teacher.

        Raises:
            DataError: the file holds no generator, or one that does not fit `spec`.
        """
        del generator
        loaded, _ = load_generator(self._file())
        config = loaded.config
        conditional = config.condition != "none"
        if config.shape != spec.shape or (conditional and config.classes != spec.answers):
            raise DataError(
                f"generator {self.path} makes images of {_words(config.shape)}"
                f"{f' of {config.classes} classes' if conditional else ''}, and the network takes"
                f" {_words(spec.shape)} and knows {spec.answers} classes"
            )
        return loaded.to(device_of(teacher))

    def make_batch(
        self, teacher: nn.Module, spec: InputSpec, batch: Batch, state: Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Make one batch; see the base class."""
        del teacher, spec
        batch.step(1)
        return generate(
            state,
            batch.size,
            batch.generator,
            batch=self.batch_size,
            train_mode=self.mode == "train",
        )

    def _file(self) -> Path:
        if self.path is None:
            raise ConfigError(
                "the method generator makes images with a saved generator:"
                " name its file with the option path"
            )
        return self.path


def _digest(path: Path) -> str:
    try:
        return sha256(path)
    except FileNotFoundError:
        raise DataError(
            f"there is no {path}: give a generator's file, or one of images that synthesize wrote"
        ) from None
    except OSError as error:
        raise DataError(f"cannot read generator {path}: {error.strerror}") from None


def _words(shape: tuple[int, int, int]) -> str:
    return " x ".join(map(str, shape))
