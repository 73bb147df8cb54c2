"""Every reason, shown to the runtime itself: it is given where the layer does run in float."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from datafree.runtimes import UNKNOWN
from datafree.runtimes._reasons import ON_PURPOSE
from datafree.runtimes.base import Kernels, Runtime
from datafree.runtimes.onnxruntime import OnnxRuntime
from datafree.runtimes.openvino import OpenVINO
from onnx_graphs import Draft, conv, saved

Case = Callable[[Draft], onnx.ModelProto]


def quantizer_behind(draft: Draft) -> onnx.ModelProto:
    return draft.model(draft.quantized(conv(draft), "o"))


def relu_and_quantizer(draft: Draft) -> onnx.ModelProto:
    return draft.model(draft.quantized(draft.node("Relu", [conv(draft)], "r"), "o"))


def relu6(draft: Draft, scale: float, zero: int = 0) -> onnx.ModelProto:
    bounds = [draft.constant("low", np.float32(0)), draft.constant("high", np.float32(6))]
    clipped = draft.node("Clip", [conv(draft), *bounds], "r")
    return draft.model(draft.quantized(clipped, "o", scale=scale, zero=zero))


def relu6_within_its_codes(draft: Draft) -> onnx.ModelProto:
    return relu6(draft, 6 / 255)


def with_int32_bias(draft: Draft, factor: float = 1.0) -> onnx.ModelProto:
    source = draft.quantized("x", "xq")
    given = [draft.weight("w", (8, 8, 3, 3)), draft.bias("b", 8, factor=factor)]
    return draft.model(draft.quantized(draft.node("Conv", [source, *given], "y"), "o"))


def gemm(draft: Draft, bias: str) -> str:
    source, given = draft.quantized("x", "xq"), draft.weight("net.head.weight", (4, 8))
    return draft.node("Gemm", [source, given, bias], "y", name="net.head", transB=1)


def head_with_int32_bias(draft: Draft) -> onnx.ModelProto:
    return draft.model(gemm(draft, draft.bias("b", 4)), shape=("n", 8))


def head_without_bias(draft: Draft) -> onnx.ModelProto:
    given = [draft.quantized("x", "xq"), draft.weight("w", (8, 4), axis=1)]
    return draft.model(draft.node("MatMul", given, "y"), shape=("n", 8))


def product_with_added_bias(draft: Draft) -> onnx.ModelProto:
    given = [draft.quantized("x", "xq"), draft.weight("w", (8, 4), axis=1)]
    bias = draft.constant("b", np.ones(4, np.float32))
    added = draft.node("Add", [draft.node("MatMul", given, "y"), bias], "added")
    return draft.model(draft.quantized(added, "o"), shape=("n", 8))


def int4_with_cast(draft: Draft) -> onnx.ModelProto:
    return narrow_weights(draft, cast=True)


def narrow_weights(draft: Draft, *, cast: bool) -> onnx.ModelProto:
    """Codes of 4 bits; the zero points are of the type that DequantizeLinear then reads."""
    codes, shape = bytes(8 * 8 * 9 // 2), (8, 8, 3, 3)
    stored = "net.conv.weight_quantized"
    draft.initializers.append(helper.make_tensor(stored, TensorProto.INT4, shape, codes, raw=True))
    scale = draft.constant("scale", np.full(8, 0.01, np.float32))
    if cast:
        stored = draft.node("Cast", [stored], "wide", to=TensorProto.INT8)
        zero = draft.constant("zero", np.zeros(8, np.int8))
    else:
        zero = "zero"
        draft.initializers.append(
            helper.make_tensor(zero, TensorProto.INT4, (8,), bytes(4), raw=True)
        )
    weight = draft.node("DequantizeLinear", [stored, scale, zero], "w", axis=0)
    y = draft.node("Conv", [draft.quantized("x", "xq"), weight], "y")
    return draft.model(draft.quantized(y, "o"))


INTEGER = [
    quantizer_behind, relu_and_quantizer, relu6_within_its_codes, with_int32_bias,
    head_with_int32_bias, head_without_bias, product_with_added_bias, int4_with_cast,
]  # fmt: skip


def float_layer(draft: Draft) -> onnx.ModelProto:
    weight = draft.constant("net.conv.weight", np.ones((8, 8, 3, 3), np.float32))
    return draft.model(draft.node("Conv", ["x", weight], "y", name="node_conv2d"))


def weights_alone(draft: Draft) -> onnx.ModelProto:
    return draft.model(draft.quantized(conv(draft, "x"), "o"))


def input_alone(draft: Draft) -> onnx.ModelProto:
    weight = draft.constant("w", np.ones((8, 8, 3, 3), np.float32))
    return draft.model(draft.node("Conv", [draft.quantized("x", "xq"), weight], "y"))


def output_of_the_network(draft: Draft) -> onnx.ModelProto:
    return draft.model(conv(draft))


def read_by_an_add(draft: Draft) -> onnx.ModelProto:
    other = draft.quantized("x", "xq")
    y = conv(draft, other)
    pooled = draft.node("MaxPool", [other], "p", kernel_shape=[3, 3])
    return draft.model(draft.quantized(draft.node("Add", [y, pooled], "sum"), "o"))


def read_twice(draft: Draft) -> onnx.ModelProto:
    y = conv(draft)
    one = draft.quantized(draft.node("Sigmoid", [y], "s"), "a")
    draft.outputs.append(one)
    return draft.model(draft.quantized(y, "o"))


def two_quantizers(draft: Draft) -> onnx.ModelProto:
    y = conv(draft)
    draft.outputs.append(draft.quantized(y, "a", scale=0.1))
    return draft.model(draft.quantized(y, "o"))


def zero_point_behind_relu(draft: Draft) -> onnx.ModelProto:
    return draft.model(draft.quantized(draft.node("Relu", [conv(draft)], "r"), "o", zero=3))


def signed_codes_behind_relu(draft: Draft) -> onnx.ModelProto:
    source = draft.quantized("x", "xq", kind=np.int8)
    relu = draft.node("Relu", [conv(draft, source)], "r")
    return draft.model(draft.quantized(relu, "o", kind=np.int8))


def large_scale_behind_relu6(draft: Draft) -> onnx.ModelProto:
    return relu6(draft, 0.05)


def bias_on_its_own(draft: Draft) -> onnx.ModelProto:
    bias = draft.constant("b", np.ones((8, 1, 1), np.float32))
    return draft.model(draft.quantized(draft.node("Add", [conv(draft), bias], "added"), "o"))


def bias_with_another_scale(draft: Draft) -> onnx.ModelProto:
    return with_int32_bias(draft, factor=1.1)


def head_with_float_bias(draft: Draft) -> onnx.ModelProto:
    return draft.model(gemm(draft, draft.constant("b", np.ones(4, np.float32))), shape=("n", 8))


def typed_int4(draft: Draft) -> onnx.ModelProto:
    return narrow_weights(draft, cast=False)


def sixteen_bits(draft: Draft) -> onnx.ModelProto:
    source = draft.quantized("x", "xq", kind=np.uint16, scale=0.001)
    return draft.model(draft.quantized(conv(draft, source), "o", kind=np.uint16))


def clipped_int8_codes(draft: Draft) -> onnx.ModelProto:
    return clipped_codes(draft, np.int8)


def clipped_codes(draft: Draft, kind: type[np.integer]) -> onnx.ModelProto:
    given = [draft.constant("s", np.float32(0.05)), draft.constant("z", kind(0))]
    draft.node("QuantizeLinear", ["x", *given], "wide")
    bounds = [draft.constant("low", kind(0)), draft.constant("high", kind(15))]
    narrow = draft.node("Clip", ["wide", *bounds], "narrow")
    source = draft.node("DequantizeLinear", [narrow, *given], "xq")
    return draft.model(draft.quantized(conv(draft, source), "o", kind=kind))


def float_clip_in_front(draft: Draft) -> onnx.ModelProto:
    relu = draft.node("Relu", [conv(draft)], "r")
    bounds = [draft.constant("low", np.float32(0)), draft.constant("high", np.float32(0.75))]
    clipped = draft.node("Clip", [relu, *bounds], "c")
    return draft.model(draft.quantized(clipped, "o"))


def transposed(draft: Draft, zero: int = 0) -> onnx.ModelProto:
    source = draft.quantized("x", "xq", zero=zero)
    weight = draft.weight("w", (8, 8, 3, 3), axis=1)
    return draft.model(draft.quantized(draft.node("ConvTranspose", [source, weight], "y"), "o"))


def transposed_from_other_zero(draft: Draft) -> onnx.ModelProto:
    return transposed(draft, zero=5)


def recurrent(draft: Draft) -> onnx.ModelProto:
    source = draft.quantized("x", "xq")
    weights = [draft.weight("w", (1, 32, 6), axis=1), draft.weight("r", (1, 32, 8), axis=1)]
    y = draft.node("LSTM", [source, *weights], "y", hidden_size=8)
    return draft.model(draft.quantized(y, "o"), shape=("steps", 1, 6))


def unsigned_weights(draft: Draft) -> onnx.ModelProto:
    return draft.model(draft.quantized(conv(draft, kind=np.uint8, zero=128), "o"))


def weights_around_another_zero(draft: Draft) -> onnx.ModelProto:
    return draft.model(draft.quantized(conv(draft, zero=3), "o"))


def scales_along_the_sum(draft: Draft) -> onnx.ModelProto:
    given = [draft.quantized("x", "xq"), draft.weight("w", (8, 4), axis=0)]
    return draft.model(draft.quantized(draft.node("MatMul", given, "y"), "o"), shape=("n", 8))


def bias_of_eight_bits(draft: Draft) -> onnx.ModelProto:
    given = [draft.weight("w", (8, 8, 3, 3)), draft.bias("b", 8, kind=np.int8)]
    y = draft.node("Conv", [draft.quantized("x", "xq"), *given], "y")
    return draft.model(draft.quantized(y, "o"))


def four_bits_of_input(draft: Draft) -> onnx.ModelProto:
    given = [draft.constant("s", np.float32(0.5)), "z"]
    draft.initializers.append(helper.make_tensor("z", TensorProto.UINT4, (), b"\0", raw=True))
    codes = draft.node("QuantizeLinear", ["x", *given], "codes")
    source = draft.node("DequantizeLinear", [codes, *given], "xq")
    return draft.model(draft.quantized(conv(draft, source), "o"))


def scales_of_blocks(draft: Draft) -> onnx.ModelProto:
    """Weights (8, 4) with a scale for every four along the sum."""
    given = [
        draft.constant("codes", np.ones((8, 4), np.int8)),
        draft.constant("scales", np.full((2, 4), 0.01, np.float32)),
    ]
    weight = draft.node("DequantizeLinear", given, "w", axis=0, block_size=4)
    y = draft.node("MatMul", [draft.quantized("x", "xq"), weight], "y")
    return draft.model(draft.quantized(y, "o"), shape=("n", 8))


def softmax_in_between(draft: Draft) -> onnx.ModelProto:
    return draft.model(draft.quantized(draft.node("Softmax", [conv(draft)], "s"), "o"))


def an_output_too(draft: Draft) -> onnx.ModelProto:
    y = conv(draft)
    draft.outputs.append(y)
    return draft.model(draft.quantized(y, "o"))


ONNXRUNTIME: dict[Case, tuple[str, str]] = {
    float_layer: (ON_PURPOSE, ""),
    weights_alone: ("its input is not quantized", ""),
    input_alone: ("its weights are not quantized", ""),
    output_of_the_network: ("no quantizer behind it", "an output of the network"),
    read_by_an_add: ("no quantizer behind it", "Add sum"),
    read_twice: ("has several readers", "in float too: Sigmoid s"),
    two_quantizers: ("has several readers", "2 quantizers"),
    zero_point_behind_relu: ("zero point above the lowest code behind Relu", "3, lowest 0"),
    signed_codes_behind_relu: ("zero point above the lowest code behind Relu", "0, lowest -128"),
    large_scale_behind_relu6: ("a scale too large behind Clip", "scale 0.05, at most 6/255"),
    bias_on_its_own: ("its bias is added by an Add of its own", "added"),
    bias_with_another_scale: ("the scale of its bias is not that of input times weights", ""),
    head_with_float_bias: ("no quantizer behind it", "32-bit codes would do"),
    typed_int4: ("int4 weights without a Cast to int8", ""),
    sixteen_bits: ("its input has 16 bits", "uint16"),
    clipped_int8_codes: ("clipped as int8 codes", ""),
    float_clip_in_front: ("a float Clip stands in front of the quantizer", "c"),
    transposed: ("transposed convolution", ""),
    recurrent: ("recurrent layer", ""),
    scales_along_the_sum: ("along the axis that is summed", ""),
    bias_of_eight_bits: ("its bias is quantized to less than 32 bits", "int8"),
    four_bits_of_input: ("its input is typed uint4: integer kernels take 8 bits", ""),
    scales_of_blocks: ("its weights have a scale for every block", ""),
    softmax_in_between: ("no quantizer behind it", "read in float by Softmax s"),
    an_output_too: ("has several readers", "it is an output of the network too"),
}


def read(runtime: Runtime, case: Case, folder: Path) -> Kernels:
    return runtime.kernels(saved(case(Draft()), folder))


@pytest.mark.parametrize("case", INTEGER, ids=lambda case: case.__name__)
def test_onnxruntime_has_integer_kernels(case: Case, tmp_path: Path) -> None:
    found = read(OnnxRuntime(), case, tmp_path)
    assert (found.integer, found.total, found.floats) == (1, 1, ())


@pytest.mark.parametrize("case", ONNXRUNTIME, ids=lambda case: case.__name__)
def test_onnxruntime_runs_it_in_float_for_a_reason(case: Case, tmp_path: Path) -> None:
    found = read(OnnxRuntime(), case, tmp_path)
    assert (found.integer, found.total) == (0, 1)
    reason, detail = ONNXRUNTIME[case]
    assert reason in found.floats[0].reason and found.floats[0].reason != UNKNOWN
    assert detail in found.floats[0].detail


OPENVINO: dict[Case, tuple[str, str]] = {
    float_layer: (ON_PURPOSE, ""),
    weights_alone: ("its input is not quantized", ""),
    input_alone: ("its weights are not quantized", ""),
    typed_int4: ("int4 weights without a Cast to int8", ""),
    unsigned_weights: ("its weights are unsigned", "uint8"),
    weights_around_another_zero: ("zero points other than 0", ""),
    transposed_from_other_zero: ("transposed convolution whose input has a zero point", "5"),
    sixteen_bits: ("its input has 16 bits", "uint16"),
    recurrent: ("recurrent layer", ""),
}
FUSED_FREELY = [
    quantizer_behind, output_of_the_network, read_by_an_add, read_twice, two_quantizers,
    zero_point_behind_relu, large_scale_behind_relu6, bias_on_its_own, head_with_float_bias,
    int4_with_cast,
]  # fmt: skip


@pytest.mark.parametrize("case", FUSED_FREELY, ids=lambda case: case.__name__)
def test_openvino_has_integer_kernels(case: Case, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    found = read(OpenVINO(), case, tmp_path)
    assert (found.integer, found.total, found.floats) == (1, 1, ())


@pytest.mark.parametrize("case", OPENVINO, ids=lambda case: case.__name__)
def test_openvino_runs_it_in_float_for_a_reason(case: Case, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    found = read(OpenVINO(), case, tmp_path)
    assert (found.integer, found.total) == (0, 1)
    reason, detail = OPENVINO[case]
    assert reason in found.floats[0].reason
    assert detail in found.floats[0].detail


@pytest.mark.parametrize("case", [unsigned_weights, weights_around_another_zero])
def test_onnxruntime_takes_any_weights_of_8_bits(case: Case, tmp_path: Path) -> None:
    assert read(OnnxRuntime(), case, tmp_path).integer == 1


def test_layers_without_names_are_called_after_their_weights(tmp_path: Path) -> None:
    assert read(OnnxRuntime(), float_layer, tmp_path).floats[0].name == "net.conv"
