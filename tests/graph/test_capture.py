from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export

from datafree.errors import CaptureError
from datafree.graph.capture import capture, to_device
from datafree.graph.fold import fold_batch_norms
from datafree.testing.watching import fingerprint
from networks import NETWORKS, SPEC, build, captured, images, randomized

pytestmark = pytest.mark.integration

DYNAMIC = {0: Dim("batch", min=1)}


def targets(module: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in module.graph.nodes if node.op == "call_module"]


def exported(model: nn.Module, **kwargs: Any) -> ExportedProgram:
    return export(model, (images(2),), dynamic_shapes=(DYNAMIC,), **kwargs)


def no_hook(*_: Any) -> None:
    return


class Base(nn.Module):
    """A convolution, a batch norm and a linear layer that subclasses put together."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.linear = nn.Linear(4, 5)

    def classify(self, x: Tensor) -> Tensor:
        return self.linear(x.mean((2, 3)))


@pytest.mark.parametrize("name", list(NETWORKS))
def test_equals_the_original_at_any_batch_and_leaves_it_alone(name: str) -> None:
    model = build(name)
    before = fingerprint(model)
    graph = capture(model, SPEC)
    assert fingerprint(model) == before
    with torch.no_grad():
        for batch in (1, 3, 5):
            x = images(batch, batch)
            expected = model(x.clone())
            assert expected.std() > 1e-3
            assert torch.equal(graph(x), expected)
            assert torch.equal(x, images(batch, batch))
    assert fingerprint(model) == before
    assert not graph.training
    assert not any(p.requires_grad for p in graph.parameters())


@pytest.mark.parametrize("name", list(NETWORKS))
def test_copies_pickles_and_exports_of_the_graph_work(name: str, tmp_path: Path) -> None:
    graph, x = captured(name), images(3)
    path = tmp_path / "again.pt2"
    torch.export.save(exported(graph), path)
    again = torch.export.load(path)
    copies = [
        copy.deepcopy(graph),
        pickle.loads(pickle.dumps(graph)),
        again.module(check_guards=False),
        capture(again, SPEC),
        to_device(graph, torch.device("cpu")),
    ]
    expected = graph(x)
    for other in copies:
        assert torch.equal(other(x), expected)
    for other in (copies[0], copies[1], copies[4]):
        assert targets(other) == targets(graph)


@pytest.mark.parametrize("training", [True, False])
def test_a_model_in_training_stays_in_training(training: bool) -> None:
    model = build("Dropouts").train(training)
    model.get_submodule("bn").eval()
    model.register_forward_hook(no_hook)
    model.get_parameter("conv.weight").requires_grad_(False)
    before = fingerprint(model)
    graph = capture(model, SPEC)
    assert fingerprint(model) == before
    assert torch.equal(graph(images(3)), model.eval()(images(3)))


def test_a_failed_capture_leaves_the_model_alone() -> None:
    class Fails(Base):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("no such thing")

    model = Fails().train()
    before = fingerprint(model)
    with pytest.raises(CaptureError, match="no such thing"):
        capture(model, SPEC)
    assert fingerprint(model) == before


def test_layers_keep_their_paths_and_share_their_tensors() -> None:
    model, graph = build("Tiny"), captured("Tiny")
    assert targets(graph) == ["conv1", "bn1", "relu1", "conv2", "bn2", "relu2", "linear"]
    graph = capture(model, SPEC)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if "num_batches" not in name:
            assert graph.state_dict()[name].data_ptr() == tensor.data_ptr()
    for name, module in model.named_children():
        assert repr(graph.get_submodule(name)) == repr(module)


def test_functional_layers_are_named_after_their_weights() -> None:
    graph = captured("Functional")
    assert targets(graph) == ["w1", "gain1", "relu", "w2"]
    assert isinstance(graph.get_submodule("w1"), nn.Conv2d)
    assert isinstance(graph.get_submodule("gain1"), nn.BatchNorm2d)
    assert isinstance(graph.get_submodule("w2"), nn.Linear)


def test_activations_called_again_are_layers_of_their_own() -> None:
    paths = targets(captured("InPlaceResidual"))
    assert len([path for path in paths if path.startswith("relu")]) == 3
    assert len(set(paths)) == len(paths) - 1, "conv2 is called twice, and one layer"


def test_tied_layers_are_one_layer() -> None:
    graph = captured("Tied")
    shared = [path for path in targets(graph) if targets(graph).count(path) == 2]
    assert len(set(shared)) == 1
    weights = {id(m.weight) for m in graph.modules() if isinstance(m, nn.Conv2d)}
    assert len(weights) == 2, "stem, and the weight of both others"
    strides = {m.stride for m in graph.modules() if isinstance(m, nn.Conv2d)}
    assert strides == {(1, 1), (2, 2)}


def test_dropout_is_gone() -> None:
    assert targets(captured("Dropouts")) == ["conv", "bn", "relu", "linear"]


CALLS: list[tuple[Callable[[Tensor], Tensor], type[nn.Module]]] = [
    (F.relu, nn.ReLU),
    (torch.relu_, nn.ReLU),
    (F.relu6, nn.ReLU6),
    (lambda x: F.hardtanh(x, 0, 6), nn.ReLU6),
    (lambda x: F.hardtanh(x, -2, 2), nn.Hardtanh),
    (lambda x: F.leaky_relu(x, 0.3), nn.LeakyReLU),
    (lambda x: F.elu(x, 0.7), nn.ELU),
    (F.silu, nn.SiLU),
    (lambda x: F.gelu(x, approximate="tanh"), nn.GELU),
    (F.mish, nn.Mish),
    (F.hardswish, nn.Hardswish),
    (F.hardsigmoid, nn.Hardsigmoid),
    (torch.sigmoid, nn.Sigmoid),
    (torch.tanh, nn.Tanh),
]


@pytest.mark.parametrize(("call", "kind"), CALLS)
def test_activation_functions_become_modules(call: Any, kind: type[nn.Module]) -> None:
    class Net(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.classify(call(self.conv(x)))

    model = Net()
    graph = capture(model, SPEC)
    assert kind in {type(module) for module in graph.modules()}
    assert torch.equal(graph(images(3)), model(images(3)))


class SliceWritten(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y[:, 0] = 0.5
        y[:, 1:2].relu_()
        return self.classify(y)


class ChainInPlace(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = y.relu_()
        z.add_(1)
        return self.classify(y * 2 + z)


class InputInPlace(Base):
    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        return self.classify(self.bn(self.conv(x)))


class WeightUsedTwice(Base):
    """The weight of a folded convolution is also read as it is."""

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.bn(self.conv(x))) + self.conv.weight.sum()


class WeightOfTheRoot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.mean((2, 3)), self.w) + self.w.sum()


class NormWithoutBias(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(self.conv(x), self.bn.running_mean, self.bn.running_var, self.bn.weight)
        return self.classify(x)


class NormWithoutWeight(Base):
    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.bn.running_mean, self.bn.running_var
        return self.classify(F.batch_norm(self.conv(x), mean, var, None, self.bn.bias))


class TokenNorm(nn.Module):
    """A batch norm over tokens, as many as the linear layer before it has features."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn, self.out = nn.Linear(64, 3), nn.BatchNorm1d(3), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.bn(self.fc(x.flatten(2))).flatten(1))


class TokenNormFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv1d(3, 64, 1), nn.BatchNorm1d(64), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn(torch.relu(self.conv(x.flatten(2))))).mean(1)


ODD = (
    SliceWritten, ChainInPlace, InputInPlace, WeightUsedTwice, WeightOfTheRoot, NormWithoutBias,
    NormWithoutWeight, TokenNorm, TokenNormFirst,
)  # fmt: skip


@pytest.mark.parametrize("make", ODD)
def test_odd_networks_are_captured_and_folded(make: type[nn.Module]) -> None:
    model = randomized(make(), images(8))
    graph = capture(model, SPEC)
    folded = fold_batch_norms(graph)
    for batch in (1, 3):
        expected = model(images(batch))
        assert torch.equal(graph(images(batch)), expected)
        torch.testing.assert_close(folded(images(batch)), expected, rtol=1e-4, atol=1e-5)


class Casts(Base):
    """To the numbers that tensors have already, in all spellings; and to others and back."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.to(self.conv.weight.dtype)).to(torch.float32)
        x = self.bn(x.to(self.bn.weight)).float().to("cpu", torch.float32)
        return self.classify(torch.relu(x).double().float())


class KernelsInBuffers(nn.Module):
    """A blur and a projection that are no parameters, as fixed filters are kept."""

    blur: Tensor
    projection: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("blur", torch.rand(4, 1, 3, 3))
        self.register_buffer("projection", torch.rand(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(self.conv(x), self.blur, groups=4)
        return F.linear(x.mean((2, 3)), self.projection)


def test_kernels_in_buffers_are_layers() -> None:
    model = KernelsInBuffers().eval()
    found = capture(model, SPEC)
    assert targets(found) == ["conv", "blur", "projection"]
    with torch.no_grad():
        torch.testing.assert_close(found(images(3)), model(images(3)))


def test_casts_that_change_nothing_are_no_part_of_the_graph() -> None:
    graph = capture(randomized(Casts(), images(8)), SPEC)
    kinds = [node.args[1] for node in graph.graph.nodes if "aten.to" in str(node.target)]
    assert kinds == [torch.float64, torch.float32]
    assert targets(fold_batch_norms(graph)) == ["conv", "relu", "linear"]


def test_devices_in_calls_move_along() -> None:
    class Fresh(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.classify(self.conv(x)) + torch.ones(x.shape[0], 1, device=x.device)

    graph = capture(Fresh(), SPEC)
    moved = to_device(graph, torch.device("meta"))
    assert moved(torch.zeros(2, *SPEC.shape, device="meta")).device.type == "meta"
    assert graph(images(2)).device.type == "cpu"
    assert {p.device.type for p in graph.parameters()} == {"cpu"}


def test_value_dependent_control_flow_is_refused_with_its_line() -> None:
    class Branches(Base):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:
                x = x + 1
            return self.classify(self.conv(x))

    with pytest.raises(
        CaptureError, match=r"data-dependent.*test_capture\.py.*torch\.where"
    ) as caught:
        capture(Branches(), SPEC)
    assert "\n" not in str(caught.value)


def test_a_fixed_batch_size_in_the_code_is_refused() -> None:
    class Fixed(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.conv(x).view(2, 4, -1).mean(2))

    with pytest.raises(CaptureError, match=r"any size.*flatten"):
        capture(Fixed(), SPEC)


def test_an_error_without_a_message_is_named() -> None:
    class Silent(Base):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError

    with pytest.raises(CaptureError, match=r"AssertionError.*test_capture\.py"):
        capture(Silent(), SPEC)


def test_a_program_with_a_static_batch_is_refused() -> None:
    program = export(build("Tiny"), (images(2),))
    with pytest.raises(CaptureError, match=r"batch of 3.*dynamic_shapes"):
        capture(program, SPEC)


@pytest.mark.parametrize("as_program", [True, False])
def test_several_inputs_are_refused(as_program: bool) -> None:
    class Two(Base):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.classify(self.conv(x + y))

    model = Two().eval()
    program = export(model, (images(2), images(2)), dynamic_shapes=(DYNAMIC, DYNAMIC))
    with pytest.raises(CaptureError, match="give input_shape of each"):
        capture(program if as_program else model, SPEC)


@pytest.mark.parametrize("as_program", [True, False])
def test_several_outputs_are_those_of_a_teacher(as_program: bool) -> None:
    class Outputs(Base):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"logits": self.classify(self.conv(x)), "more": (x, x + 1)}

    model = Outputs().eval()
    with pytest.raises(CaptureError, match="come as a teacher"):
        capture(exported(model) if as_program else model, SPEC)


def test_one_output_in_a_container_is_taken() -> None:
    class Wrapped(Base):
        def forward(self, x: Tensor) -> Any:
            return {"logits": (self.classify(self.conv(x)),)}

    model = Wrapped().eval()
    try:
        graph = capture(model, SPEC)
    except CaptureError as error:
        assert "must return one tensor" in str(error)
    else:
        assert torch.equal(graph(images(2)), model(images(2))["logits"][0])


def test_feature_maps_are_no_logits() -> None:
    class Map(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    with pytest.raises(CaptureError, match="must return one tensor"):
        capture(Map(), SPEC)


@pytest.mark.parametrize("name", ["Tiny", "Dropouts"])
def test_programs_in_training_mode_are_refused_unchanged(name: str) -> None:
    program = exported(build(name).train())
    before = {key: value.clone() for key, value in program.state_dict.items()}
    with pytest.raises(CaptureError, match=r"training mode: call model\.eval"):
        capture(program, SPEC)
    assert all(map(torch.equal, program.state_dict.values(), before.values()))


def test_dropout_that_never_stops_is_refused() -> None:
    class Forever(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.classify(F.dropout(self.conv(x)))

    with pytest.raises(CaptureError, match=r"training=self\.training"):
        capture(Forever(), SPEC)


def test_names_that_fx_uses_are_refused() -> None:
    class Named(Base):
        def __init__(self) -> None:
            super().__init__()
            self.graph = nn.Sequential(nn.Conv2d(4, 4, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.classify(self.graph(self.conv(x)))

    with pytest.raises(CaptureError, match="rename"):
        capture(Named(), SPEC)


def test_a_graph_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from datafree.graph import lift

    monkeypatch.setitem(lift._RULES, "relu", lambda _: nn.ReLU6())

    class Loud(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.classify(torch.relu(100 * self.conv(x)))

    with pytest.raises(CaptureError, match="differs from the model by"):
        capture(Loud(), SPEC)


def test_no_call_of_a_quantizable_operator_is_left_behind() -> None:
    for name in NETWORKS:
        if name == "CustomModules":  # one of its weights is computed
            continue
        calls = [n.target for n in captured(name).graph.nodes if n.op == "call_function"]
        names = {getattr(call, "overloadpacket", operator.add) for call in calls}
        assert not names & {torch.ops.aten.conv2d, torch.ops.aten.linear, torch.ops.aten.batch_norm}
