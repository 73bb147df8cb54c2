"""Fit the estimate to the records of the table `verdict`: the model, and the picture of its page.

python -m benchmarks.fit_verdict          # from the root of the repository
"""

from __future__ import annotations

import sys

from benchmarks.kinds import Bench
from benchmarks.kinds.verdict_validation import rows_of
from benchmarks.place import Place
from benchmarks.verdict_fit import fit, leave_one_out
from benchmarks.verdict_plot import scatter
from datafree.files import write_text
from datafree.progress import silent


def main() -> None:
    """Write ``src/datafree/verdict/model.json`` and ``docs/results/verdict.png``."""
    place = Place.here()
    rows = rows_of(Bench(place, silent))
    path = place.root / "src" / "datafree" / "verdict" / "model.json"
    write_text(path, fit(rows).model_dump_json(indent=2) + "\n")
    scatter(leave_one_out(rows), place.pages / "verdict.png")
    sys.stdout.write(f"{path.relative_to(place.root)}: {len(rows)} students\n")


if __name__ == "__main__":
    main()
