from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from datafree.adapters.excite import Excite, full_range
from datafree.config import InputSpec, ModelConfig
from datafree.graph.capture import capture
from datafree.graph.taps import stored_statistics, tap_batch_norms
from datafree.images import SyntheticSet
from datafree.losses import batch_distance
from datafree.models import load_teacher
from datafree.synthesis.base import Stored
from datafree.synthesis.noise import Noise
from datafree.testing.networks import NoNorm, ready
from datafree.testing.watching import Counter, fingerprint
from networks import SPEC, captured, images

QUICK = Excite(steps=3, batch_size=2)


def noise(count: int, spec: InputSpec = SPEC) -> SyntheticSet:
    return Noise().generate(captured("Tiny"), spec, count)


def ends(spec: InputSpec) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
    return -mean / std, (1 - mean) / std


def test_classes_and_statistics_are_those_of_data() -> None:
    """On the digits: noise is of no class, excited noise of the one it was pushed to."""
    teacher = load_teacher(ModelConfig(source="digits_resnet8"))
    graph, spec = capture(teacher.model, teacher.spec), teacher.spec
    before = Noise().generate(graph, spec, 40)
    after = Excite(steps=60).apply(graph, before)
    assert after.targets is not None
    found: list[tuple[float, float, float]] = []
    for made in (before.images, after.images):
        with torch.no_grad(), tap_batch_norms(graph) as taps:
            logits = graph(made)
            distance = sum(batch_distance(f, *stored_statistics(layer)) for layer, f in taps)
        sure = logits.softmax(1).amax(1).mean()
        found.append((float(sure), float(logits.max()), float(distance)))
        predicted = logits.argmax(1)
    assert (predicted == after.targets).float().mean() > 0.9  # pyright: ignore
    assert found[0][0] < 0.6 < 0.85 < found[1][0]
    assert found[1][1] > 1.5 * found[0][1]
    assert found[1][2] < 0.5 * found[0][2]
    assert after.targets.bincount(minlength=10).tolist() == [4] * 10


def test_the_set_is_one_of_pixels() -> None:
    made = QUICK.apply(captured("Tiny"), noise(5))
    black, white = ends(SPEC)
    assert torch.allclose(made.images.amin((0, 2, 3), keepdim=True), black, atol=1e-6)
    assert torch.allclose(made.images.amax((0, 2, 3), keepdim=True), white, atol=1e-6)


def test_full_range_changes_the_ends_alone() -> None:
    inside = SyntheticSet(images(4) * 0.01, SPEC)
    changed = (full_range(inside).images - inside.images).abs() > 1e-6
    assert changed.sum((0, 2, 3)).tolist() == [2, 2, 2]
    constant = SyntheticSet(torch.zeros(2, *SPEC.shape), SPEC)
    assert torch.isfinite(full_range(constant).images).all()


def test_the_seed_decides_and_the_teacher_is_left_alone() -> None:
    teacher, state = captured("Tiny"), torch.random.get_rng_state()
    before, given = fingerprint(teacher), noise(5)
    one = QUICK.apply(teacher, given, seed=1)
    assert fingerprint(teacher) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert QUICK.apply(teacher, given, seed=1).digest() == one.digest()
    assert QUICK.apply(teacher, given, seed=2).digest() != one.digest()
    assert one.metadata["method"] == "noise"
    assert one.metadata["excite"]["steps"] == 3


@pytest.mark.parametrize("share", [0.2, 0.6, 1.0])
def test_an_interrupted_call_goes_on(share: float, tmp_path: Path) -> None:
    teacher, given, whole = captured("Tiny"), noise(5), Counter()
    expected = QUICK.apply(teacher, given, progress=whole)
    assert whole.done == whole.total
    folder = tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt):
        at = Counter(max(1, round(share * whole.total)))
        QUICK.apply(teacher, given, progress=at, checkpoint=folder)
    rest = Counter()
    found = QUICK.apply(teacher, given, progress=rest, checkpoint=folder)
    assert found.digest() == expected.digest()
    assert rest.done == rest.total
    Stored.clear(folder)
    assert not folder.exists()


def test_without_batch_norms_only_the_range_is_set() -> None:
    given = noise(3)
    made = QUICK.apply(ready(NoNorm()), given)
    assert made.images.equal(full_range(given).images)
    assert made.metadata["excite"] == "no batch norms"


@pytest.mark.parametrize("count", [1, 3])
def test_few_images_and_one_output(count: int) -> None:
    spec = SPEC.model_copy(update={"classes": 1})
    network = nn.Sequential(
        nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 1)
    )
    made = QUICK.apply(capture(network.eval(), spec), noise(count, spec))
    assert made.images.shape == (count, *spec.shape)
    assert made.targets is not None and made.targets.max() < 2
