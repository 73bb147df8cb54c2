"""What every image synthesis method must do, found by its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx

from datafree.config import InputSpec
from datafree.registry import built_in, load
from datafree.synthesis.base import Synthesizer
from datafree.testing import SynthesisContract
from datafree.testing.networks import Attending, ready
from datafree.testing.watching import Counter
from networks import SPEC, captured, saved_generator, saved_pool

pytestmark = pytest.mark.integration

PACKAGE = "datafree.synthesis"
QUICK: dict[str, Any] = {
    "iterations": 3,
    "batch_size": 2,
    "margin_images": 8,
    "matching_iterations": 2,
    "student_iterations": 2,
}
LABELLED = {"probe", "generator", "hast", "intraq", "prior", "psaq", "sardfq", "subset"}
"""Methods whose images belong to a class; the generator of `options` is a conditional one."""
PRIORS: dict[str, Any] = {"label_weight": 1.0, "tv_weight": 0.01, "l2_weight": 0.01, "jitter": 2}


def options(cls: type[Synthesizer], spec: InputSpec = SPEC, **wanted: Any) -> dict[str, Any]:
    wanted |= {"path": saved_generator(spec), "pool": saved_pool(spec)}
    return {key: value for key, value in wanted.items() if key in cls.model_fields}


@pytest.fixture(params=built_in(PACKAGE))
def cls(request: pytest.FixtureRequest) -> type[Synthesizer]:
    return load(PACKAGE, request.param, Synthesizer)


@pytest.fixture
def method(cls: type[Synthesizer]) -> Synthesizer:
    return cls(**options(cls, **QUICK))


@pytest.fixture
def teacher(cls: type[Synthesizer]) -> fx.GraphModule:
    return ready(Attending()) if cls.needs_attention else captured("Tiny")


class TestEveryMethod(SynthesisContract):
    @pytest.fixture(autouse=True, params=built_in(PACKAGE))
    def _chosen(self, request: pytest.FixtureRequest) -> None:
        cls = load(PACKAGE, request.param, Synthesizer)
        self.method = cls(**options(cls, **QUICK))

    def fitting(self, spec: InputSpec) -> Synthesizer:
        cls = type(self.method)
        return cls(**options(cls, spec, **QUICK))


def test_names_and_labels(
    cls: type[Synthesizer], method: Synthesizer, teacher: fx.GraphModule
) -> None:
    assert method.name == cls.__module__.rpartition(".")[2]
    made = method.generate(teacher, SPEC, 5, seed=3)
    assert (made.targets is not None) == (method.name in LABELLED)


def test_batches_are_kept_one_by_one(
    method: Synthesizer, teacher: fx.GraphModule, tmp_path: Path
) -> None:
    """Batches of 2, 2 and 1 images; the interruption hits the middle of one."""
    whole = Counter()
    method.generate(teacher, SPEC, 5, progress=whole)
    for share in (0.01, 0.4, 0.7, 1.0):
        folder = tmp_path / str(share)
        at = max(1, round(share * whole.total))
        interrupted(method, teacher, folder, at)
        stored = len(list(folder.glob("*"))) if folder.exists() else 0
        assert stored == (at - 1) // method.batch_iterations


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
        if value == cls.model_fields[name].default:
            value = 0.0  # it is on by itself
        only = cls(**{**quick, name: value}).generate(teacher, SPEC, 4)
        assert not torch.equal(only.images, plain.images), f"{name} does something"


@pytest.mark.parametrize("name", ["SharedNorm", "Dense", "NormAfterActivation"])
def test_unusual_batch_norms(cls: type[Synthesizer], name: str) -> None:
    """One called twice; some behind dense layers, whose channels have no deviation per image."""
    if cls.needs_attention:
        pytest.skip("this method looks at attention, and at no batch norm")
    unusual: list[dict[str, Any]] = [{}, {"epsilon": 0.0}, {"margin_granularity": "batch"}]
    for more in unusual:
        result = cls(**options(cls, **QUICK, **more)).generate(captured(name), SPEC, 3)
        assert torch.isfinite(result.images).all()


def interrupted(method: Synthesizer, teacher: fx.GraphModule, folder: Path, at: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        method.generate(teacher, SPEC, 5, progress=Counter(at), checkpoint=folder)


def test_finished_batches_are_not_made_again(
    cls: type[Synthesizer],
    method: Synthesizer,
    teacher: fx.GraphModule,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if cls.generate is not Synthesizer.generate:
        pytest.skip("this method has stages of its own; see its tests")
    whole = Counter()
    method.generate(teacher, SPEC, 5, progress=whole)
    interrupted(method, teacher, tmp_path, whole.total)
    starts: list[int] = []
    make_batch = cls.make_batch

    def spy(self: Synthesizer, *arguments: Any) -> Any:
        starts.append(arguments[2].start)
        return make_batch(self, *arguments)

    monkeypatch.setattr(cls, "make_batch", spy)
    method.generate(teacher, SPEC, 5, checkpoint=tmp_path)
    assert starts == ([4] if "batch_size" in cls.model_fields else [0])


def test_batches_of_other_options_are_not_used(
    cls: type[Synthesizer], teacher: fx.GraphModule, tmp_path: Path
) -> None:
    quick = options(cls, **QUICK)
    if "iterations" not in quick:
        pytest.skip("this method has no options")
    whole = Counter()
    cls(**quick).generate(teacher, SPEC, 5, progress=whole)
    interrupted(cls(**quick), teacher, tmp_path, whole.total)
    method = cls(**{**quick, "iterations": 4})
    expected = method.generate(teacher, SPEC, 5)
    assert method.generate(teacher, SPEC, 5, checkpoint=tmp_path).digest() == expected.digest()
