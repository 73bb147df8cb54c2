"""SADAG's options one at a time: all start from one warm-up and one student."""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.kinds.base import Bench
from benchmarks.kinds.ranges import Ranges
from datafree.config import RunConfig
from datafree.images import SyntheticSet
from datafree.progress import Step, silent
from datafree.runs.plan import make_method
from datafree.synthesis.sadag import SADAG

_LEAST = {"matching_iterations": 1}  # genie's images stay; only what is told of them is wanted


class _PreparedError(Exception):
    """The student is there."""


def _until_matching(description: str, total: int) -> AbstractContextManager[Step]:
    """A progress that stops the run where the matching begins."""
    if description == "sadag images":
        raise _PreparedError
    return silent(description, total)


class SharedStart(Ranges):
    """Top-1 on the images of one variant, how far they `moved` from those of genie, and `cosine`.

    The way is measured in norms of genie's images, the mean over images. The cosine is of the set's
    classifier gradient and that of real images, at SADAG's student; no method sees these.
    """

    variant: dict[str, Any] | None = None
    """Options of SADAG that differ from those of the base; None takes genie's images."""
    compared: int = 1024
    """Real images whose gradient is compared with."""

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        images = self.images(config, bench).images
        before = self._warm(config, bench)
        moved = (images - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)
        # The cosine of genie's images stands beside that of any others.
        told = self._made(config, bench, _LEAST if self.variant is None else self.variant).metadata
        cosine = told["warm_cosine" if self.variant is None else "cosine"]
        return super().measure(config, bench) | {"moved": moved.mean().item(), "cosine": cosine}

    def images(self, config: RunConfig, bench: Bench) -> SyntheticSet:
        """The images of the variant."""
        if self.variant is not None:
            return self._made(config, bench, self.variant)
        return SyntheticSet(self._warm(config, bench), bench.network(config).teacher.spec)

    def _warm(self, config: RunConfig, bench: Bench) -> Tensor:
        """The images before the matching: what genie makes."""
        files = sorted(self._start(config, bench).glob("batch_*_draft.safetensors"))
        return torch.cat([load_file(file)["images"] for file in files])[: config.images]

    def _start(self, config: RunConfig, bench: Bench) -> Path:
        """The folder of warm-up and student, made once."""
        options, seed = dict(config.method_options), self._seed(config)
        stem = f"sadag_{config.model}_{config.bits}_{config.images}_{options['iterations']}_{seed}"
        start = bench.place.made / f"{stem}.unfinished"
        if not start.exists():
            network = bench.network(config)
            with suppress(_PreparedError):
                _method(config, options).generate(
                    network.graph, network.teacher.spec, config.images, seed=seed,
                    progress=_until_matching, checkpoint=start,
                )  # fmt: skip
        return start

    def _made(self, config: RunConfig, bench: Bench, variant: dict[str, Any]) -> SyntheticSet:
        """The images after the matching, made once."""
        start, network, seed = self._start(config, bench), bench.network(config), self._seed(config)
        told = json.dumps([start.name, config.method_options, variant], sort_keys=True)
        path = start.with_name(
            f"sadag_{hashlib.sha256(told.encode()).hexdigest()[:16]}.safetensors"
        )
        if path.exists():
            return SyntheticSet.load(path)
        with TemporaryDirectory() as folder:
            real = Path(folder) / "real.safetensors"
            network.real_images(self.compared, seed).save(real)
            options = {**config.method_options, **variant, "compare_with": str(real)}
            copy = Path(shutil.copytree(start, Path(folder) / "copy"))
            made = _method(config, options).generate(
                network.graph, network.teacher.spec, config.images, seed=seed,
                progress=bench.progress, checkpoint=copy,
            )  # fmt: skip
        made.save(path)
        return made

    def _seed(self, config: RunConfig) -> int:
        return config.seed if self.image_seed is None else self.image_seed


def _method(config: RunConfig, options: dict[str, Any]) -> SADAG:
    asked = config.synthesis.model_copy(update={"options": options})
    method: SADAG = make_method(asked, "synthesis", SADAG)
    return method.for_scheme(config.scheme)
