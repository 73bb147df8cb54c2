from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from datafree.graph.attention import attending
from datafree.losses import attention_distance
from datafree.synthesis.sardfq import SARDFQ, gaussian_mixtures
from datafree.testing.networks import SPEC, Attending, ready


def test_maps_add_up_to_one_and_have_as_many_hills_as_wanted() -> None:
    random = torch.Generator().manual_seed(0)
    maps = gaussian_mixtures(50, 8, 12, 3, random)
    assert maps.shape == (50, 96)
    torch.testing.assert_close(maps.sum(1), torch.ones(50))
    assert maps.min() >= 0
    single = gaussian_mixtures(50, 32, 32, 1, random).view(50, 32, 32)
    padded = F.pad(single, (1, 1, 1, 1))
    around = torch.stack(
        [padded[:, i : i + 32, j : j + 32] for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    )
    hills = (single > around.amax(0)).sum((1, 2))
    assert (hills <= 1).all(), "one Gaussian has one summit"


def test_soft_targets_lead_where_wanted() -> None:
    method = SARDFQ()
    random = torch.Generator().manual_seed(0)
    for _ in range(20):
        scene = method._scene(SPEC, random)
        assert 1 <= len(scene.boxes) == len(scene.targets) <= 4
        area = torch.zeros(SPEC.shape[1:])
        for top, bottom, left, right in scene.boxes:
            area[top:bottom, left:right] += 1
        assert area.max() == 1, "rectangles do not overlap"
        leads = {int(target.argmax()) for target in scene.targets}
        for target in (scene.target, *scene.targets):
            assert target.sum().item() == pytest.approx(1)
        assert set(scene.target.topk(len(leads)).indices.tolist()) == leads
        assert scene.enlarged(torch.zeros(1, *SPEC.shape)).shape == (len(scene.boxes), *SPEC.shape)


def test_attention_is_drawn_to_the_maps() -> None:
    torch.manual_seed(0)
    graph = ready(Attending())
    options: dict[str, Any] = {"label_weight": 0.0, "tv_weight": 0.0, "batch_size": 4}
    watched = attending(graph, "weights")
    distances: list[float] = []
    for weight in (0.0, 1.0):
        made = SARDFQ(iterations=80, attention_weight=weight, **options).generate(graph, SPEC, 4)
        # The maps are the last random numbers that a batch draws before its first step.
        drawn = torch.Generator().manual_seed(0)
        random = torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=drawn)))
        torch.randn(4, *SPEC.shape, generator=random)
        for _ in range(4):
            SARDFQ()._scene(SPEC, random)
        maps = gaussian_mixtures(8, 4, 4, 5, random).view(4, 2, 16)
        with torch.no_grad():
            looked = watched(made.images)[1][0][:, :, 0, 1:]
        looked = looked / looked.sum(-1, keepdim=True)
        distances.append(float(attention_distance(looked, maps)))
    assert distances[1] < 0.95 * distances[0]
