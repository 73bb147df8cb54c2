"""The best that calibration alone gives, chosen on test labels: a bound that no user could have."""

from __future__ import annotations

from itertools import product
from typing import Any

from benchmarks.kinds.base import Bench, Kind
from benchmarks.kinds.run import Run
from datafree.config import RunConfig


class Bounds(Kind):
    """Best value of every measure over calibrators and weight ranges, and whose it is.

    With `corrected` biases each of these is equalized before or not, and corrected on the images
    or from batch norms: four times as many.
    """

    corrected: bool = False
    """Correct biases, and equalize before or not."""
    calibrators: tuple[str, ...] = ("mse", "minmax", "percentile", "bounded_mse", "aciq")
    """To choose from."""
    measures: tuple[str, ...] = ()
    """As of the kind `run`."""

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        one = Run(measures=self.measures)
        corrections = ("analytic", "empirical") if self.corrected else ("none",)
        found: dict[str, dict[str, Any]] = {}
        for equalized, rule, weights, biases in product(
            (False, True)[: 1 + self.corrected], self.calibrators, ("minmax", "mse"), corrections
        ):
            changes = {
                "equalize": equalized, "calibrator": rule, "weight_range": weights,
                "bias_correction": biases,
            }  # fmt: skip
            whose = f"{rule}, {weights} weights{', equalized' * equalized}"
            whose += f", {biases}" * self.corrected
            found[whose] = one.measure(config.model_copy(update=changes), bench)
        return best_of(found)


def best_of(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The best of each measure: the least `kl`, the most of all others; the first among equals."""
    first = next(iter(found.values()))
    best: dict[str, Any] = {name: first[name] for name in ("teacher", "test_images")}
    for measure in (name for name in first if name not in (*best, "stages")):
        choose = min if measure == "kl" else max
        whose = choose(found, key=lambda name: found[name][measure])
        best |= {measure: found[whose][measure], f"whose_{measure}": whose}
    return best
