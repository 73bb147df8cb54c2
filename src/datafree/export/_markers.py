"""Traced stand-ins for quantizers: torch's own exporter knows full 8-bit ranges only."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from datafree.quant.modules import QUANTIZED, ActivationQuantizer
from datafree.tensors import shared_copy

DOMAIN = "datafree"
_WEIGHT, _ACTIVATION = "Weight", "Activation"


class _Marker(nn.Module):
    """Traces as one ONNX node ``datafree::kind`` that names a module of the student."""

    def __init__(self, kind: str, path: str) -> None:
        super().__init__()
        self.kind, self.path = kind, path

    def forward(self, values: Tensor) -> Tensor:
        """A stand-in of the type and shape of `values`; only its trace matters."""
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{self.kind}",
            (values,),
            {"path": self.path},
            dtype=values.dtype,
            shape=values.shape,
            version=1,
        )


def with_markers(student: fx.GraphModule) -> fx.GraphModule:
    """A copy of `student` that traces to marker nodes instead of quantizers."""
    marked = shared_copy(student)
    for name, module in list(marked.named_modules()):
        if isinstance(module, QUANTIZED):
            marker = _Marker(_WEIGHT, name) if module.weight_quantizer.enabled else nn.Identity()
            module.weight_quantizer = marker  # pyright: ignore - it is only traced
    for name, module in list(marked.named_modules(remove_duplicate=False)):
        if isinstance(module, ActivationQuantizer):
            marker = _Marker(_ACTIVATION, name) if module.enabled else nn.Identity()
            marked.set_submodule(name, marker)
    return marked
