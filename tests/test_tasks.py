"""Networks that tell no class of an image: every stage does what means something for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import datafree
from datafree.errors import ModelError
from networks import images, randomized

TINY = {"warmup": 2, "iterations": 3, "batch_size": 8, "width": 8, "checks": 1, "holdout": 16}
SHAPE = (3, 16, 16)


class Maps(nn.Module):
    """A class at every position, beside a second map."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.two, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.out, self.aux = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = torch.relu(self.norm1(self.one(x)))
        return first, torch.relu(self.norm2(self.two(first)))

    def forward(self, x: Tensor) -> Any:
        first, second = self.features(x)
        out = F.interpolate(self.out(second), x.shape[2:], mode="bilinear")
        return {"out": out, "aux": self.aux(first)}


class Boxes(Maps):
    """Two heads of a detector."""

    def forward(self, x: Tensor) -> Any:
        first, second = self.features(x)
        return [self.aux(first), self.out(F.max_pool2d(second, 2))]


class Neck(Maps):
    """Features of an image behind a batch norm of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.neck = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Any:
        return self.neck(self.features(x)[1].mean((2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"maps": Maps, "boxes": Boxes, "features": Neck}


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return randomized(NETWORKS[kind](), 2 * torch.rand(32, *SHAPE) - 1).eval()


def quantized(kind: str, **options: Any) -> Any:
    chosen: dict[str, Any] = {"method": "noise", **options}
    return datafree.quantize(network(kind), input_shape=SHAPE, images=16, holdout=32, **chosen)


@pytest.mark.integration
@pytest.mark.parametrize("kind", NETWORKS)
def test_what_is_measured_falls_with_the_bits(kind: str) -> None:
    found = [quantized(kind, bits=bits).metrics["held_out"] for bits in ("W8A8", "W4A4", "W2A4")]
    if kind == "maps":
        first, second, third = (one["agreement"] for one in found)
        assert first > second > third
        assert found[0]["kl"] < found[1]["kl"] < found[2]["kl"] and "error" not in found[0]
    else:
        first, second, third = (one["error"] for one in found)
        assert first < second < third
        assert found[0]["cosine"] > found[1]["cosine"] and "agreement" not in found[0]


@pytest.mark.integration
@pytest.mark.parametrize("method", ("dsg", "zeroq", "genie"))
@pytest.mark.parametrize("kind", NETWORKS)
def test_images_are_made_without_classes(kind: str, method: str) -> None:
    options = {"iterations": 2} | ({"label_weight": 1.0} if method != "genie" else {})
    made = datafree.synthesize(
        network(kind), input_shape=SHAPE, images=8, method=method, method_options=options,
        excite=False,
    )  # fmt: skip
    assert made.targets is None and bool(torch.isfinite(made.images).all())


def test_a_method_made_of_classes_is_refused() -> None:
    with pytest.raises(ModelError, match="asks images to be of a class, and this network tells"):
        quantized("maps", method="intraq", bits="W4A4")


@pytest.mark.integration
@pytest.mark.parametrize("training", ("gdfq", "dsg_qat", "dfqf"))
@pytest.mark.parametrize("kind", NETWORKS)
def test_trainings_learn_what_the_network_returns(kind: str, training: str) -> None:
    options = {**TINY, "body": "dcgan"} if training == "gdfq" else TINY
    made = quantized(kind, bits="W4A4", training=training, training_options=options)
    history = made.metrics["training"]["fine-tuning"]["history"][-1]
    assert history["student distillation"] > 0
    assert not any("classes" in name for name in history)


@pytest.mark.integration
@pytest.mark.parametrize("kind", NETWORKS)
def test_rounding_and_bits_by_layer(kind: str) -> None:
    steps = {"iterations": 4, "batch_size": 8}
    learned = quantized(kind, bits="W4A4", reconstruction="brecq", reconstruction_options=steps)
    assert learned.metrics["reconstruction"]
    mixed = quantized(kind, bits="W4A8", average_bits=4.0, candidate_bits=(2, 4, 8))
    assert set(mixed.metrics["allocation"]["layer_bits"].values()) <= {2, 4, 8}


class Small(Boxes):
    def __init__(self) -> None:
        super().__init__()
        self.two, self.norm2 = nn.Identity(), nn.Identity()


def test_a_student_must_return_what_its_teacher_does() -> None:
    options = {**TINY, "warmup": 2}
    made = datafree.distill(
        network("boxes"), student=Small(), input_shape=SHAPE, training_options=options, holdout=16
    )
    assert [tuple(t.shape) for t in made.student(images(2)[:, :, :8, :8].repeat(1, 1, 2, 2))] == [
        (2, 4, 8, 8), (2, 4, 4, 4)
    ]  # fmt: skip
    with pytest.raises(ModelError, match="choose a student that fits"):
        datafree.distill(network("boxes"), student=Neck(), input_shape=SHAPE)
