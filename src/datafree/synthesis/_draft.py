"""What SADAG's warm-up leaves of a batch: a generator, its latent vectors and their images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datafree.config import InputSpec
from datafree.errors import DataError
from datafree.synthesis._generator import ImageGenerator
from datafree.synthesis._genie import Generated
from datafree.synthesis.base import Batch
from datafree.tensors import device_of, load_tensors, save_tensors


@dataclass(frozen=True)
class Draft:
    """One batch after the warm-up, on disk.

    Attributes:
        folder: that keeps it.
        batch: which.
        base: all that it depends on, but for its own random numbers.
        latent_dim: length of a latent vector.
    """

    folder: Path
    batch: Batch
    base: Mapping[str, object]
    latent_dim: int

    @property
    def path(self) -> Path:
        """Its file."""
        return self.folder / f"batch_{self.batch.start:06d}_draft.safetensors"

    @property
    def request(self) -> dict[str, Any]:
        """All that it depends on."""
        # The version of the generator's layers: those of another one do not fit.
        return {**self.base, "layers": 2, "batch_seed": self.batch.generator.initial_seed()}

    def exists(self) -> bool:
        """Whether an equal request left it."""
        return load_tensors(self.path, self.request) is not None

    def save(self, made: Generated) -> None:
        """Keep what the warm-up made."""
        tensors = {f"generator.{k}": v for k, v in made.generator.state_dict().items()}
        tensors |= {"latents": made.latents, "images": made.images}
        if made.targets is not None:
            tensors["targets"] = made.targets
        save_tensors(self.path, tensors, self.request)

    def load(self, spec: InputSpec, network: nn.Module) -> Generated:
        """Read it, to the device of `network`.

        Raises:
            DataError: the file is not there any more.
        """
        found = load_tensors(self.path, self.request)
        if found is None:
            raise DataError(f"{self.path} has disappeared: run the same command again")
        tensors, device = found[0], device_of(network)
        generator = ImageGenerator(spec.shape, self.latent_dim, torch.Generator())
        generator.load_state_dict(
            {k.removeprefix("generator."): v for k, v in tensors.items() if k.startswith("gen")}
        )
        return Generated(
            generator.to(device),
            tensors["latents"].to(device),
            tensors["images"],
            tensors.get("targets"),
        )
