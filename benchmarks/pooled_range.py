"""Ranges that zeroq and real images give the inputs of every layer, and what the last one costs.

python benchmarks/pooled_range.py
"""

from __future__ import annotations

import argparse
import copy

import torch
from common import RESULTS, environment, load, real_images, test_data

from datafree.calibrators.base import calibrate
from datafree.calibrators.mse import MSE
from datafree.config import Scheme
from datafree.data import open_labelled
from datafree.evaluate import top1
from datafree.files import write_text
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.quant.modules import ActivationQuantizer
from datafree.synthesis.dsg import DSG
from datafree.synthesis.zeroq import ZeroQ


def main() -> None:
    """Calibrate W8A8 students on three sets; compare ranges and top-1; write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="resnet20_cifar10jpeg")
    args = parser.parse_args()
    teacher, graph = load(args.network)
    folded = fold_batch_norms(graph).to(memory_format=torch.channels_last)  # pyright: ignore
    sets = {
        "zeroq": ZeroQ().generate(graph, teacher.spec, 32),
        "dsg": DSG().generate(graph, teacher.spec, 32),
        "real": real_images(teacher.spec, 32, 0),
    }
    students = {name: insert_quantizers(folded, Scheme()) for name in sets}
    ranges: dict[str, dict[str, float]] = {}
    for name, images in sets.items():
        calibrate(students[name], [images.images], MSE())
        ranges[name] = {
            path: float(module.scale) * (module.grid.qmax - module.grid.qmin)
            for path, module in students[name].named_modules()
            if isinstance(module, ActivationQuantizer)
        }
    last = list(ranges["zeroq"])[-1]
    without = copy.deepcopy(students["zeroq"])
    quantizer = without.get_submodule(last)
    assert isinstance(quantizer, ActivationQuantizer)
    quantizer.enabled = False
    data = open_labelled(test_data(teacher.spec), teacher.spec)
    batches = ((x.contiguous(memory_format=torch.channels_last), y) for x, y in data.batches(250))
    found = top1({**students, f"zeroq, {last} off": without}, batches)
    env = environment()
    lines = [
        f"# Ranges of layer inputs of {args.network}",
        "",
        f"W8A8, placement `every_input`, calibrator `mse`, 32 images, seed 0; top-1 on"
        f" {found.images} images.",
        f"{env['cpu']}, torch {env['torch']}, {env['date']};"
        f" `python benchmarks/pooled_range.py --network {args.network}`.",
        "",
        "| calibrated on | top-1 |",
        "|---|---|",
        *(f"| {name} | {value:.2f} |" for name, value in found.top1.items()),
        "",
        "| quantizer | zeroq | dsg | real | zeroq / real |",
        "|---|---|---|---|---|",
    ]
    for path, real in ranges["real"].items():
        zeroq, dsg = ranges["zeroq"][path], ranges["dsg"][path]
        lines.append(f"| {path} | {zeroq:.2f} | {dsg:.2f} | {real:.2f} | {zeroq / real:.2f} |")
    write_text(RESULTS / f"pooled_range_{args.network}.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
