"""Rows about runtimes."""

from __future__ import annotations

from typing import Any

from datafree.cli.runtimes import (
    by_reason,
    latency_rows,
    layer_rows,
    processor_text,
    runtime_rows,
    size_text,
)


def layer(name: str, reason: str, share: float | None = None, detail: str = "") -> dict[str, Any]:
    return {"name": name, "op": "Conv", "reason": reason, "detail": detail, "share": share}


FACTS: dict[str, Any] = {
    "runtime": "onnxruntime 1.32.0",
    "cpu": {"name": "Xeon", "integer_instructions": ["AMX"]},
    "integer": 2,
    "total": 3,
    "integer_products": 0,
    "products": 0,
    "floats": [layer("net.head", "no quantizer behind it", 0.125, "an output of the network")],
    "bytes": 296_000,
    "float_bytes": 1_084_000,
    "latency_ms": [
        {"threads": 1, "batch": 1, "float": 1.5, "student": 1.0, "runs": 25,
         "float_quartiles": [1.4, 1.6], "student_quartiles": [0.9, 1.1]},
        {"threads": 1, "batch": 8, "float": 12.0, "student": 16.0, "runs": 9,
         "float_quartiles": [11.0, 13.0], "student_quartiles": [15.0, 17.0]},
        {"threads": 2, "batch": 1, "float": 1.0, "student": 0.5, "runs": 25,
         "float_quartiles": [1.0, 1.0], "student_quartiles": [0.5, 0.5]},
    ],
    "notes": ["Slower than float: …"],
}  # fmt: skip


def test_rows_of_a_run() -> None:
    assert runtime_rows(FACTS) == [
        ("integer kernels", "2 of 3 layers in onnxruntime 1.32.0"),
        ("", "float: net.head: no quantizer behind it"),
        (
            "latency, 1 thread",
            "float → student, batch 1: 1.5 → 1 ms (speed-up 1.50);"
            " batch 8: 12 → 16 ms (speed-up 0.75)",
        ),
        ("latency, 2 threads", "float → student, batch 1: 1 → 0.5 ms (speed-up 2.00)"),
        ("", "Slower than float: …"),
    ]


def test_a_refusal_is_a_row() -> None:
    assert runtime_rows({"runtime": "onnxruntime", "error": "cannot load"}) == [
        ("runtime", "cannot load")
    ]


def test_products_are_a_row_where_there_are_some() -> None:
    facts = {**FACTS, "floats": [], "latency_ms": [], "notes": [], "products": 4}
    assert runtime_rows(facts)[1:] == [("", "products of two activations: 0 of 4")]


def test_layers_with_one_reason_stand_together() -> None:
    floats = [layer("a", "few"), *(layer(str(n), "many") for n in range(6))]
    assert by_reason(floats) == [("many", "0, 1, 2, 3 and 2 more"), ("few", "a")]


def test_tables_of_the_benchmark() -> None:
    assert latency_rows(FACTS)[0] == ("1", "1", "1.5 (1.4-1.6)", "1 (0.9-1.1)", "1.50", "25")
    assert layer_rows(FACTS) == [
        ("net.head", "Conv", "12.5 %", "no quantizer behind it (an output of the network)")
    ]
    assert layer_rows({"floats": [layer("a", "why")]}) == [("a", "Conv", "", "why")]
    assert size_text(FACTS) == "296 kB, float 1084 kB"
    assert size_text({"bytes": 500}) == "0 kB"


def test_processors() -> None:
    assert processor_text(FACTS["cpu"]) == "Xeon, AMX"
    assert processor_text({"name": "Old", "integer_instructions": []}) == (
        "Old, no instructions for 8-bit products"
    )
    assert processor_text({"name": "Other", "integer_instructions": None}) == "Other"
