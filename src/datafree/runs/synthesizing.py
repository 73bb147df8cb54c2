"""The images of a run: given, found in its folder, or made, and kept as soon as they are whole."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import fx

from datafree.config import InputSpec, RunConfig, Scheme
from datafree.data.photos import photos_in
from datafree.graph.normalisation import behind_normalisation
from datafree.images import SyntheticSet
from datafree.progress import Progress, silent
from datafree.progress.deadline import NEVER, Deadline
from datafree.runs.choices import settled
from datafree.runs.folder import IMAGES, UNFINISHED, save_images
from datafree.runs.plan import make_method
from datafree.synthesis.base import Stored, Synthesizer


def synthesize_images(  # noqa: PLR0913 - what a run hands over
    graph: fx.GraphModule,
    spec: InputSpec,
    config: RunConfig,
    progress: Progress = silent,
    checkpoint: Path | None = None,
    scheme: Scheme | None = None,
    deadline: Deadline = NEVER,
) -> SyntheticSet:
    """The calibration images `config` asks for, photos among them where it names some.

    Arguments as in `Synthesizer.generate`; `scheme` is that of the student they are for, if known.

    Raises:
        DataError: photos that cannot be read, or fewer than are asked for.
    """
    config = settled(config, graph).config
    photos = _photos(config, spec)  # first, so that what is wrong with them is said first
    if len(photos) == config.images:
        return photos
    synthesizer: Synthesizer = make_method(config.synthesis, "synthesis", Synthesizer)
    if scheme is not None:
        synthesizer = synthesizer.for_scheme(scheme)
    inner, normalised = behind_normalisation(graph, spec)
    made = synthesizer.generate(
        inner, normalised, config.images - len(photos), seed=config.seed, progress=progress,
        checkpoint=checkpoint, deadline=deadline,
    ).fitted(spec)  # fmt: skip
    return _shuffled(made, photos, config.seed) if len(photos) else made


def _photos(config: RunConfig, spec: InputSpec) -> SyntheticSet:
    """The photos of a run, unlabelled; none where it names none."""
    if config.photos is None:
        return SyntheticSet.none(spec)
    return photos_in(config.photos, spec, config.photo_count, config.seed)


def _shuffled(made: SyntheticSet, photos: SyntheticSet, seed: int) -> SyntheticSet:
    """Both in one set, in random order: some stages look at a few images at a time."""
    images = torch.cat([made.images, photos.images])
    generator = torch.Generator().manual_seed(seed)
    told = {key: photos.metadata[key] for key in ("source", "seed")} | {"count": len(photos)}
    metadata = {**made.metadata, "photos": told}
    order = torch.randperm(len(images), generator=generator)
    return SyntheticSet(images[order], made.spec, metadata=metadata)


def images_of_run(  # noqa: PLR0913 - what a run hands over
    graph: fx.GraphModule,
    spec: InputSpec,
    config: RunConfig,
    given: SyntheticSet | None,
    folder: Path | None,
    progress: Progress,
    deadline: Deadline,
) -> SyntheticSet:
    """The images of a run: given, or those an interrupted run left in `folder`, or new ones.

    Args:
        graph: canonical graph of the teacher.
        spec: its input.
        config: of the run.
        given: images that are there.
        folder: of the run, where they are kept, and batch by batch until then; None keeps nothing.
        progress: shown while they are made.
        deadline: when they should be done.

    Raises:
        DatafreeError: the method cannot work on the network, or its images diverge.
    """
    if given is not None:
        if folder is not None and len(given):
            save_images(given, folder)
        return given
    if folder is None:
        return synthesize_images(
            graph, spec, config, progress, scheme=config.scheme, deadline=deadline
        )
    if (folder / IMAGES).exists():
        return SyntheticSet.load(folder / IMAGES)
    checkpoint = folder / UNFINISHED
    images = synthesize_images(graph, spec, config, progress, checkpoint, config.scheme, deadline)
    save_images(images, folder)
    Stored.clear(checkpoint)
    return images
