"""Are files equal to students? Networks drawn at random through capture, quantize, export and run.

    python tests/drawn_networks.py --networks 500 --widths 1 drawn.jsonl

One line per network and width goes to the file, with what was measured; a call goes on where an
earlier one stopped. A network of which nothing but its input is rounded in float has to give the
same logits to the last bit in onnxruntime; with a float function in between, a tie may fall to the
other side, so that the tolerance of every export decides.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from datafree.calibrators.base import calibrate
from datafree.calibrators.mse import MSE
from datafree.config import Scheme
from datafree.errors import DatafreeError
from datafree.export.base import predict
from datafree.export.onnx import Onnx
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.graph.integer import float_operators, integer_model
from datafree.graph.settle import settle
from drawn import ALL_KINDS, DRAWN_SPEC, Drawn, drawn_images

WIDTHS = ("W8A8", "W4A8", "W4A4", "W2A8")


def measured(seed: int, count: int = len(WIDTHS)) -> list[dict[str, Any]]:
    """What the network of `seed` gives at `count` widths, others for the next seed."""
    torch.set_num_threads(1)
    folded = fold_batch_norms(capture(Drawn(seed, ALL_KINDS), DRAWN_SPEC))
    images = drawn_images(64, 1000 + seed)
    found: list[dict[str, Any]] = []
    for k in range(count):
        bits = WIDTHS[(seed + k) % len(WIDTHS)]
        student = insert_quantizers(folded, Scheme(target="onnxruntime", bits=bits), DRAWN_SPEC)
        calibrate(student, [drawn_images(32, seed)], MSE())
        settle(student)
        cell: dict[str, Any] = {"seed": seed, "bits": bits, "float": len(float_operators(student))}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "student.onnx"
            try:
                report = Onnx().export(student, DRAWN_SPEC, path, check=images)
            except DatafreeError as error:
                found.append({**cell, "refused": str(error)})
                continue
            expected = predict(integer_model(student), images)
            actual = predict(Onnx().run(path), images)
        cell["difference"] = float((expected - actual).abs().max())
        cell["spread"] = float(expected.max() - expected.min())
        cell["other predictions"] = int((expected.argmax(1) != actual.argmax(1)).sum())
        found.append({**cell, "bytes": report.bytes})
    return found


def main() -> None:
    """Measure what is missing, then say how many were refused or differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="lines of JSON; made longer")
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--widths", type=int, default=len(WIDTHS), help="of each network")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    text = given.file.read_text(encoding="utf-8") if given.file.exists() else ""
    cells: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    missing = sorted(set(range(given.networks)) - {cell["seed"] for cell in cells})
    with ProcessPoolExecutor(given.jobs) as pool, given.file.open("a", encoding="utf-8") as file:
        for found in pool.map(partial(measured, count=given.widths), missing):
            cells += found
            file.write("".join(json.dumps(cell) + "\n" for cell in found))
            file.flush()
            print(f"network {found[0]['seed']} done", flush=True)  # noqa: T201
    whole = [cell for cell in cells if "refused" not in cell and not cell["float"]]
    unequal = [cell for cell in whole if cell["difference"] > 0]
    print(  # noqa: T201
        f"{len({cell['seed'] for cell in cells})} networks, {len(cells)} files:"
        f" {sum('refused' in cell for cell in cells)} refused; of {len(whole)} whole integer ones"
        f" {len(unequal)} differ; {sum(cell.get('other predictions', 0) for cell in cells)} other"
        f" predictions on {64 * len(cells)} images"
    )


if __name__ == "__main__":
    main()
