"""Fit the estimate to the records of the table `verdict`: the model, and the picture of its page.

python scripts/fit_verdict.py          # from the root of the repository
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks.kinds import Bench  # noqa: E402 - found by the line above
from benchmarks.kinds.verdict_validation import rows_of  # noqa: E402
from benchmarks.place import Place  # noqa: E402
from benchmarks.verdict_fit import fit, leave_one_out  # noqa: E402
from benchmarks.verdict_plot import scatter  # noqa: E402

from datafree.files import write_text  # noqa: E402
from datafree.progress import silent  # noqa: E402


def main() -> None:
    place = Place.here()
    rows = rows_of(Bench(place, silent))
    path = ROOT / "src" / "datafree" / "verdict" / "model.json"
    write_text(path, fit(rows).model_dump_json(indent=2) + "\n")
    scatter(leave_one_out(rows), place.pages / "verdict.png")
    print(f"{path.relative_to(ROOT)}: {len(rows)} students")


if __name__ == "__main__":
    main()
