from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from datafree.calibrators.base import calibrate
from datafree.calibrators.minmax import MinMax
from datafree.config import Scheme
from datafree.corrections.bias_correction import correct_biases
from datafree.errors import ConfigError, ModelError
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers, quantizable_layers
from datafree.graph.taps import tap_outputs
from datafree.testing.watching import fingerprint
from networks import NETWORKS, SPEC, captured, images

THREE_BITS = Scheme(bits="W3A4")


def prepared(
    model: str | nn.Module, scheme: Scheme = THREE_BITS, count: int = 130
) -> tuple[fx.GraphModule, fx.GraphModule, Tensor]:
    graph = captured(model) if isinstance(model, str) else capture(model.eval(), SPEC)
    folded = fold_batch_norms(graph)
    student = insert_quantizers(folded, scheme)
    x = images(count, 3)
    calibrate(student, [x], MinMax())
    return folded, student, x


def mean_outputs(graph: fx.GraphModule, x: Tensor) -> dict[str, Tensor]:
    """Means (C,) of what every layer's first call returns, over images and positions."""
    found: dict[str, Tensor] = {}

    def use(name: str, output: Tensor) -> None:
        axes = [0, *range(2, output.ndim)]
        found.setdefault(name, output.double().mean(axes))

    layers = {name: graph.get_submodule(name) for name in quantizable_layers(graph)}
    with torch.no_grad(), tap_outputs(layers, use):
        graph(x)
    return found


def error(folded: fx.GraphModule, student: fx.GraphModule, x: Tensor) -> float:
    with torch.no_grad():
        return float((folded(x) - student(x)).square().mean())


class One(nn.Module):
    """One linear layer of the three channel means."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.mean((2, 3)))


@pytest.mark.parametrize("bias", [True, False])
def test_by_hand(*, bias: bool) -> None:
    """``b - (W^ - W) E[x]``, with images of constant channels 1 and 3, 0 and 2, 4 and 4."""
    folded, student, _ = prepared(One(bias=bias), Scheme(bits="W2A32", policy="all"))
    x = torch.tensor([[1.0, 0, 4], [3, 2, 4]]).view(2, 3, 1, 1).expand(2, 3, 8, 8)
    layer, exact = student.get_submodule("layer"), folded.get_submodule("layer")
    assert isinstance(layer, nn.Linear)
    assert isinstance(exact, nn.Linear)
    quantized = layer.get_submodule("weight_quantizer")(layer.weight)
    shift = (quantized - exact.weight) @ torch.tensor([2.0, 1, 4])
    assert float(shift.abs().max()) > 0.05
    shifts = correct_biases(folded, student, x)
    torch.testing.assert_close(shifts, {"layer": shift})
    before = exact.bias if bias else torch.zeros(5)
    torch.testing.assert_close(layer.bias, before - shift)
    assert ("layer.bias" in folded.state_dict()) == bias


@pytest.mark.parametrize("name", list(NETWORKS))
def test_means_of_all_layers_agree(name: str) -> None:
    folded, student, x = prepared(name)
    before = fingerprint(folded)
    wanted, shifted = mean_outputs(folded, x), mean_outputs(student, x)
    shifts = correct_biases(folded, student, x)
    corrected = mean_outputs(student, x)
    assert list(shifts) == list(wanted) == quantizable_layers(student)
    for layer, mean in wanted.items():
        # Another image on the other side of a rounding step is what is left.
        torch.testing.assert_close(corrected[layer], mean, rtol=1e-3, atol=1e-3)
        assert shifts[layer].shape == mean.shape
    assert any(float((shifted[n] - m).abs().max()) > 0.02 for n, m in wanted.items())
    assert fingerprint(folded) == before
    assert not any(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize("name", list(NETWORKS))
def test_correcting_twice_changes_nothing_more(name: str) -> None:
    folded, student, x = prepared(name)
    once = correct_biases(folded, student, x)
    twice = correct_biases(folded, student, x)
    assert max(float(shift.abs().max()) for shift in once.values()) > 0.02
    assert max(float(shift.abs().max()) for shift in twice.values()) < 1e-3


def test_outputs_come_closer_on_other_images() -> None:
    """Less than half the error on average; where noise outweighs the shifts it may grow (Dense)."""
    ratios: list[float] = []
    y = images(64, 9)
    for name in NETWORKS:
        folded, student, x = prepared(name)
        before = error(folded, student, y)
        correct_biases(folded, student, x)
        ratios.append(error(folded, student, y) / before)
    assert float(torch.tensor(ratios).log().mean().exp()) < 0.5
    assert sum(ratio < 1 for ratio in ratios) >= len(ratios) - 1


def test_only_biases_change() -> None:
    folded, student, x = prepared("Grouped")
    before = {name: value.clone() for name, value in student.state_dict().items()}
    correct_biases(folded, student, x)
    after = student.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {f"{name}.bias" for name in quantizable_layers(student)}


def test_values_on_disk_give_the_same() -> None:
    folded, student, x = prepared("Tiny")
    _, other, _ = prepared("Tiny")
    in_memory = correct_biases(folded, student, x)
    on_disk = correct_biases(folded, other, x, memory_gb=1e-9)
    torch.testing.assert_close(on_disk, in_memory, rtol=0, atol=0)


def test_what_is_refused() -> None:
    folded, student, x = prepared("Tiny")
    with pytest.raises(ConfigError, match="needs images"):
        correct_biases(folded, student, x[:0])
    fresh = insert_quantizers(folded, THREE_BITS)
    with pytest.raises(ModelError, match="calibrate the student first"):
        correct_biases(folded, fresh, x)
    with pytest.raises(ModelError, match="conv1 in the float network"):
        correct_biases(folded, student, x * float("inf"))
    with torch.no_grad():
        student.get_parameter("conv2.bias")[0] = float("nan")
    with pytest.raises(ModelError, match="conv2 in the student"):
        correct_biases(folded, student, x)
