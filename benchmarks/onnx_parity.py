"""onnxruntime in exact mode against the PyTorch student, on all test images.

python benchmarks/onnx_parity.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from common import RESULTS, environment, load, test_data
from torch import Tensor

from datafree.calibrators.base import calibrate
from datafree.calibrators.mse import MSE
from datafree.config import Scheme
from datafree.data import open_labelled
from datafree.evaluate import Predictor
from datafree.export.onnx import Onnx
from datafree.files import write_text
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.synthesis.zeroq import ZeroQ

_BITS = ((8, 8), (4, 8), (4, 4), (3, 3))


def predictions(
    student: Predictor, exported: Predictor, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[tuple[float, float], float]:
    """Top-1 of both in percent, and the percentage of images they say the same of."""
    rows: list[Tensor] = []
    with torch.inference_mode():
        for images, labels in batches:
            ours, theirs = student(images).argmax(1), exported(images).argmax(1)
            rows.append(torch.stack((ours == labels, theirs == labels, ours == theirs), 1))
    shares = 100 * torch.cat(rows).double().mean(0)
    return (float(shares[0]), float(shares[1])), float(shares[2])


def main() -> None:
    """Export, run and compare every scheme; write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="resnet20_cifar10jpeg")
    args = parser.parse_args()
    teacher, graph = load(args.network)
    spec = teacher.spec
    images = ZeroQ().generate(graph, spec, 32).images
    folded = fold_batch_norms(graph)
    data = open_labelled(test_data(spec), spec)
    env = environment()
    lines = [
        f"# ONNX parity of {args.network}",
        "",
        f"{len(data)} test images, onnxruntime exact mode (`session.x64quantprecision=1`), policy"
        " `all`, calibrator `mse` on 32 zeroq images.",
        f"{env['cpu']}, torch {env['torch']}, {env['date']}; `python benchmarks/onnx_parity.py`.",
        "",
        "| scheme | placement | student | onnxruntime | identical % | weights / float |",
        "|---|---|---|---|---|---|",
    ]
    for placement in ("every_input", "after_activation"):
        for weights, activations in _BITS:
            scheme = Scheme(weights=weights, activations=activations, placement=placement)
            student = insert_quantizers(folded, scheme)
            calibrate(student, [images], MSE())
            with TemporaryDirectory() as folder:
                path = Path(folder) / "student.onnx"
                report = Onnx().export(student, spec, path, check=images)
                predict = Onnx().run(path)
                accuracy, same = predictions(student, predict, data.batches(250))
            share = report.weight_bytes / report.float_weight_bytes
            lines.append(
                f"| {scheme.label} | {placement} | {accuracy[0]:.2f} | {accuracy[1]:.2f} |"
                f" {same:.2f} | {share:.3f} |"
            )
            print(lines[-1], flush=True)
    write_text(RESULTS / f"onnx_parity_{args.network}.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
