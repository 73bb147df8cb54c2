"""SADAG's options one at a time: all start from one warm-up and one student."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.kinds.base import Bench
from benchmarks.kinds.ranges import Ranges
from datafree.config import RunConfig
from datafree.images import SyntheticSet
from datafree.progress import Step, silent
from datafree.runs.plan import make_method
from datafree.synthesis.sadag import SADAG


class _PreparedError(Exception):
    """The student is there."""


def _until_matching(description: str, total: int) -> AbstractContextManager[Step]:
    """A progress that stops the run where the matching begins."""
    if description == "sadag images":
        raise _PreparedError
    return silent(description, total)


class SharedStart(Ranges):
    """Top-1 on the images of one variant, and how far they `moved` from those of genie.

    The way is measured in norms of genie's images, the mean over images.
    """

    variant: dict[str, Any] | None = None
    """Options of SADAG that differ from those of the base; None takes genie's images."""

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        images = self.images(config, bench).images
        before = self._set(config, bench, genie=True).images
        moved = (images - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)
        return super().measure(config, bench) | {"moved": moved.mean().item()}

    def images(self, config: RunConfig, bench: Bench) -> SyntheticSet:
        """The images of the variant."""
        return self._set(config, bench, genie=self.variant is None)

    def _set(self, config: RunConfig, bench: Bench, *, genie: bool) -> SyntheticSet:
        """The images before the matching, or after it."""
        seed = config.seed if self.image_seed is None else self.image_seed
        options = dict(config.method_options)
        stem = f"sadag_{config.model}_{config.bits}_{config.images}_{options['iterations']}_{seed}"
        start = bench.place.made / f"{stem}.unfinished"
        usual = _method(config, options)
        network, spec = bench.network(config).graph, bench.network(config).teacher.spec
        if not start.exists():
            with suppress(_PreparedError):
                usual.generate(
                    network, spec, config.images, seed=seed, progress=_until_matching,
                    checkpoint=start,
                )  # fmt: skip
        if genie:
            return SyntheticSet(_drafts(start, config.images), spec)
        with TemporaryDirectory() as folder:
            copy = Path(shutil.copytree(start, Path(folder) / "copy"))
            method = _method(config, {**options, **(self.variant or {})})
            return method.generate(
                network, spec, config.images, seed=seed, progress=bench.progress, checkpoint=copy
            )


def _method(config: RunConfig, options: dict[str, Any]) -> SADAG:
    asked = config.synthesis.model_copy(update={"options": options})
    method: SADAG = make_method(asked, "synthesis", SADAG)
    return method.for_scheme(config.scheme)


def _drafts(folder: Path, count: int) -> Tensor:
    """The images of the warm-up: what genie makes."""
    from safetensors.torch import load_file

    files = sorted(folder.glob("batch_*_draft.safetensors"))
    return torch.cat([load_file(file)["images"] for file in files])[:count]
