"""One line for a student that is slower than float."""

from __future__ import annotations

import pytest

from datafree.runtimes import FloatLayer, Kernels, Latency, advice

VNNI = ("AVX-512 VNNI",)
ALL_INTEGER = Kernels(20, 20, ())


def times(base: float, student: float, threads: int = 1) -> list[Latency]:
    return [
        Latency(file, threads, 1, value, value, value, 9)
        for file, value in (("float", base), ("student", student))
    ]


def some_float(reason: str) -> Kernels:
    return Kernels(0, 2, (FloatLayer("a", "Conv", reason), FloatLayer("b", "Conv", reason)))


@pytest.mark.parametrize("student", [1.0, 2.0, 2.08])
def test_a_student_that_is_not_slower_needs_none(student: float) -> None:
    assert advice(ALL_INTEGER, times(2.0, student), VNNI, runtime="onnxruntime") is None


@pytest.mark.parametrize(
    ("kernels", "milliseconds", "instructions", "parts"),
    [
        (some_float("no quantizer behind it"), 2.0, VNNI,
         ("2 of 2 layers run in float", "no quantizer behind it", "--target onnxruntime")),
        (some_float("its weights are unsigned: …"), 2.0, VNNI, ("--target onnxruntime",)),
        (Kernels(20, 20, (), shifted=20), 2.0, VNNI, ("20 layers", "--target onnxruntime")),
        (Kernels(20, 20, (), shifted=20, scattered=5), 2.0, VNNI,
         ("5 depthwise", "channel to channel", "--target onnxruntime")),
        (Kernels(1, 9, 8 * (FloatLayer("a", "Conv", "why", share=0.01),), shifted=1), 2.0, VNNI,
         ("unsigned or have zero points",)),
        (Kernels(20, 20, (), depthwise=10), 2.0, VNNI, ("depthwise", "10 of 20")),
        (ALL_INTEGER, 0.1, VNNI, ("so small a network",)),
        (ALL_INTEGER, 2.0, (), ("no instructions for 8-bit products",)),
        (ALL_INTEGER, 2.0, VNNI, ("openvino",)),
        (ALL_INTEGER, 2.0, None, ("openvino",)),
    ],
)  # fmt: skip
def test_the_remedy_fits_the_cause(
    kernels: Kernels,
    milliseconds: float,
    instructions: tuple[str, ...] | None,
    parts: tuple[str, ...],
) -> None:
    told = advice(
        kernels, times(milliseconds, 1.5 * milliseconds), instructions, runtime="onnxruntime"
    )
    assert told is not None and "\n" not in told
    assert told.startswith("Slower than float (1.50 times the time with 1 thread, batch 1)")
    for part in parts:
        assert part in told


def test_one_thread_decides() -> None:
    latencies = times(2.0, 1.0) + times(1.0, 3.0, threads=8)
    assert advice(ALL_INTEGER, latencies, VNNI, runtime="onnxruntime") is None
