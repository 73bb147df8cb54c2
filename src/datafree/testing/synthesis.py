"""What every image method has to keep."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import ClassVar, get_args

import pytest
import torch
from torch import fx, nn

from datafree.config import Frozen, InputSpec, build
from datafree.errors import DatafreeError, MemoryWarning, ModelError, NoRoomError
from datafree.graph.capture import capture
from datafree.images import SyntheticSet
from datafree.synthesis.base import Stored, Synthesizer
from datafree.testing.contract import Contract
from datafree.testing.networks import SPEC, Attending, NoNorm, Tiny, images, randomized, ready
from datafree.testing.watching import Counter, ShortOfMemory, fingerprint


class SynthesisContract(Contract):
    """Sets of images: shape, seed, resuming, and a network left as it was."""

    package = "datafree.synthesis"
    base: type[Frozen] = Synthesizer
    method: Synthesizer
    """The method under test."""
    least_deviation: ClassVar[float] = 0.1
    """Of the pixels of every image: an image of one value teaches nothing."""

    def chosen(self) -> Synthesizer:
        """The method under test."""
        return self.method

    def teacher(self, seed: int = 0) -> fx.GraphModule:
        """A network with batch norms, or with attention where the method looks at that."""
        torch.manual_seed(seed)
        return ready(Attending() if self.method.needs_attention else Tiny(), seed)

    def test_a_set_of_images(self) -> None:
        """Finite float32 images of the wanted shape, each of its own."""
        made = self.method.generate(self.teacher(), SPEC, 5, seed=3)
        assert made.images.shape == (5, *SPEC.shape)
        assert made.images.dtype == torch.float32
        assert made.images.device.type == "cpu"
        assert not made.images.requires_grad
        assert bool(torch.isfinite(made.images).all())
        assert made.images.flatten(1).std(1).min() > self.least_deviation
        assert len({image.numpy().tobytes() for image in made.images}) == 5, "none comes twice"
        assert made.spec == SPEC
        if made.targets is not None:
            assert made.targets.shape == (5,)
            assert made.targets.dtype == torch.int64
            assert 0 <= made.targets.min() <= made.targets.max() < SPEC.classes

    def test_any_input_shape(self) -> None:
        """One channel, and more columns than rows."""
        spec = InputSpec(shape=(1, 6, 10), mean=(0.5,), std=(0.5,), classes=SPEC.classes)
        network: nn.Module = nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(64, spec.classes)
        )
        if self.method.needs_attention:
            network = Attending(1)
        teacher = capture(randomized(network, images(8, shape=spec.shape)), spec)
        assert self.fitting(spec).generate(teacher, spec, 3).images.shape == (3, 1, 6, 10)

    def fitting(self, spec: InputSpec) -> Synthesizer:
        """The method for images of another shape; for methods that bring something for one."""
        del spec
        return self.method

    def test_metadata_repeat_the_set(self) -> None:
        """What the set says of itself makes the same set again."""
        method = self.method
        made = method.generate(self.teacher(), SPEC, 3, seed=5)
        told = dict(made.metadata)
        assert told.pop("method") == method.name
        seed, count = told.pop("seed"), told.pop("count")
        again = build(type(method), told, "metadata").generate(
            self.teacher(), SPEC, count, seed=seed
        )
        assert again.digest() == made.digest()

    def test_the_seed_decides(self) -> None:
        """All random numbers come from it, none from torch's global generator."""
        teacher, state = self.teacher(), torch.random.get_rng_state()
        one = self.method.generate(teacher, SPEC, 3, seed=1)
        assert torch.equal(torch.random.get_rng_state(), state)
        torch.randn(7)
        two = self.method.generate(teacher, SPEC, 3, seed=1)
        other = self.method.generate(teacher, SPEC, 3, seed=2)
        assert one.digest() == two.digest()
        if self.method.chooses:
            return
        distance = (one.images[:, None] - other.images[None]).flatten(2).norm(dim=2)
        assert distance.min() > 1, "sets of different seeds share no image"

    def test_the_teacher_is_left_alone(self) -> None:
        """Tensors, modes and hooks, after success and after an interruption."""
        teacher = self.teacher()
        before = fingerprint(teacher)
        self.method.generate(teacher, SPEC, 3)
        assert fingerprint(teacher) == before
        with pytest.raises(KeyboardInterrupt):
            self.method.generate(teacher, SPEC, 3, progress=Counter(stop_at=1))
        assert fingerprint(teacher) == before

    def test_progress_reaches_its_total(self) -> None:
        """`batch.step` is called with all iterations that `batch_iterations` tells."""
        counter = Counter()
        self.method.generate(self.teacher(), SPEC, 5, progress=counter)
        assert counter.done == counter.total > 0

    def test_networks_without_batch_norm(self) -> None:
        """They work, or are refused with the name of a method that does."""
        teacher = ready(NoNorm())
        if self.method.fits(teacher):
            assert len(self.method.generate(teacher, SPEC, 2)) == 2
            return
        with pytest.raises(
            ModelError, match=r"this network .*; use the method .*noise, which fits"
        ):
            self.method.generate(teacher, SPEC, 2)

    @pytest.mark.parametrize("share", [0.01, 0.4, 0.7, 1.0])
    def test_an_interrupted_call_goes_on(self, share: float, tmp_path: Path) -> None:
        """With the same images as one that was never interrupted; batches are the caller's."""
        teacher, whole = self.teacher(), Counter()
        expected = self.method.generate(teacher, SPEC, 5, progress=whole)
        folder = tmp_path / "checkpoint"
        self.interrupted(teacher, folder, max(1, round(share * whole.total)))
        rest = Counter()
        found = self.method.generate(teacher, SPEC, 5, progress=rest, checkpoint=folder)
        assert found.digest() == expected.digest()
        assert found.metadata == expected.metadata
        assert rest.done == rest.total
        assert list(folder.glob("batch_*")), "nobody has kept the set elsewhere yet"
        Stored.clear(folder)
        assert not list(folder.glob("batch_*"))

    @pytest.mark.parametrize("change", ["seed", "count", "teacher", "spec", "damage"])
    def test_batches_of_another_request_are_not_used(self, change: str, tmp_path: Path) -> None:
        """What an interrupted call left is taken up for exactly the same call only."""
        teacher, whole = self.teacher(), Counter()
        self.method.generate(teacher, SPEC, 5, progress=whole)
        self.interrupted(teacher, tmp_path, whole.total)
        seed, count, spec = int(change == "seed"), 4 if change == "count" else 5, SPEC
        if change == "teacher":
            teacher = self.teacher(seed=1)
        if change == "spec":
            spec = SPEC.model_copy(update={"mean": (0.0, 0.0, 0.0)})
        if change == "damage":
            for path in tmp_path.iterdir():
                path.write_bytes(path.read_bytes()[:-7])
        expected = self.method.generate(teacher, spec, count, seed=seed)
        found = self.method.generate(teacher, spec, count, seed=seed, checkpoint=tmp_path)
        assert found.digest() == expected.digest()
        assert found.spec == spec

    def test_a_checkpoint_folder_keeps_what_is_not_ours(self, tmp_path: Path) -> None:
        """Only files of the method itself are removed."""
        (tmp_path / "config.yaml").write_text("mine", encoding="utf-8")
        made = self.method.generate(self.teacher(), SPEC, 3, checkpoint=tmp_path)
        Stored.clear(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
        made.save(tmp_path / "set.safetensors")
        assert SyntheticSet.load(tmp_path / "set.safetensors").digest() == made.digest()

    def test_memory_that_runs_out_halves_the_batch(self, tmp_path: Path) -> None:
        """The images are those of a run with the smaller size; what is finished stays."""
        teacher, counter = self.teacher(), Counter()
        whole = self.method.generate(teacher, SPEC, 9, seed=3)
        with warnings.catch_warnings(record=True) as told, ShortOfMemory(4) as short:
            warnings.simplefilter("always")
            found = self.method.generate(
                teacher, SPEC, 9, seed=3, progress=counter, checkpoint=tmp_path
            )
        again = len(counter.descriptions) > len(set(counter.descriptions))
        assert again or counter.done == counter.total
        assert len(told) == short.denied, "one line each time"
        assert all(issubclass(one.category, MemoryWarning) for one in told)
        if not short.denied:  # it passes no more images than that
            assert found.digest() == whole.digest()
        elif found.metadata == whole.metadata:  # it judges images one by one
            for path in tmp_path.glob("batch_[0-9]*"):
                path.unlink()  # but a student stays, whose batches of images were smaller
            with_room = self.method.generate(teacher, SPEC, 9, seed=3, checkpoint=tmp_path)
            same = (found.images - with_room.images).abs() < 0.01  # but for the order of sums
            assert float(same.float().mean()) > 0.9
        else:
            smaller = self.method.model_copy(update={"batch_size": 4})
            with warnings.catch_warnings(), ShortOfMemory(4):  # what is learned may still run out
                warnings.simplefilter("ignore")
                expected = smaller.generate(teacher, SPEC, 9, seed=3)
            assert found.digest() == expected.digest()

    def test_a_file_that_is_missing_is_told_at_once(self, tmp_path: Path) -> None:
        """And not where the method comes to it, which may be hours later."""
        missing = tmp_path / "missing.safetensors"
        for name, field in type(self.method).model_fields.items():
            if field.annotation is Path or Path in get_args(field.annotation):
                method = self.method.model_copy(update={name: missing})
                with pytest.raises(DatafreeError, match=r"missing\.safetensors"):
                    method.check(self.teacher())

    def test_not_even_one_image_fits(self) -> None:
        """One line that says what to do."""
        teacher = self.teacher()
        with warnings.catch_warnings(), ShortOfMemory(0) as short:
            warnings.simplefilter("ignore")
            try:
                self.method.generate(teacher, SPEC, 2)
            except NoRoomError as error:
                assert "free memory" in str(error)
                assert "not enough memory for" in str(error)
            else:
                assert not short.denied

    def interrupted(self, teacher: fx.GraphModule, folder: Path, at: int) -> None:
        """A call for five images that ends after `at` units."""
        with pytest.raises(KeyboardInterrupt):
            self.method.generate(teacher, SPEC, 5, progress=Counter(at), checkpoint=folder)
