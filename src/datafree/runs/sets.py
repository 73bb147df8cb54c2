"""Sets of images for other tools: synthesised, excited, written in the form that is asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import fx

from datafree.adapters import save_numpy, save_pictures
from datafree.adapters.excite import Excite
from datafree.config import InputSpec, RunConfig, build
from datafree.config.options import ExciteOptions
from datafree.errors import ConfigError
from datafree.files import make_folder, refuse_existing
from datafree.graph.capture import capture, to_device
from datafree.images import SyntheticSet
from datafree.models import Teacher, load_teacher
from datafree.progress import Progress, silent
from datafree.runs.choices import settled
from datafree.runs.notes import noted
from datafree.runs.plan import make_method, resolve_device
from datafree.runs.synthesizing import synthesize_images
from datafree.synthesis.base import Stored, Synthesizer

WRITERS: dict[str, Callable[[SyntheticSet, Path], None]] = {
    ".safetensors": SyntheticSet.save,
    ".npz": save_numpy,
    ".npy": save_numpy,
    "": save_pictures,
}
"""By the suffix of the output; a name without suffix is a folder of pictures."""


def synthesize_set(
    graph: fx.GraphModule,
    spec: InputSpec,
    config: RunConfig,
    options: ExciteOptions,
    progress: Progress = silent,
    checkpoint: Path | None = None,
) -> SyntheticSet:
    """The images `config` asks for, made or from a file, excited as `options` say.

    Other arguments as in `Synthesizer.generate`; in a `checkpoint`, which has to be there, images
    that wait for being excited are kept too. It is the caller's to remove.
    """
    config = settled(config, graph, given=config.image_file is not None).config
    step = excite_step(options)
    plain = _plain(graph, spec, config, progress, checkpoint, keep=step is not None)
    if step is None:
        return plain
    part = None if checkpoint is None else checkpoint / "excited"
    return step.apply(graph, plain, seed=config.seed, progress=progress, checkpoint=part)


def opened(teacher: Teacher, config: RunConfig) -> fx.GraphModule:
    """The canonical graph of the network that images are made for, on the device of `config`.

    Raises:
        DatafreeError: the network cannot be captured, or the method cannot work on it.
    """
    graph = to_device(capture(teacher.model, teacher.spec), resolve_device(config.device))
    choices = settled(config, graph, given=config.image_file is not None)
    if config.image_file is None:
        found = choices.config.synthesis
        synthesizer: Synthesizer = make_method(found, "synthesis", Synthesizer)
        synthesizer.check(graph)
    noted(teacher, graph, choices.images)
    return graph


def _plain(
    graph: fx.GraphModule,
    spec: InputSpec,
    config: RunConfig,
    progress: Progress,
    checkpoint: Path | None,
    *,
    keep: bool,
) -> SyntheticSet:
    """The images before they are excited, kept in `checkpoint` if they are to `keep`."""
    if config.image_file is not None:
        return SyntheticSet.load(config.image_file).fitted(spec, config.images)
    if not keep or checkpoint is None:
        return synthesize_images(graph, spec, config, progress, checkpoint)
    synthesizer: Synthesizer = make_method(config.synthesis, "synthesis", Synthesizer)
    synthesizer.check(graph)
    request = synthesizer.request(graph, spec, config.images, config.seed, stored=True)
    stored = Stored(checkpoint / "plain", 0, request)
    found = stored.load()
    told = {**synthesizer.describe(), "seed": config.seed, "count": config.images}
    if found is not None:
        return replace(found, metadata=told)
    images = synthesize_images(graph, spec, config, progress, checkpoint)
    stored.save(replace(images, metadata=request))
    return images


def excite_step(options: ExciteOptions) -> Excite | None:
    """The step that `options` ask for.

    Raises:
        ConfigError: an option it does not have, or one for a step that is left out.
    """
    if options.excite:
        return build(Excite, options.excite_options, "option of excite")
    if options.excite_options:
        raise ConfigError("excite_options were given, and excite is off: drop one of them")
    return None


def synthesize_to_file(
    config: RunConfig,
    path: Path,
    options: ExciteOptions | None = None,
    *,
    force: bool = False,
    progress: Progress = silent,
) -> SyntheticSet:
    """Synthesise the images `config` describes and write them to `path`, with a picture beside.

    Args:
        config: which images.
        path: `.safetensors`, `.npz` or `.npy`; without suffix, a folder of pictures.
        options: whether and how they are excited; None is the default.
        force: replace what is there.
        progress: shown while it takes.

    Raises:
        OutputExistsError: `path`, or its picture, exists and `force` was not given.
        ConfigError: `path` is named like nothing that can be written.
    """
    picture = path.with_suffix(".png")
    if path.suffix not in WRITERS:
        raise ConfigError(
            f"no images are written to {path}, and beside them stands a picture in .png: choose an"
            " output in .safetensors, .npz or .npy, or a folder, which has no suffix"
        )
    options = options or ExciteOptions()
    excite_step(options)
    for place in (path, picture):
        refuse_existing(place, force=force, folder=place == path and not path.suffix)
    teacher = load_teacher(config.teacher)
    graph = opened(teacher, config)
    make_folder(path.parent, parents=True)
    checkpoint = path.with_name(f".{path.stem}-unfinished")
    make_folder(checkpoint)
    images = synthesize_set(graph, teacher.spec, config, options, progress, checkpoint)
    WRITERS[path.suffix](images, path)
    images.save_grid(picture)
    shutil.rmtree(checkpoint, ignore_errors=True)
    return images
