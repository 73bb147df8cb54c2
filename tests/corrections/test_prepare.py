"""What happens to a network between its capture and its quantizers."""

from __future__ import annotations

import torch
from torch import nn

from datafree.calibrators.base import calibrate
from datafree.calibrators.minmax import MinMax
from datafree.config import RunConfig, Scheme
from datafree.corrections.prepare import prepare
from datafree.graph.capture import capture
from datafree.graph.fold import fold_and_tell, fold_batch_norms
from datafree.graph.insert import insert_quantizers
from networks import SPEC, captured, images


def norm_behind_relu(dead: float) -> nn.Module:
    """Convolution, ReLU, batch norm, convolution; one channel in between hardly varies."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
    with torch.no_grad():
        first.weight[0] *= dead
        first.bias.zero_()  # pyright: ignore[reportOptionalMemberAccess]
    front = nn.Sequential(first, nn.ReLU())
    norm = nn.BatchNorm2d(8, eps=1e-12).train()
    norm.momentum = None
    with torch.no_grad():
        norm(front(images(64, 1)))
    head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return nn.Sequential(front, norm, second, head).eval()


def test_a_column_that_a_norm_made_large_does_not_fill_the_grid() -> None:
    graph = capture(norm_behind_relu(1e-3), SPEC)
    config, x = RunConfig(model="digits_resnet8"), images(64, 2)
    assert len(fold_and_tell(graph).forward) == 1
    folded, _ = prepare(graph, config)
    torch.testing.assert_close(folded(x), graph(x), rtol=1e-4, atol=1e-4)
    wrong: list[float] = []
    for base in (folded, fold_batch_norms(graph)):
        student = insert_quantizers(base, Scheme(bits="W4A8"), SPEC)
        calibrate(student, [x], MinMax())
        with torch.no_grad():
            wrong.append(float((student(x) - graph(x)).square().mean()))
    assert wrong[0] < 0.2 * wrong[1]


def test_other_layers_keep_their_weights() -> None:
    graph = captured("Tiny")
    assert not fold_and_tell(graph).forward
    folded, _ = prepare(graph, RunConfig(model="digits_resnet8"))
    plain = fold_batch_norms(graph)
    for name, value in plain.state_dict().items():
        assert torch.equal(folded.state_dict()[name], value)
