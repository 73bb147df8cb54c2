"""What a user is told of a file beside its numbers."""

from __future__ import annotations

from collections.abc import Sequence

from datafree.graph.floats import Computation

_WORTH_TELLING = 0.01  # share of weights or multiplications in float
_NAMED = 3


def float_notes(steps: Sequence[Computation]) -> tuple[str, ...]:
    """A sentence on what a student computes in float with weights of its own, if that is much.

    Args:
        steps: all that it computes. Layers that a student without any quantizer has, and what is
            below a hundredth of both weights and multiplications, are not worth a note.
    """
    floats = [step for step in steps if step.carries and not step.quantized]
    if len(floats) == len(steps) or not floats:
        return ()
    shares = [
        sum(values) / max(sum(whole), 1)
        for values, whole in (
            ([step.bytes for step in floats], [step.bytes for step in steps]),
            ([step.macs for step in floats], [step.macs for step in steps]),
        )
    ]
    if max(shares) < _WORTH_TELLING:
        return ()
    largest = sorted(floats, key=lambda step: (step.macs, step.bytes), reverse=True)
    named = ", ".join(f"{step.name} ({step.op})" for step in largest[:_NAMED])
    others = f" and {len(largest) - _NAMED} more" if len(largest) > _NAMED else ""
    return (
        f"These layers stay in float: {named}{others}; they have {100 * shares[0]:.2g} % of the"
        f" weights and {100 * shares[1]:.2g} % of the multiplications.",
    )
