"""The matrix is free: any images with any calibrator and any reconstruction."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from datafree.config import Frozen, Method, ModelConfig, RunConfig, Scheme
from datafree.graph.capture import capture
from datafree.images import SyntheticSet
from datafree.models import load_teacher
from datafree.registry import available, load
from datafree.runs.pipeline import run, synthesize_images
from networks import saved_generator

MODEL = ModelConfig(source="digits_resnet8")
QUICK = {
    "iterations": 2,
    "activation_iterations": 2,
    "margin_images": 4,
    "matching_iterations": 1,
    "student_iterations": 1,
}


def quick(package: str, name: str, **more: Any) -> Method:
    known = load(f"datafree.{package}", name, Frozen).model_fields
    return Method(name=name, options={k: v for k, v in {**QUICK, **more}.items() if k in known})


@cache
def images(name: str) -> SyntheticSet:
    teacher = load_teacher(MODEL)
    method = quick("synthesis", name, path=saved_generator(teacher.spec))
    config = RunConfig(model=MODEL, synthesis=method, images=4)
    return synthesize_images(capture(teacher.model, teacher.spec), teacher.spec, config)


@pytest.mark.integration
@pytest.mark.parametrize("reconstruction", [None, *available("datafree.reconstruction")])
@pytest.mark.parametrize("calibrator", available("datafree.calibrators"))
@pytest.mark.parametrize("synthesis", available("datafree.synthesis"))
def test_every_combination_runs(
    synthesis: str, calibrator: str, reconstruction: str | None
) -> None:
    chosen: dict[str, Any] = {"reconstruction": None}
    if reconstruction is not None:
        chosen["reconstruction"] = quick("reconstruction", reconstruction)
    config = RunConfig(
        model=MODEL,
        scheme=Scheme(weights=4, activations=4, policy="brecq"),
        synthesis=quick("synthesis", synthesis),
        images=4,
        calibration=Method(name=calibrator),
        holdout=0,
        export=False,
        **chosen,
    )
    result = run(config, images=images(synthesis))
    assert torch.isfinite(result.student(images(synthesis).images)).all()
    assert ("reconstruction" in result.metrics) == (reconstruction is not None)
