"""What a runtime refuses, or computes otherwise than written: one target, one file.

A file `NAME.py` here defines ``NAME_problems(model)`` for the target NAME: sentences, each with the
tensor or layer and the rule it breaks. It asks the file alone, not the student that it came from.
"""

from __future__ import annotations

import importlib
import pkgutil

import onnx


def problems(model: onnx.ModelProto, target: str) -> list[str]:
    """What `target` would not run as written; empty also where no rules of it are known.

    Args:
        model: with QuantizeLinear and DequantizeLinear.
        target: name of a file in this package, or of none.
    """
    if target not in {module.name for module in pkgutil.iter_modules(__path__)}:
        return []
    asked = getattr(importlib.import_module(f"{__name__}.{target}"), f"{target}_problems")
    return list(asked(model))
