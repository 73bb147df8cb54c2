"""The term of what the last linear layer reads, where learned rounding has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from datafree.calibrators.base import calibrate
from datafree.calibrators.mse import MSE
from datafree.config import InputSpec, ModelConfig, RunConfig, Scheme
from datafree.errors import ConfigError
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.models import load_teacher
from datafree.reconstruction import _learn
from datafree.reconstruction._learn import Task
from datafree.reconstruction.adaround import AdaRound
from datafree.reconstruction.base import Reconstructor
from datafree.reconstruction.qdrop import QDrop
from datafree.reconstruction.straight import Straight
from datafree.runs.plan import make_plan
from datafree.testing.networks import InPlaceResidual, images, ready

QUICK: dict[str, Any] = {"iterations": 3, "batch_size": 24, "lr_factor": 1.0}


class WithoutLinear(nn.Module):
    """Answers come from a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3))


def student_of(folded: fx.GraphModule, x: Tensor, bits: str = "W2A4") -> fx.GraphModule:
    student = insert_quantizers(folded, Scheme(bits=bits, weight_range="mse"))
    calibrate(student, [x], MSE(), observe="float")
    return student


def prepared() -> tuple[fx.GraphModule, fx.GraphModule, Tensor]:
    torch.manual_seed(0)
    folded = fold_batch_norms(ready(InPlaceResidual()))
    x = images(24, 5)
    return folded, student_of(folded, x), x


def read_by_the_last(
    network: fx.GraphModule, x: Tensor, run: Callable[[Tensor], Any] | None = None
) -> Tensor:
    """By a hook, no matter how the graph is cut; `run` passes the images, or `network` does."""
    layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
    found: list[Tensor] = []
    hook = layers[-1].register_forward_pre_hook(lambda _, given: found.append(given[0]))
    with torch.no_grad():
        (run or network)(x)
    hook.remove()
    return found[-1]


def losses(
    method: Reconstructor, folded: fx.GraphModule, student: fx.GraphModule, x: Tensor
) -> list[tuple[Task, float]]:
    """The unit and the loss of every step."""
    seen: list[tuple[Task, float]] = []
    inner = _learn._loss

    def loss(task: Task, index: Tensor, generator: torch.Generator) -> Tensor:
        found = inner(task, index, generator)
        seen.append((task, float(found.detach())))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_learn, "_loss", loss)
        method.reconstruct(folded, student, x)
    return seen


class Replaced(fx.Interpreter):
    """A network in which the value of one node is another network's."""

    def __init__(self, network: fx.GraphModule, name: str, value: Tensor) -> None:
        super().__init__(network)
        self.name, self.value = name, value

    def run_node(self, n: fx.Node) -> Any:
        return self.value if n.name == self.name else super().run_node(n)


def value_at(network: fx.GraphModule, name: str, x: Tensor) -> Tensor:
    values = fx.Interpreter(network, garbage_collect_values=False)
    values.run(x)
    return next(value for node, value in values.env.items() if node.name == name)


def firsts(seen: list[tuple[Task, float]]) -> list[tuple[Task, float]]:
    """The first step of every unit."""
    return list({task.unit.end: (task, loss) for task, loss in reversed(seen)}.values())[::-1]


def test_behind_the_float_block_comes_what_the_last_layer_reads() -> None:
    folded, student, x = prepared()
    wanted = read_by_the_last(folded, x)
    units = firsts(losses(AdaRound(**QUICK, unit="block", feature_share=0.5), folded, student, x))
    assert len(units) > 2
    for task, _ in units[:-1]:
        assert task.features is not None
        every = slice(0, len(x))
        with torch.no_grad():
            behind = task.features.network(task.targets[every])
        torch.testing.assert_close(behind, wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(task.features.wanted[every], wanted)
    assert units[-1][0].features is None, "behind the last layer there is nothing it reads"


def test_before_anything_is_learned_both_errors_are_as_large() -> None:
    """All images in one batch, none of them float: any share leaves the first loss as it is.

    The weights are learned straight through, so that the first step has those to the nearest.
    """
    plain = Straight(**QUICK, drop=0.0)
    alone = firsts(losses(plain, *prepared()))
    shared = firsts(losses(plain.model_copy(update={"feature_share": 0.75}), *prepared()))
    (_, first), (task, second) = alone[0], shared[0]
    assert second == pytest.approx(first, rel=1e-4)
    assert task.features is not None
    wanted, every = task.features.wanted, torch.arange(24)
    folded, student, x = prepared()
    with torch.no_grad():
        value = value_at(student, task.unit.end, x)
        replaced = Replaced(folded, task.unit.end, value)
        given = read_by_the_last(folded, x, replaced.run)
        distance = (given - wanted[every]).square().sum(1).mean()
    assert task.features.weight == pytest.approx(0.75 * first / float(distance), rel=1e-3)


def test_features_come_nearer_than_without_it() -> None:
    """On a trained network, whose features say something."""
    teacher = load_teacher(ModelConfig(source="digits_resnet8"))
    folded = fold_batch_norms(capture(teacher.model, teacher.spec))
    x = images(64, 0, teacher.spec.shape)
    wanted = read_by_the_last(folded, x)
    found: list[float] = []
    for share in (0.0, 0.9):
        student = student_of(folded, x)
        method = Straight(iterations=100, batch_size=16, feature_share=share)
        method.reconstruct(folded, student, x)
        found.append(float((read_by_the_last(student, x) - wanted).square().mean()))
    assert found[1] < 0.8 * found[0]


def test_without_a_weight_nothing_of_it_is_made() -> None:
    assert all(task.features is None for task, _ in losses(AdaRound(**QUICK), *prepared()))


def test_layers_inside_a_block_go_without_it() -> None:
    method = AdaRound(**QUICK, unit="layer", feature_share=0.5)
    ends = {task.unit.end: task.features is not None for task, _ in losses(method, *prepared())}
    assert set(ends.values()) == {True, False}


def test_a_network_without_a_linear_layer_is_refused() -> None:
    torch.manual_seed(0)
    folded = fold_batch_norms(ready(WithoutLinear()))
    x = images(8, 0)
    student = student_of(folded, x)
    with pytest.raises(ConfigError, match="this network has none: leave it out"):
        AdaRound(**QUICK, feature_share=0.5).reconstruct(folded, student, x)
    AdaRound(**QUICK, prediction_weight=1.0).reconstruct(folded, student, x)


def test_a_run_is_refused_before_its_images_are_made() -> None:
    torch.manual_seed(0)
    config = RunConfig(
        model="memory", method="noise", reconstruction="qdrop",
        reconstruction_options={"feature_share": 0.5},
    )  # fmt: skip
    spec = InputSpec(shape=(3, 8, 8), classes=4, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(ConfigError, match="feature_share is of what the last linear layer reads"):
        make_plan(config, ready(WithoutLinear()), spec, given=False)


def test_what_comes_behind_takes_its_time() -> None:
    """Eleven blocks: behind the first lie ten, behind the last none; five on average."""
    alone = QDrop(iterations=10, batch_size=2)
    one, two = ({"feature_share": 0.5}, {"feature_share": 0.5, "prediction_weight": 1.0})
    assert alone.passes(100, 11) == 2 * 20
    assert alone.model_copy(update=one).passes(100, 11) == 20 * (2 + 5)
    assert alone.model_copy(update=two).passes(100, 11) == 20 * (2 + 10)
