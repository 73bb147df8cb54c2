"""A converted network says what onnxruntime says of the file, or it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from datafree.models.onnx import TOLERANCE, load_onnx
from datafree.models.onnx._file import read_file
from datafree.models.onnx._parity import check_same
from onnx_files import drawn, head, model, node, save, small
from teachers import complaint


class Off(nn.Module):
    """A network with one logit that is off by a share of the largest."""

    def __init__(self, inner: nn.Module, share: float) -> None:
        super().__init__()
        self.inner, self.share = inner, share

    def forward(self, images: Tensor) -> Tensor:
        logits = self.inner(images)
        logits[1, 2] += self.share * logits.abs().max()
        return logits


@pytest.mark.parametrize("batch", ["batch", 1, 2, 5])
def test_planted_error_is_found(batch: int | str, tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx", small(batch=batch))
    network = load_onnx(path).model
    assert isinstance(network, nn.Module)
    file = read_file(path)
    check_same(Off(network, 0.5 * TOLERANCE), file, [(3, 8, 8)])
    message = complaint(lambda: check_same(Off(network, 2 * TOLERANCE), file, [(3, 8, 8)]))
    assert message.startswith(f"{path} is not understood: converted, its outputs differ")


def test_what_the_converter_gets_wrong_is_refused(tmp_path: Path) -> None:
    """It takes a slope near 1/6 for 1/6."""
    tail, weights = head("found", 3)
    made = model([node("HardSigmoid", "images", "found", alpha=0.174, beta=0.5), *tail], weights)
    message = complaint(lambda: load_onnx(save(tmp_path / "net.onnx", made)))
    assert "is not understood: converted, its outputs differ from those of onnxruntime" in message


def test_other_outputs_are_kept(tmp_path: Path) -> None:
    made = small()
    made.graph.output.add().CopyFrom(made.graph.output[0])
    made.graph.output[1].name = "flat"
    network = load_onnx(save(tmp_path / "net.onnx", made)).model
    assert isinstance(network, nn.Module)
    logits, flat = network(torch.from_numpy(drawn(2, 3, 8, 8)))
    assert (logits.shape, flat.shape) == ((2, 5), (2, 6))
