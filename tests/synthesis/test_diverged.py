"""Images that diverged, or that tell nothing, are failures by the method's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree.config import InputSpec
from datafree.errors import DataError
from datafree.progress.deadline import Deadline
from datafree.synthesis.base import Batch, Synthesizer, all_alike, flat
from datafree.synthesis.genie import Genie
from datafree.synthesis.noise import Noise
from datafree.synthesis.prior import Prior
from datafree.synthesis.sadag import SADAG
from datafree.synthesis.zeroq import ZeroQ
from datafree.testing.watching import Counter
from networks import SPEC, captured


class Given(Synthesizer):
    """Makes what it is told to."""

    kind: str

    @property
    def name(self) -> str:
        return "given"

    def make_batch(
        self, teacher: nn.Module, spec: InputSpec, batch: Batch, state: Any
    ) -> tuple[Tensor, Tensor | None]:
        del teacher, state
        images = torch.randn(batch.size, *spec.shape, generator=batch.generator)
        if self.kind == "same":
            images = images[:1].expand(batch.size, *spec.shape)
        elif self.kind == "flat":
            images = images[:, :, :1, :1].expand(batch.size, *spec.shape)
        elif self.kind != "sound":
            images[-1, 0, 0, 0] = float(self.kind)
        return images, None


@pytest.mark.parametrize("kind", ["nan", "inf", "-inf"])
def test_images_that_diverged_are_told_by_method_and_place(kind: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"synthesis by given: images 1 to 3 diverged to NaN"):
        Given(kind=kind).generate(captured("Tiny"), SPEC, 3, checkpoint=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "count", "why"),
    [("same", 4, "the same"), ("flat", 4, "of a single colour"), ("flat", 1, "of a single colour")],
)
def test_images_that_tell_nothing_are_refused(kind: str, count: int, why: str) -> None:
    with pytest.raises(DataError, match=rf"synthesis by given: all {count} images are {why}"):
        Given(kind=kind).generate(captured("Tiny"), SPEC, count)


def test_images_that_differ_are_taken_and_one_alone() -> None:
    assert len(Given(kind="sound").generate(captured("Tiny"), SPEC, 4)) == 4
    assert len(Given(kind="same").generate(captured("Tiny"), SPEC, 1)) == 1


def test_a_network_that_leaves_float32_is_blamed_itself() -> None:
    graph = captured("Tiny")
    first = next(m for m in graph.modules() if isinstance(m, nn.Conv2d))
    first.weight.data.mul_(1e38)
    with pytest.raises(DataError, match=r"zeroq: .*layer '.*' leaves float32 on plain noise"):
        ZeroQ(iterations=3).generate(graph, SPEC, 2)


@pytest.mark.parametrize(
    "method", [ZeroQ(iterations=20, learning_rate=1e30), Genie(iterations=6, generator_lr=1e30)]
)
def test_rates_that_are_too_high_end_in_one_line(method: Synthesizer) -> None:
    with pytest.raises(DataError, match=rf"synthesis by {method.name}: .*learning rate") as caught:
        method.generate(captured("Tiny"), SPEC, 4)
    assert "\n" not in str(caught.value)


def test_alike_and_flat() -> None:
    noise = torch.randn(3, 2, 4, 4)
    assert not all_alike(noise)
    assert all_alike(noise[:1].expand(3, 2, 4, 4))
    assert flat(noise[:, :, :1, :1].expand(3, 2, 4, 4))
    assert not flat(noise)
    assert not all_alike(noise[:1])
    assert not all_alike(noise[..., :1, :1])


@pytest.mark.parametrize(
    "method",
    [ZeroQ(iterations=10**7, least_fall=0, batch_size=2),
     Genie(iterations=10**7, batch_size=2),
     Prior(iterations=10**7, batch_size=2),
     SADAG(iterations=10**7, student_iterations=10**7, matching_iterations=10**7, batch_size=2)],
    ids=lambda method: method.name,
)  # fmt: skip
def test_a_deadline_ends_every_batch_with_the_images_there_are(method: Synthesizer) -> None:
    counter = Counter()
    until = Deadline.within(2.0)
    made = method.generate(captured("Tiny"), SPEC, 4, progress=counter, deadline=until)
    assert len(made) == 4
    assert 2 <= counter.done < 10**6
    assert -4 < until.left - 0 <= 2.0
    assert until.over


def test_a_deadline_that_is_over_leaves_one_step_for_each_batch() -> None:
    counter = Counter()
    method = ZeroQ(iterations=50, batch_size=2)
    method.generate(captured("Tiny"), SPEC, 6, progress=counter, deadline=Deadline.within(-1))
    assert counter.done == 3
    assert len(Noise().generate(captured("Tiny"), SPEC, 6, deadline=Deadline.within(-1))) == 6
