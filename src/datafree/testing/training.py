"""What every fine-tuning method has to keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from datafree.calibrators.mse import MSE
from datafree.config import Frozen, Scheme
from datafree.errors import ConfigError, DataError, MemoryWarning, NoRoomError
from datafree.generators import Generator, GeneratorConfig, save_generator
from datafree.graph.fold import fold_batch_norms
from datafree.quant.modules import QUANTIZED, ActivationQuantizer, Quantizer
from datafree.quant.trained import TRAINED
from datafree.tensors import state_digest
from datafree.testing.contract import Contract
from datafree.testing.networks import SPEC, InPlaceResidual, Tiny, images, ready
from datafree.testing.watching import Counter, ShortOfMemory, fingerprint
from datafree.training import Task, Trained, train
from datafree.training.base import Trainer

SCHEME = Scheme(bits="W3A4")
FEW: dict[str, Any] = {
    "warmup": 4, "iterations": 6, "batch_size": 8, "calibration_images": 16, "holdout": 16,
    "checks": 3, "checkpoint_minutes": 0, "latent": 10, "width": 8,
}  # fmt: skip
"""So few steps that a contract takes seconds; of all methods, since the base class has them."""


def digests(trained: Trained) -> tuple[str, ...]:
    """Of both students, and of the generator if there is one."""
    parts = (trained.student, trained.last, trained.generator)
    return tuple(state_digest(part.state_dict()) for part in parts if part is not None)


class TrainingContract(Contract):
    """A plain student at the end, the same one after an interruption, a teacher left alone."""

    package = "datafree.training"
    base: type[Frozen] = Trainer
    method: Trainer
    """The method under test; its schedule is replaced by one of a few steps."""
    distills: bool = False
    """Whether it teaches a network of another architecture."""

    def chosen(self) -> Trainer:
        """The method under test."""
        return self.method

    def quick(self, **changes: Any) -> Trainer:
        """The method with a schedule of a few steps, and `changes`."""
        wanted = {**FEW, **changes}
        known = type(self.method).model_fields
        return self.method.model_copy(update={k: v for k, v in wanted.items() if k in known})

    def task(self, **changes: Any) -> Task:
        """A small network to quantize at W3A4, and `changes`; images where it learns from some."""
        torch.manual_seed(0)
        graph = ready(Tiny())
        companion = ready(InPlaceResidual()) if self.distills else None
        task = Task(graph, fold_batch_norms(graph), SPEC, SCHEME, MSE(), companion=companion)
        if self.method.from_images:
            task = replace(task, images=images(24), targets=torch.arange(24) % SPEC.answers)
        return replace(task, **changes)

    def test_memory_that_runs_out_halves_the_batch(self) -> None:
        """In the first step: all is as in a training with half the batch from the beginning."""
        counter, few = Counter(), {"calibration_images": 4, "holdout": 4}
        # Ranges are set on all given images, which would be halved before.
        own = {"images": images(4), "targets": torch.arange(4)} if self.method.from_images else {}
        task = self.task(**own)
        with pytest.warns(MemoryWarning, match="8 at a time did not fit"), ShortOfMemory(4):
            trained = train(self.quick(**few), task, progress=counter)
        assert counter.done == counter.total
        assert {told["batch"] for told in trained.summary.values()} == {4}
        smaller = train(self.quick(**few, batch_size=4), task)
        assert digests(trained) == digests(smaller)

    def test_a_checkpoint_is_gone_back_to(self, tmp_path: Path) -> None:
        """Where memory runs out after some steps, which are not lost."""
        few = {"calibration_images": 4, "holdout": 4, "warmup": 0, "iterations": 12}
        if self.distills:
            few |= {"warmup": 12, "iterations": 1}
        counted = ShortOfMemory(4, after=10**9)
        with counted:
            whole = train(self.quick(**few), self.task())
        steps = 10**9 - counted.after
        with pytest.warns(MemoryWarning), ShortOfMemory(4, after=steps // 2):
            trained = train(self.quick(**few), self.task(), checkpoint=tmp_path)
        assert digests(trained) != digests(whole)
        assert all(bool(torch.isfinite(p).all()) for p in trained.student.parameters())

    def test_not_even_two_images_fit(self) -> None:
        """One line that says what to do."""
        task = self.task()
        with pytest.warns(MemoryWarning), ShortOfMemory(1), pytest.raises(
            NoRoomError, match="training: there is not enough memory for 2 images at a time"
        ):  # fmt: skip
            train(self.quick(calibration_images=2, holdout=2), task)

    def test_the_student_is_an_ordinary_one_and_the_teacher_as_it_was(self) -> None:
        """Plain quantizers with ranges, in eval mode, with the bits that were asked for."""
        task = self.task()
        before = fingerprint(task.teacher), fingerprint(task.folded)
        trained = train(self.quick(), task)
        assert (fingerprint(task.teacher), fingerprint(task.folded)) == before
        for student in (trained.student, trained.last):
            assert not student.training
            assert not any(isinstance(module, TRAINED) for module in student.modules())
            assert all(m.has_range for m in student.modules() if isinstance(m, Quantizer))
            assert any(isinstance(m, ActivationQuantizer) for m in student.modules())
            assert bool(torch.isfinite(student(images(4))).all())
            layers = [m for m in student.modules() if isinstance(m, QUANTIZED)]
            assert {layer.weight_quantizer.grid.bits for layer in layers} == {3}

    def test_losses_are_finite_scalars_with_names(self) -> None:
        """As the record of the run holds them."""
        trained = train(self.quick(), self.task())
        for phase in trained.summary.values():
            told = phase["history"][-1]
            assert any(name not in ("step", "agreement", "kl") for name in told)
            assert all(isinstance(value, int | float) and value == value for value in told.values())

    def test_weights_are_learned(self) -> None:
        """Every parameter of the student moves."""
        task = self.task()
        trained = train(self.quick(student_lr=0.1), task)
        start = task.folded if task.companion is None else fold_batch_norms(task.companion)
        learned = dict(trained.last.named_parameters())
        still = [n for n, p in start.named_parameters() if torch.equal(p, learned[n])]
        assert not still

    def test_same_seed_same_student(self) -> None:
        """Torch's global random numbers have no part in it; another seed gives another one."""
        found: list[tuple[str, ...]] = []
        for seed in (0, 0, 1):
            task = self.task(seed=seed)
            torch.manual_seed(len(found))
            found.append(digests(train(self.quick(), task)))
        assert found[0] == found[1]
        assert found[0] != found[2]

    @pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
    def test_an_interrupted_call_goes_on_to_the_same_student(
        self, share: float, tmp_path: Path
    ) -> None:
        """In every phase, and so does what was measured."""
        counter = Counter()
        whole = train(self.quick(), self.task(), progress=counter)
        assert counter.done == counter.total == self.quick().warmup + FEW["iterations"]
        stop_at = round(share * counter.total)
        with pytest.raises(KeyboardInterrupt):
            train(self.quick(), self.task(), progress=Counter(stop_at), checkpoint=tmp_path)
        assert list(tmp_path.glob("*.safetensors"))
        progress = Counter()
        again = train(self.quick(), self.task(), progress=progress, checkpoint=tmp_path)
        assert digests(again) == digests(whole)
        assert progress.done == progress.total
        for phase, told in whole.summary.items():
            assert again.summary[phase]["history"] == told["history"]

    def test_a_checkpoint_of_another_request_is_left_alone(self, tmp_path: Path) -> None:
        """Here one of another seed."""
        with pytest.raises(KeyboardInterrupt):
            train(self.quick(), self.task(), progress=Counter(5), checkpoint=tmp_path)
        found = train(self.quick(), self.task(seed=5), checkpoint=tmp_path)
        assert digests(found) == digests(train(self.quick(), self.task(seed=5)))

    def test_a_time_budget_ends_all_phases_cleanly(self) -> None:
        """After some steps of each, with a student that was judged."""
        endless = self.quick(warmup=10**6, iterations=10**6)
        trained = train(endless, self.task(), max_seconds=1.0)
        taken = [phase["steps"] for phase in trained.summary.values()]
        assert len(taken) == (1 if self.method.from_images else 2)
        assert all(0 < steps < 10**6 for steps in taken)
        assert "best" in trained.summary["fine-tuning"]
        assert bool(torch.isfinite(trained.student(images(2))).all())

    def test_a_warm_generator_is_taken_and_another_refused(self, tmp_path: Path) -> None:
        """One warm-up serves several bit widths; a generator of other images is told."""
        path = tmp_path / "warm.safetensors"
        if self.method.from_images:
            with pytest.raises(ConfigError, match="learns from a fixed set of images, not"):
                train(self.quick(), self.task(generator=path))
            return
        first = train(self.quick(), self.task())
        assert first.warm is not None
        save_generator(first.warm, path)
        second = train(self.quick(), self.task(generator=path))
        assert second.warm is None
        if not self.distills:
            assert digests(second) == digests(first)
        other = GeneratorConfig(shape=(1, 8, 8), classes=5, latent=10)
        save_generator(Generator(other, torch.Generator().manual_seed(0)), path)
        with pytest.raises(DataError, match=r"warm\.safetensors makes images of \(1, 8, 8\)"):
            train(self.quick(), self.task(generator=path))
