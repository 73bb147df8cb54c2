from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from datafree.errors import ModelError
from datafree.graph.attention import attending
from datafree.losses import differential_entropy, patch_similarity
from datafree.synthesis._attention import by_image, grid_of, prefix_tokens
from datafree.synthesis._pixels import Canvas
from datafree.synthesis.psaq import PSAQ
from datafree.testing.networks import SPEC, Attending, NoNorm, ready


@pytest.mark.parametrize(
    ("tokens", "shape", "expected"),
    [
        (197, (3, 224, 224), 1), (198, (3, 224, 224), 2), (196, (3, 224, 224), 0),
        (49, (3, 224, 224), 0), (50, (3, 224, 224), 1), (201, (3, 224, 224), 5),
        (65, (3, 32, 32), 1), (16, (1, 12, 20), 1), (16, (1, 6, 10), 1), (1, (3, 8, 8), 0),
    ],
)  # fmt: skip
def test_tokens_before_the_patches(tokens: int, shape: tuple[int, ...], expected: int) -> None:
    assert prefix_tokens(tokens, shape) == expected
    rows, columns = grid_of(tokens - expected, shape)
    assert rows * columns == tokens - expected


def test_windows_have_no_other_tokens() -> None:
    assert prefix_tokens(50, (3, 224, 224), windows=True) == 0
    assert prefix_tokens(37, (3, 192, 256), windows=True) == 0
    assert grid_of(25, (3, 192, 256)) == (5, 5)


def test_heads_folded_into_the_batch() -> None:
    values = torch.arange(2 * 3 * 5 * 4).view(2, 3, 5, 4)
    assert torch.equal(by_image(values, 2), values)
    assert torch.equal(by_image(values.flatten(0, 1), 2), values)
    assert by_image(torch.zeros(2, 7, 3, 5, 4), 2).shape == (14, 3, 5, 4)


def test_entropy_rises_and_classes_are_shown() -> None:
    torch.manual_seed(0)
    graph = ready(Attending())
    made = PSAQ(iterations=40, tv_weight=0.0, label_weight=0.0).generate(graph, SPEC, 8)
    labelled = PSAQ(iterations=80, shift=0.0, tv_weight=0.0, entropy_weight=0.0).generate(
        graph, SPEC, 8
    )
    start = Canvas.of(SPEC, torch.device("cpu"))
    noise = torch.randn(8, *SPEC.shape, generator=torch.Generator().manual_seed(3))
    noise = start.normalised(start.clamp_(noise))
    watched = attending(graph, "outputs")

    def found(images: torch.Tensor) -> tuple[float, float]:
        with torch.no_grad():
            logits, (values,) = watched(images)
            similar = patch_similarity(values.mean(1)[:, 1:]).flatten(1)
            assert labelled.targets is not None
            classes = F.cross_entropy(logits, labelled.targets)
            return float(differential_entropy(similar).mean()), float(classes)

    before = found(noise)
    assert found(made.images)[0] > before[0] + 0.1
    assert found(labelled.images)[1] < before[1] - 0.05


def test_pixels_stay_between_black_and_white() -> None:
    made = PSAQ(iterations=3, learning_rate=5.0).generate(ready(Attending()), SPEC, 4)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (SPEC.mean, SPEC.std))
    pixels = made.images * std + mean
    assert pixels.min() >= -1e-5
    assert pixels.max() <= 1 + 1e-5
    assert (pixels < 1e-4).any()
    assert (pixels > 1 - 1e-4).any()


def test_networks_of_any_range_of_pixels_get_the_same_pictures() -> None:
    """A network that reads 0..255 behind its own normalisation."""
    torch.manual_seed(0)
    model = Attending().eval()
    graph = ready(model)
    wide = SPEC.model_copy(update={"mean": (0.0,) * 3, "std": (1 / 255,) * 3})

    class Normalising(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (SPEC.mean, SPEC.std))
            return self.model((x / 255 - mean) / std)

    method = PSAQ(iterations=2)
    one = method.generate(graph, SPEC, 2).images
    two = method.generate(ready(Normalising()), wide, 2).images
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (SPEC.mean, SPEC.std))
    torch.testing.assert_close(one * std + mean, two / 255, rtol=0, atol=0.02)


def test_a_network_without_attention_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"psaq looks at attention.*use the method prior.* or noise"
    ):
        PSAQ(iterations=1).generate(ready(NoNorm()), SPEC, 2)
