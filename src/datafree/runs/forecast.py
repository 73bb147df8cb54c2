"""How long a run will take, from one measured pass through the network."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from datafree.config import InputSpec, RunConfig
from datafree.generators import Generator
from datafree.reconstruction.base import Reconstructor
from datafree.synthesis.base import Synthesizer
from datafree.tensors import device_of
from datafree.training.base import Trainer
from datafree.verdict.held_out import held_out_passes

_VALUES = 16 * 3 * 224 * 224  # input values of the measured pass: 16 ImageNet images
_REPEATS = 3
_WORTH_SPLITTING = 5.0  # seconds


def expected_seconds(  # noqa: PLR0913 - what a run consists of
    graph: fx.GraphModule,
    spec: InputSpec,
    synthesizer: Synthesizer | None,
    reconstructor: Reconstructor | None,
    count: int,
    held_out: int = 0,
    trainer: Trainer | None = None,
) -> dict[str, float]:
    """Seconds the long stages of a run will take on this machine as it is now.

    Methods say how many images they send through the network and back (`passes`); here it is
    measured what one such image costs. Within a factor of two on an idle machine; what stages
    left out here take is small.

    Args:
        graph: the captured network, on the device it will run on.
        spec: its input.
        synthesizer: makes the images, or None if there are some.
        reconstructor: learns the rounding, or None.
        count: images.
        held_out: images to compare teacher and student on.
        trainer: fine-tunes the student, or None.

    Returns:
        Seconds by stage.
    """
    found: dict[str, float] = {}
    if synthesizer is None and reconstructor is None and trainer is None and not held_out:
        return found
    each = seconds_per_image(graph, spec)
    if synthesizer is not None:
        found["synthesis"] = each * synthesizer.passes(count)
    if reconstructor is not None:
        found["reconstruction"] = each * reconstructor.passes(count)
    if trainer is not None:
        per_dream = _per_dream(trainer, spec, device_of(graph))
        found["training"] = trainer.passes() * each + trainer.dreams() * per_dream
    if held_out:
        found["evaluation"] = each * held_out_passes(graph, held_out)
    return found


def seconds_per_image(graph: fx.GraphModule, spec: InputSpec) -> float:
    """What one image takes forward and back, the gradient going to the image: the best of three.

    Args:
        graph: the network, in evaluation mode.
        spec: its input.
    """
    size = _measured_images(spec)
    random = torch.Generator().manual_seed(0)
    images = torch.randn(size, *spec.shape, generator=random).to(device_of(graph))
    images.requires_grad_()
    return _best_time(lambda: graph(images), [images]) / size


def _per_dream(trainer: Trainer, spec: InputSpec, device: torch.device) -> float:
    """What the generator takes for one image, forward and back to its weights."""
    size, random = _measured_images(spec), torch.Generator().manual_seed(0)
    generator = Generator(trainer.generator_config(spec), random).to(device)
    latents, labels = generator.draw(size, random)
    weights = list(generator.parameters())
    return _best_time(lambda: generator(latents, labels), weights) / size


def _measured_images(spec: InputSpec) -> int:
    channels, height, width = spec.shape
    return min(64, max(2, _VALUES // (channels * height * width)))


def _best_time(compute: Callable[[], Tensor], inputs: list[Any]) -> float:
    times: list[float] = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        gradient = torch.autograd.grad(compute().square().sum(), inputs)[0]
        float(gradient.sum())  # waits for the device
        times.append(time.perf_counter() - started)
    return min(times)


def foretold(
    config: RunConfig,
    graph: fx.GraphModule,
    spec: InputSpec,
    synthesizer: Synthesizer | None,
    reconstructor: Reconstructor | None,
    trainer: Trainer | None,
) -> str:
    """The time a run is expected to take, as a sentence; arguments as for `expected_seconds`."""
    held_out = config.holdout if config.data is None else 0
    count = config.images if trainer is None else trainer.calibration_images
    found = expected_seconds(
        graph, spec, synthesizer, reconstructor, count, held_out, _phases(config, trainer)
    )
    if config.max_seconds is not None:
        found["training"] = min(config.max_seconds, found["training"])
    total = sum(found.values())
    if total < _WORTH_SPLITTING:
        return "expected to take a few seconds here"
    parts = ", ".join(f"{stage} {in_words(seconds)}" for stage, seconds in found.items())
    return f"expected to take about {in_words(total)} here ({parts})"


def _phases(config: RunConfig, trainer: Trainer | None) -> Trainer | None:
    """`trainer` with no steps in the phases that this run leaves out."""
    if trainer is None:
        return None
    left_out: dict[str, int] = {}
    if config.generator is not None and config.student is None:
        left_out["warmup"] = 0
    if config.float_student:
        left_out["iterations"] = 0
    return trainer.model_copy(update=left_out)


def in_words(seconds: float) -> str:
    """Seconds as people say them, rounded: ``40 s``, ``3 min``, ``2.5 h``."""
    if seconds < 1:
        return "under a second"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
