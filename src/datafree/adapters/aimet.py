"""For AIMET's `QuantizationSimModel.compute_encodings`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from datafree.images import SyntheticSet
from datafree.tensors import device_of


def for_aimet(images: SyntheticSet, *, batch_size: int = 32) -> Callable[..., None]:
    """A callback that passes all images through the model it is given.

    It takes and ignores the second argument, `forward_pass_callback_args`, of older versions. A
    data loader, where AIMET wants one, is ``torch.utils.data.DataLoader(images, batch_size)``.

    Args:
        images: for the network that is quantized.
        batch_size: images at a time.
    """

    def forward(model: nn.Module, _arguments: Any = None) -> None:
        device = device_of(model)
        with torch.no_grad():
            for batch in images.batches(batch_size):
                model(batch.to(device))

    return forward
