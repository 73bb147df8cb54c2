"""Sets of images that cells share: made once, kept as files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.networks import Network, decoded
from benchmarks.place import Place
from datafree.config import RunConfig
from datafree.files import atomic_path
from datafree.graph.capture import to_device
from datafree.images import SyntheticSet
from datafree.progress import Progress
from datafree.registry import load
from datafree.runs.choices import settled
from datafree.runs.plan import make_method
from datafree.runs.synthesizing import synthesize_images
from datafree.synthesis.base import Stored, Synthesizer
from datafree.training.base import Trainer

_DECODED = 5_000


def needs_images(config: RunConfig) -> bool:
    """Whether a run takes a set of images; most trainings dream their own."""
    if config.tuning is not None:
        cls: type[Trainer] = load("datafree.training", config.tuning.name, Trainer)
        return cls.from_images
    without = config.calibrator == "bn_statistics" and config.rounding is None and not config.mixed
    return not (without and config.bias_rule != "empirical")


def images_of(
    config: RunConfig, network: Network, place: Place, progress: Progress, device: str = "cpu"
) -> SyntheticSet:
    """The images that `config` asks for, from their file if they were made before.

    Args:
        config: of the run they are for; its seed is that of the images.
        network: they are made for.
        place: where they are kept.
        progress: shown while they are made.
        device: where they are made.
    """
    path = place.made / f"{stem_of(config, network)}.safetensors"
    if path.exists():
        return SyntheticSet.load(path)
    unfinished = path.with_suffix(".unfinished")
    made = synthesize_images(
        to_device(network.graph, torch.device(device)), network.teacher.spec, config, progress,
        unfinished, config.scheme,
    )  # fmt: skip
    made.save(path)
    Stored.clear(unfinished)
    return made


def stem_of(config: RunConfig, network: Network) -> str:
    """What the file of the images that `config` asks for is called: all that they follow from."""
    config = settled(config, network.graph).config
    method: Synthesizer = make_method(config.synthesis, "synthesis", Synthesizer)
    told = method.for_scheme(config.scheme).describe() | {
        "teacher": network.teacher.digest, "count": config.images, "seed": config.seed,
    }  # fmt: skip
    if config.photos is not None:
        told |= {"photos": config.photos.name, "photo_share": config.photo_share}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
    model = config.model.replace("/", "_")
    return f"{model}_{config.method}_{config.images}_seed{config.seed}_{digest}"


def photos(name: Path, place: Place) -> Path:
    """Pictures of the shared data that a network's task has nothing to do with.

    Args:
        name: of a folder or an archive in the shared data; JPEG files in an archive are decoded,
            once, the first `_DECODED` of them.
        place: of the data.
    """
    path = place.data(str(name))
    if path.suffix != ".npz":
        return path
    with np.load(path) as archive:
        if "jpeg" not in archive:
            return path
    plain = place.made / f"photos_{path.name}"
    if not plain.exists():
        pixels, labels = decoded(path, np.arange(_DECODED))
        rows = pixels.permute(0, 2, 3, 1).numpy()
        with atomic_path(plain) as temporary, temporary.open("wb") as file:
            np.savez(file, images=rows, labels=labels.numpy())
    return plain
