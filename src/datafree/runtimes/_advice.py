"""One line for a student that is slower than its float network: the likely cause, and a remedy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from datafree.runtimes.base import KEPT, Kernels, Latency

SLOWER = 1.05  # medians of two equal files differ by less on a machine that does nothing else
_MANY_FLOAT = 0.25  # share of the time
_MANY_DEPTHWISE = 0.3  # share of the layers
_SMALL = 0.3  # milliseconds of one image in float
_REMEDIES = {
    "its weights are unsigned": "quantize with --target onnxruntime",
    "its weights have zero points": "quantize with --target onnxruntime",
    "int4 weights": "quantize weights to 8 bits",
    "uint4 weights": "quantize weights to 8 bits",
    "a float Clip": "quantize activations to 8 bits",
    "its input is not quantized": "quantize activations too",
    KEPT: "name fewer in keep_float",
}
"""By how a reason begins."""


def advice(
    kernels: Kernels,
    latencies: Sequence[Latency],
    instructions: tuple[str, ...] | None,
    *,
    runtime: str,
    float_file: str = "float",
    student: str = "student",
) -> str | None:
    """What to do about a student that is slower than its float network.

    Args:
        kernels: of the student's file.
        latencies: of both files.
        instructions: of the processor, for products of 8-bit integers; None if not known.
        runtime: its name, which is that of the target to quantize for.
        float_file: what `latencies` call the float network.
        student: what they call the student.

    Returns:
        One line, or None where the student is not slower in any setting with the fewest threads.
    """
    times = {(found.threads, found.batch, found.file): found.milliseconds for found in latencies}
    # With few threads a busy machine disturbs least, so that these decide.
    fewest = min(found.threads for found in latencies)
    factors = {
        (threads, batch): times[threads, batch, student] / times[threads, batch, float_file]
        for threads, batch, file in times
        if file == student and threads == fewest
    }
    (threads, batch), factor = max(factors.items(), key=lambda item: item[1])
    if factor <= SLOWER:
        return None
    where = f"{threads} thread{'s' if threads > 1 else ''}, batch {batch}"
    smallest = min(f.milliseconds / f.batch for f in latencies if f.file == float_file)
    cause = _cause(kernels, smallest, instructions, runtime)
    return f"Slower than float ({factor:.2f} times the time with {where}): {cause}."


def _cause(
    kernels: Kernels, smallest: float, instructions: tuple[str, ...] | None, runtime: str
) -> str:
    """The likeliest cause, and what to do about it."""
    if kernels.scattered:
        return (
            f"in {kernels.scattered} depthwise convolutions the weights' zero points differ from"
            " channel to channel, which takes a very slow kernel; quantize with"
            " --target onnxruntime"
        )
    if _share(kernels) > _MANY_FLOAT:
        ((reason, _),) = Counter(layer.reason for layer in kernels.floats).most_common(1)
        known = (text for start, text in _REMEDIES.items() if reason.startswith(start))
        count = f"{len(kernels.floats)} of {kernels.total} layers"
        remedy = next(known, f"quantize with --target {runtime}")
        return f"{count} run in float, most often because: {reason}; {remedy}"
    if kernels.shifted:
        return (
            f"the weights of {kernels.shifted} layers are unsigned or have zero points, which takes"
            " slower kernels; quantize with --target onnxruntime"
        )
    if kernels.depthwise > _MANY_DEPTHWISE * kernels.total:
        count = f"{kernels.depthwise} of {kernels.total} layers"
        return (
            f"{count} are depthwise convolutions, whose integer kernels are slower than float ones;"
            " try --runtime openvino, or keep the file for its size"
        )
    if smallest < _SMALL:
        return (
            "in so small a network quantizing takes longer than its products; run more images at"
            " once, or keep the file for its size"
        )
    if instructions == ():
        return (
            "this processor has no instructions for 8-bit products (VNNI, AMX, DotProd); measure"
            " on one that has"
        )
    return "its integer kernels do not pay here; compare with --runtime openvino"


def _share(kernels: Kernels) -> float:
    """What layers in float take of the time, or of the layers where times are not known."""
    known = [layer.share for layer in kernels.floats if layer.share is not None]
    if len(known) == len(kernels.floats):
        return sum(known)
    return len(kernels.floats) / kernels.total
