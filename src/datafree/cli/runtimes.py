"""What a runtime made of a student, as rows of tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_NAMES = 4  # layers named for each reason


def runtime_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of a run's table: integer kernels, latency by number of threads, advice.

    Args:
        facts: as `datafree.runs.runtime.runtime_facts` returns them.
    """
    if "error" in facts:
        return [("runtime", str(facts["error"]))]
    kernels = f"{facts['integer']} of {facts['total']} layers in {facts['runtime']}"
    rows = [("integer kernels", kernels)]
    rows += [("", f"float: {names}: {reason}") for reason, names in by_reason(facts["floats"])]
    if facts["products"]:
        done = f"{facts['integer_products']} of {facts['products']}"
        rows.append(("", f"products of two activations: {done}"))
    by_threads: dict[int, list[str]] = {}
    for row in facts.get("latency_ms", ()):
        text = f"batch {row['batch']}: {row['float']:.3g} → {row['student']:.3g} ms"
        text += f" (speed-up {row['float'] / row['student']:.2f})"
        by_threads.setdefault(row["threads"], []).append(text)
    for threads, texts in by_threads.items():
        name = f"latency, {threads} thread{'s' if threads > 1 else ''}"
        rows.append((name, f"float → student, {'; '.join(texts)}"))
    rows += [("", text) for text in facts.get("notes", ())]
    return rows


def by_reason(floats: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Reasons with the layers they hold for, most layers first; many are counted, not named."""
    groups: dict[str, list[str]] = {}
    for layer in floats:
        groups.setdefault(layer["reason"], []).append(layer["name"])
    found: list[tuple[str, str]] = []
    for reason, names in sorted(groups.items(), key=lambda item: -len(item[1])):
        more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
        found.append((reason, ", ".join(names[:_NAMES]) + more))
    return found


def latency_rows(facts: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row per number of threads and batch: medians with quartiles, in milliseconds."""
    return [
        (
            str(row["threads"]), str(row["batch"]),
            *(f"{row[n]:.3g} ({_span(row[f'{n}_quartiles'])})" for n in ("float", "student")),
            f"{row['float'] / row['student']:.2f}", str(row["runs"]),
        )
        for row in facts["latency_ms"]
    ]  # fmt: skip


def layer_rows(facts: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """A row per layer that runs in float: name, operator, share of the time, reason."""
    return [
        (
            layer["name"],
            layer["op"],
            "" if layer["share"] is None else f"{100 * layer['share']:.1f} %",
            layer["reason"] + (f" ({layer['detail']})" if layer["detail"] else ""),
        )
        for layer in facts["floats"]
    ]


def processor_text(cpu: Mapping[str, Any]) -> str:
    """The processor, and what it has for products of 8-bit integers."""
    known = cpu["integer_instructions"]
    if known is None:
        return str(cpu["name"])
    return f"{cpu['name']}, {', '.join(known) or 'no instructions for 8-bit products'}"


def size_text(facts: Mapping[str, Any]) -> str:
    """Sizes of the files, 1 kB being 1000 bytes."""
    text = f"{facts['bytes'] / 1000:.0f} kB"
    if "float_bytes" in facts:
        text += f", float {facts['float_bytes'] / 1000:.0f} kB"
    return text


def _span(quartiles: Sequence[float]) -> str:
    return "-".join(f"{value:.3g}" for value in quartiles)
