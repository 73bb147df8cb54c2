from __future__ import annotations

from datafree.report.frontier import frontier_plot

CHOSEN = {
    "budget": "4 bits on average", "unit": "bits", "cost": 16000, "sensitivity": 0.5,
    "average_bits": 3.9, "uniform": {"2": {"cost": 8000, "sensitivity": 3.0}},
}  # fmt: skip


def test_bits_of_weights_become_kilobytes() -> None:
    found = frontier_plot({"chosen": CHOSEN, "frontier": [[8000, 2.0, "22"], [24000, 0.1, "66"]]})
    assert found is not None
    assert (found.unit, found.line) == ("kB", ((1.0, 2.0), (3.0, 0.1)))
    assert found.uniform == (("2", 1.0, 3.0),)
    assert found.chosen == (2.0, 0.5)


def test_a_long_frontier_is_thinned_and_keeps_its_ends() -> None:
    points = [[8 * i, 1 / (i + 1), "2"] for i in range(1003)]
    found = frontier_plot({"chosen": {**CHOSEN, "unit": "BOPs"}, "frontier": points})
    assert found is not None
    assert found.unit == "MBOPs"
    assert len(found.line) <= 402
    assert found.line[0] == (0.0, 1.0)
    assert found.line[-1][1] == 1 / 1003


def test_no_file_no_frontier() -> None:
    assert frontier_plot(None) is None
