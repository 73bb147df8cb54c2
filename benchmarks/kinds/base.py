"""What all kinds of measurements share: images, networks, one run of the library."""

from __future__ import annotations

import hashlib
import shutil
from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import networks
from benchmarks.images import images_of, needs_images, photos
from benchmarks.networks import Network
from benchmarks.place import Place
from datafree.config import Frozen, RunConfig, build
from datafree.graph.capture import to_device
from datafree.images import SyntheticSet
from datafree.progress import Progress
from datafree.recipes import laid_over
from datafree.runs.pipeline import Result, run

_PROCESSOR = torch.device("cpu")
# Images are given to a run, pictures among them: a configuration that named these too, or their
# share alone, would not be read again where a run goes on.
WITHOUT_PHOTOS = {name: RunConfig.model_fields[name].default for name in ("photos", "photo_share")}


@dataclass(frozen=True)
class Bench:
    """Where a cell is measured.

    Attributes:
        place: folders.
        progress: shown while it takes.
        device: where images are made and students learned; students are measured on the processor.
    """

    place: Place
    progress: Progress
    device: str = "cpu"

    def network(self, config: RunConfig) -> Network:
        """The teacher of a run."""
        return networks.load(config.model, self.place)


class Kind(Frozen):
    """Base of all kinds: fields that a run does not have, and `measure`."""

    real: bool = False
    """Take training images instead of synthetic ones: what data would give."""
    image_seed: int | None = None
    """Seed of the images; None is that of the cell."""

    @abstractmethod
    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """What there is to know of a cell, as JSON values.

        Args:
            config: the run it is about; its `model` is a name of `benchmarks.networks`.
            bench: where it is measured.
        """

    def images(self, config: RunConfig, bench: Bench) -> SyntheticSet:
        """The images of a cell."""
        network = bench.network(config)
        seed = config.seed if self.image_seed is None else self.image_seed
        if self.real:
            return network.real_images(config.images, seed)
        asked = config.model_copy(update={"seed": seed})
        if config.photos is not None:
            asked = asked.model_copy(update={"photos": photos(config.photos, bench.place)})
        return images_of(asked, network, bench.place, bench.progress, bench.device)

    def run(
        self,
        config: RunConfig,
        bench: Bench,
        folder: Path | None = None,
        *,
        isolate: bool = False,
    ) -> Result:
        """Carry the run of a cell out, on test images with labels.

        Args:
            config: the run.
            bench: where it is measured.
            folder: to write ONNX and all else to. Without one nothing is exported; rounding and
                training that were interrupted go on where they stopped.
            isolate: measure layers one by one too.
        """
        network = bench.network(config)
        changes: dict[str, Any] = {
            "data": network.test, "holdout": 0, "device": bench.device, "isolate": isolate,
            **WITHOUT_PHOTOS,
        }  # fmt: skip
        if config.student is not None:
            changes["student"] = f"{bench.place.house / 'students.py'}:{config.student}"
        images = self.images(config, bench) if needs_images(config) else None
        config = config.model_copy(update={**changes, "export": folder is not None})
        learned = config.rounding is not None or config.tuning is not None
        kept = _unfinished(config, images, bench.place) if learned and folder is None else None
        result = run(
            config, teacher=network.teacher, images=images, folder=folder or kept, force=True,
            progress=bench.progress,
        )  # fmt: skip
        if kept is not None:
            shutil.rmtree(kept)
        return on_processor(result)


def on_processor(result: Result) -> Result:
    """`result` with its networks where test images are; itself if they are there."""
    if result.config.device == "cpu":
        return result
    return replace(
        result, teacher=to_device(result.teacher, _PROCESSOR),
        student=to_device(result.student, _PROCESSOR),
    )  # fmt: skip


def _unfinished(config: RunConfig, images: SyntheticSet | None, place: Place) -> Path:
    told = config.model_dump_json() + ("" if images is None else images.digest())
    return place.made / f"run_{hashlib.sha256(told.encode()).hexdigest()[:12]}.unfinished"


def with_recipe(config: RunConfig, recipe: str, network: Network) -> RunConfig:
    """The run that `recipe` of quantize makes of `config`, measured on the network's test data."""
    fields = laid_over(config.model_dump(), recipe) | {"data": network.test}
    return build(RunConfig, fields, f"recipe {recipe}")
