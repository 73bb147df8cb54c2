"""Layers chosen by name or pattern, as they come out in a student."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

from datafree.calibrators.base import calibrate
from datafree.calibrators.minmax import MinMax
from datafree.config import Scheme
from datafree.errors import ConfigError
from datafree.graph.chosen import kept_in_float
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers, weight_bits
from datafree.graph.outputs import structured, together
from datafree.graph.widths import activation_widths
from datafree.quant.modules import QUANTIZED, ActivationQuantizer
from networks import captured, images

LAYERS = ("stem", "depthwise", "pointwise", "grouped", "linear")
PATTERNS = st.sampled_from((*LAYERS, "*", "*wise", "[sg]*", "?inear"))


@lru_cache
def folded() -> fx.GraphModule:
    return fold_batch_norms(captured("Grouped"))


def made(**scheme: Any) -> fx.GraphModule:
    return insert_quantizers(folded(), Scheme(**scheme))


def inputs(student: fx.GraphModule) -> dict[str, int | None]:
    """Bits of what every layer reads; None where no quantizer stands directly before it."""
    found: dict[str, int | None] = {}
    for node in student.graph.nodes:
        if node.op == "call_module" and str(node.target) in LAYERS:
            before = node.all_input_nodes[0]
            module = student.get_submodule(str(before.target)) if before.op == "call_module" else 0
            own = isinstance(module, ActivationQuantizer)
            found[str(node.target)] = module.grid.bits if own else None  # pyright: ignore
    return found


@settings(deadline=None, max_examples=30)
@given(st.dictionaries(PATTERNS, st.sampled_from((3, "W5A6", "W8A8")), max_size=3))
def test_every_layer_has_the_bits_its_name_asks_for(given: dict[str, int | str]) -> None:
    found = weight_bits(folded(), Scheme(bits="W4A4", layer_bits=given))
    for name in LAYERS:
        fitting = [width for pattern, width in given.items() if fnmatchcase(name, pattern)]
        asked = given.get(name, fitting[-1] if fitting else 4)
        assert found[name] == {3: 3, "W5A6": 5, "W8A8": 8}.get(asked, asked)


@settings(deadline=None, max_examples=20)
@given(st.sets(st.sampled_from(LAYERS), min_size=1, max_size=4))
def test_layers_kept_in_float_compute_with_their_own_weights(kept: set[str]) -> None:
    student = made(bits="W2A4", keep_float=tuple(kept), placement="every_input")
    assert kept_in_float(student) == tuple(sorted(kept))
    for name in LAYERS:
        layer = student.get_submodule(name)
        assert isinstance(layer, QUANTIZED) is (name not in kept)
        assert torch.equal(layer.weight, folded().get_submodule(name).weight)  # pyright: ignore
    assert {name for name, bits in inputs(student).items() if bits is None} == kept


def test_all_quantizers_off_but_the_float_layers() -> None:
    """With one layer quantized to 8 bits the rest is float to the last bit in front of it."""
    student = made(bits="W8A8", keep_float=LAYERS[:-1], placement="every_input")
    calibrate(student, [images(8)], MinMax())
    seen: dict[str, torch.Tensor] = {}

    def note(key: str) -> Any:
        def hook(_: nn.Module, __: Any, output: torch.Tensor) -> None:
            seen[key] = output

        return hook

    for key, network in (("float", folded()), ("student", student)):
        handle = network.get_submodule("grouped").register_forward_hook(note(key))
        network(images(4))
        handle.remove()
    assert torch.equal(seen["float"], seen["student"])


@pytest.mark.parametrize("placement", ["every_input", "after_activation"])
def test_inputs_have_bits_of_their_own(placement: str) -> None:
    student = made(bits="W4A4", placement=placement, layer_bits={"pointwise": "W4A7", "linear": 2})
    widths = activation_widths(student)
    assert widths["pointwise"] == {7}
    assert widths["linear"] == {4}
    assert student.get_submodule("linear").weight_quantizer.grid.bits == 2  # pyright: ignore


def test_what_two_layers_read_has_the_bits_of_the_more_demanding_one() -> None:
    """Both convolutions of a residual block's start read the same tensor."""

    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.two = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.stem(x).relu()
            return (self.one(y) + self.two(y)).mean((2, 3))

    graph = captured_module(Fork())
    for asked, expected in (({"one": "W4A6"}, 6), ({"one": "W4A3"}, 4), ({"*": "W4A3"}, 3)):
        student = insert_quantizers(graph, Scheme(bits="W4A4", layer_bits=asked))
        assert activation_widths(student)["two"] == {expected}
    kept = insert_quantizers(graph, Scheme(bits="W4A4", target="onnxruntime", keep_float=("one",)))
    assert activation_widths(kept)["two"] == {8}


def captured_module(module: nn.Module) -> fx.GraphModule:
    from datafree.config import InputSpec
    from datafree.graph.capture import capture

    spec = InputSpec(shape=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3, classes=3)
    return capture(module.eval(), spec)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep_float": ("depthwyse",)}, "unknown layer in keep_float 'depthwyse': did you mean"),
        ({"keep_float": ("point?",)}, r"no layer .* called 'point\?'; the nearest are pointwise"),
        ({"layer_bits": {"deep*": 3}}, r"layer_bits: no layer .* called 'deep\*'; the nearest"),
        (
            {"layer_bits": {"*wise": 3}, "keep_float": ("depthwise",)},
            r"keep_float by its name leaves depthwise in float and layer_bits '\*wise' gives it"
            r" bits \(3\): take it out of one",
        ),
        ({"keep_float": ("*",)}, r"keep_float \* leaves all 5 layers in float"),
    ],
)
def test_names_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(**fields)


def test_a_part_of_the_network_is_no_layer() -> None:
    graph = fold_batch_norms(captured_module(nn.Sequential(nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1)), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )))  # fmt: skip
    with pytest.raises(ConfigError, match=r"0 is no layer but a part .* 2 layers .* write 0\.\*"):
        insert_quantizers(graph, Scheme(keep_float=("0",)))


def test_what_is_kept_survives_copies() -> None:
    student = made(keep_float=("grouped",))
    assert kept_in_float(structured(student)) == ("grouped",)
    assert kept_in_float(together(structured(student))) == ("grouped",)
