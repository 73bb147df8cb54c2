"""What every image synthesis method must do, found by its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx

from datafree.config import InputSpec
from datafree.config import build as configure
from datafree.errors import ConfigError, ModelError
from datafree.graph.capture import capture
from datafree.images import SyntheticSet
from datafree.registry import available, load
from datafree.synthesis.base import Synthesizer
from networks import SPEC, build, captured, fingerprint, saved_generator
from watching import Counter

PACKAGE = "datafree.synthesis"
QUICK: dict[str, Any] = {
    "iterations": 3,
    "batch_size": 2,
    "margin_images": 8,
    "matching_iterations": 2,
    "student_iterations": 2,
}
LABELLED = {"generator", "intraq"}
"""Methods whose images belong to a class; the generator of `options` is a conditional one."""
PRIORS: dict[str, Any] = {"label_weight": 1.0, "tv_weight": 0.01, "l2_weight": 0.01, "jitter": 2}


def options(cls: type[Synthesizer], spec: InputSpec = SPEC, **wanted: Any) -> dict[str, Any]:
    wanted["path"] = saved_generator(spec)
    return {key: value for key, value in wanted.items() if key in cls.model_fields}


@pytest.fixture(params=available(PACKAGE))
def cls(request: pytest.FixtureRequest) -> type[Synthesizer]:
    return load(PACKAGE, request.param, Synthesizer)


@pytest.fixture
def method(cls: type[Synthesizer]) -> Synthesizer:
    return cls(**options(cls, **QUICK))


@pytest.fixture
def teacher() -> fx.GraphModule:
    return captured("Tiny")


def test_a_set_of_images(method: Synthesizer, teacher: fx.GraphModule) -> None:
    result = method.generate(teacher, SPEC, 5, seed=3)
    assert result.images.shape == (5, *SPEC.shape)
    assert result.images.dtype == torch.float32
    assert result.images.device.type == "cpu"
    assert not result.images.requires_grad
    assert torch.isfinite(result.images).all()
    assert result.images.flatten(1).std(1).min() > 0.1
    assert len({image.sum().item() for image in result.images}) == 5, "no image comes twice"
    assert result.spec == SPEC
    assert (result.targets is not None) == (method.name in LABELLED)


def test_metadata_repeat_the_set(cls: type[Synthesizer], method: Synthesizer) -> None:
    teacher = captured("Tiny")
    result = method.generate(teacher, SPEC, 3, seed=5)
    described = dict(result.metadata)
    assert described.pop("method") == method.name == cls.__module__.rpartition(".")[2]
    seed, count = described.pop("seed"), described.pop("count")
    again = configure(cls, described, "method").generate(teacher, SPEC, count, seed=seed)
    assert again.digest() == result.digest()


def test_the_seed_decides(method: Synthesizer, teacher: fx.GraphModule) -> None:
    state = torch.random.get_rng_state()
    one = method.generate(teacher, SPEC, 3, seed=1)
    torch.manual_seed(123)
    torch.randn(7)
    two = method.generate(teacher, SPEC, 3, seed=1)
    other = method.generate(teacher, SPEC, 3, seed=2)
    torch.random.set_rng_state(state)
    assert one.digest() == two.digest()
    assert one.digest() != other.digest()
    distance = (one.images[:, None] - other.images[None]).flatten(2).norm(dim=2)
    assert distance.min() > 1, "sets of different seeds share no image"


def test_the_global_generator_is_left_alone(method: Synthesizer, teacher: fx.GraphModule) -> None:
    state = torch.random.get_rng_state()
    method.generate(teacher, SPEC, 3)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_teacher_is_left_alone(method: Synthesizer, teacher: fx.GraphModule) -> None:
    before = fingerprint(teacher)
    method.generate(teacher, SPEC, 3)
    assert fingerprint(teacher) == before
    with pytest.raises(KeyboardInterrupt):
        method.generate(teacher, SPEC, 3, progress=Counter(stop_at=1))
    assert fingerprint(teacher) == before


def test_progress_reaches_its_total(method: Synthesizer, teacher: fx.GraphModule) -> None:
    counter = Counter()
    method.generate(teacher, SPEC, 5, progress=counter)
    assert counter.done == counter.total > 0


def test_priors_labels_and_jitter(cls: type[Synthesizer], teacher: fx.GraphModule) -> None:
    chosen = options(cls, **QUICK, **PRIORS)
    if "label_weight" not in chosen:
        pytest.skip("this method has no priors")
    quick = options(cls, **QUICK)
    plain = cls(**quick).generate(teacher, SPEC, 4)
    result = cls(**chosen).generate(teacher, SPEC, 4)
    assert result.targets is not None
    assert result.targets.shape == (4,)
    assert result.targets.dtype == torch.int64
    assert 0 <= result.targets.min() <= result.targets.max() < SPEC.classes
    assert result.digest() == cls(**chosen).generate(teacher, SPEC, 4).digest()
    for name, value in options(cls, **PRIORS).items():
        only = cls(**{**quick, name: value}).generate(teacher, SPEC, 4)
        assert not torch.equal(only.images, plain.images), f"{name} does something"


def test_unknown_options_are_refused(cls: type[Synthesizer]) -> None:
    with pytest.raises(ConfigError, match="option of x: no_such_option is not known"):
        configure(cls, {"no_such_option": 3}, "option of x")


def test_any_input_shape() -> None:
    spec = InputSpec(shape=(1, 6, 10), mean=(0.5,), std=(0.5,), classes=3)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3),
        torch.nn.BatchNorm2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 3),
    )
    graph = capture(model, spec)
    for name in available(PACKAGE):
        method = load(PACKAGE, name, Synthesizer)
        result = method(**options(method, spec, **QUICK)).generate(graph, spec, 3)
        assert result.images.shape == (3, 1, 6, 10)


@pytest.mark.parametrize("name", ["SharedNorm", "Dense", "NormAfterActivation"])
def test_unusual_batch_norms(cls: type[Synthesizer], name: str) -> None:
    """One called twice; some behind dense layers, whose channels have no deviation per image."""
    unusual: list[dict[str, Any]] = [{}, {"epsilon": 0.0}, {"margin_granularity": "batch"}]
    for more in unusual:
        result = cls(**options(cls, **QUICK, **more)).generate(captured(name), SPEC, 3)
        assert torch.isfinite(result.images).all()


def test_networks_without_batch_norm(method: Synthesizer) -> None:
    teacher = captured("NoNorm")
    if not method.needs_batch_norm:
        assert len(method.generate(teacher, SPEC, 2)) == 2
        return
    with pytest.raises(ModelError, match=f"{method.name} matches batch-norm.*use the method noise"):
        method.generate(teacher, SPEC, 2)


def interrupted(method: Synthesizer, teacher: fx.GraphModule, folder: Path, at: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        method.generate(teacher, SPEC, 5, progress=Counter(at), checkpoint=folder)


@pytest.mark.parametrize("share", [0.01, 0.4, 0.7, 1.0])
def test_an_interrupted_call_goes_on(
    method: Synthesizer, teacher: fx.GraphModule, tmp_path: Path, share: float
) -> None:
    """Batches of 2, 2 and 1 images; the interruption hits the middle of one."""
    whole = Counter()
    expected = method.generate(teacher, SPEC, 5, seed=0, progress=whole)
    folder = tmp_path / "checkpoint"
    at = max(1, round(share * whole.total))
    interrupted(method, teacher, folder, at)
    stored = len(list(folder.glob("*"))) if folder.exists() else 0
    assert stored == (at - 1) // method.batch_iterations
    rest = Counter()
    actual = method.generate(teacher, SPEC, 5, seed=0, progress=rest, checkpoint=folder)
    assert actual.digest() == expected.digest()
    assert actual.metadata == expected.metadata
    assert rest.done == rest.total
    assert not folder.exists(), "finished batches are cleared away"


def test_finished_batches_are_not_made_again(
    cls: type[Synthesizer], method: Synthesizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cls.generate is not Synthesizer.generate:
        pytest.skip("this method has stages of its own; see its tests")
    whole = Counter()
    method.generate(captured("Tiny"), SPEC, 5, progress=whole)
    interrupted(method, captured("Tiny"), tmp_path, whole.total)
    starts: list[int] = []
    make_batch = cls.make_batch

    def spy(self: Synthesizer, *arguments: Any) -> Any:
        starts.append(arguments[2].start)
        return make_batch(self, *arguments)

    monkeypatch.setattr(cls, "make_batch", spy)
    method.generate(captured("Tiny"), SPEC, 5, checkpoint=tmp_path)
    assert starts == ([4] if "batch_size" in cls.model_fields else [0])


@pytest.mark.parametrize("change", ["seed", "count", "teacher", "spec", "option", "damage"])
def test_batches_of_another_request_are_not_used(
    cls: type[Synthesizer], teacher: fx.GraphModule, tmp_path: Path, change: str
) -> None:
    quick = options(cls, **QUICK)
    method = cls(**quick)
    whole = Counter()
    method.generate(teacher, SPEC, 5, progress=whole)
    interrupted(method, teacher, tmp_path, whole.total)
    seed, count, spec = int(change == "seed"), 4 if change == "count" else 5, SPEC
    if change == "teacher":
        teacher = capture(build("Tiny", seed=1), SPEC)
    if change == "spec":
        spec = SPEC.model_copy(update={"mean": (0.0, 0.0, 0.0)})
    if change == "option":
        if "iterations" not in cls.model_fields:
            pytest.skip("this method has no options")
        method = cls(**{**quick, "iterations": 4})
    if change == "damage":
        for path in tmp_path.iterdir():
            path.write_bytes(path.read_bytes()[:-7])
    expected = method.generate(teacher, spec, count, seed=seed)
    actual = method.generate(teacher, spec, count, seed=seed, checkpoint=tmp_path)
    assert actual.digest() == expected.digest()
    assert actual.spec == spec


def test_a_checkpoint_folder_keeps_what_is_not_ours(
    method: Synthesizer, teacher: fx.GraphModule, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text("mine")
    result = method.generate(teacher, SPEC, 3, checkpoint=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    result.save(tmp_path / "set.safetensors")
    assert SyntheticSet.load(tmp_path / "set.safetensors").digest() == result.digest()
