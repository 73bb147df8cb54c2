"""Make a trained vision network small and fast without any of its training data.

    import datafree

    result = datafree.quantize(model, input_shape=(3, 32, 32), bits="W4A4", output="run")
    result.student                        # quantized network, an ordinary torch module
    images = datafree.synthesize("digits_resnet8", method="dsg", images=64)

Names are imported when first used, so ``import datafree`` itself is light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datafree.api import benchmark, distill, export_student, quantize, synthesize
    from datafree.config import InputSpec, RunConfig, Scheme
    from datafree.errors import DatafreeError
    from datafree.graph.capture import capture
    from datafree.images import SyntheticSet
    from datafree.runs.loaded import Run, load_run
    from datafree.runs.pipeline import Result, run
    from datafree.sweeps.door import sweep

__version__ = "0.1.0"

_HOMES = {
    "DatafreeError": "errors",
    "InputSpec": "config",
    "Result": "runs.pipeline",
    "Run": "runs.loaded",
    "RunConfig": "config",
    "Scheme": "config",
    "SyntheticSet": "images",
    "benchmark": "api",
    "capture": "graph.capture",
    "distill": "api",
    "export_student": "api",
    "load_run": "runs.loaded",
    "quantize": "api",
    "run": "runs.pipeline",
    "sweep": "sweeps.door",
    "synthesize": "api",
}

__all__ = [
    "DatafreeError",
    "InputSpec",
    "Result",
    "Run",
    "RunConfig",
    "Scheme",
    "SyntheticSet",
    "benchmark",
    "capture",
    "distill",
    "export_student",
    "load_run",
    "quantize",
    "run",
    "sweep",
    "synthesize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'datafree' has no attribute {name!r}")
    return getattr(importlib.import_module(f"datafree.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
