"""The matrix is free: any images with any calibrator and any reconstruction."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from datafree.config import Frozen, ModelConfig, RunConfig
from datafree.graph.capture import capture
from datafree.images import SyntheticSet
from datafree.models import load_teacher
from datafree.registry import available, load
from datafree.runs.pipeline import run
from datafree.runs.synthesizing import synthesize_images
from datafree.synthesis.base import Synthesizer
from networks import saved_generator, saved_pool

MODEL = "digits_resnet8"
QUICK = {
    "iterations": 2,
    "activation_iterations": 2,
    "margin_images": 4,
    "matching_iterations": 1,
    "student_iterations": 1,
}


# Those that look at attention have none to look at here.
SYNTHESES = [
    name
    for name in available("datafree.synthesis")
    if not load("datafree.synthesis", name, Synthesizer).needs_attention
]


def quick(package: str, name: str, **more: Any) -> dict[str, Any]:
    known = load(f"datafree.{package}", name, Frozen).model_fields
    return {k: v for k, v in {**QUICK, **more}.items() if k in known}


@cache
def images(name: str) -> SyntheticSet:
    teacher = load_teacher(ModelConfig(source=MODEL))
    options = quick(
        "synthesis", name, path=saved_generator(teacher.spec), pool=saved_pool(teacher.spec)
    )
    config = RunConfig(model=MODEL, method=name, method_options=options, images=4)
    return synthesize_images(capture(teacher.model, teacher.spec), teacher.spec, config)


@pytest.mark.integration
@pytest.mark.parametrize("reconstruction", [None, *available("datafree.reconstruction")])
@pytest.mark.parametrize("calibrator", available("datafree.calibrators"))
@pytest.mark.parametrize("synthesis", SYNTHESES)
def test_every_combination_runs(
    synthesis: str, calibrator: str, reconstruction: str | None
) -> None:
    chosen: dict[str, Any] = {}
    if reconstruction is not None:
        options = quick("reconstruction", reconstruction)
        chosen = {"reconstruction": reconstruction, "reconstruction_options": options}
    config = RunConfig(
        model=MODEL,
        bits="W4A4",
        policy="brecq",
        method=synthesis,
        method_options=quick("synthesis", synthesis),
        images=4,
        calibrator=calibrator,
        holdout=0,
        export=False,
        **chosen,
    )
    result = run(config, images=images(synthesis))
    assert torch.isfinite(result.student(images(synthesis).images)).all()
    assert ("reconstruction" in result.metrics) == (reconstruction is not None)
