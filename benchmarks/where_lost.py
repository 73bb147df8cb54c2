"""Which of weights and activations lose a network's points: each quantized by itself.

python benchmarks/where_lost.py --network mobilenet_v1_075_224_imagenet --bits 6
"""

from __future__ import annotations

import argparse

import torch
from common import RESULTS, environment, load, test_data

from datafree.calibrators.base import calibrate
from datafree.calibrators.mse import MSE
from datafree.config import Scheme
from datafree.data import open_labelled
from datafree.evaluate import top1
from datafree.files import write_text
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.images import SyntheticSet


def main() -> None:
    """Measure the float network and five schemes on all test images; write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="mobilenet_v1_075_224_imagenet")
    parser.add_argument("--bits", type=int, default=6)
    parser.add_argument("--eval-batch", type=int, default=8)
    args = parser.parse_args()
    bits = args.bits
    teacher, graph = load(args.network)
    folded = fold_batch_norms(graph).to(memory_format=torch.channels_last)  # pyright: ignore
    path = RESULTS / "images" / f"{args.network}_zeroq_40x500_0.safetensors"
    images = SyntheticSet.load(path).images  # made by calibration_table.py
    schemes = {
        f"W{bits}A32": Scheme(weights=bits, activations=32),
        f"W8A{bits}": Scheme(weights=8, activations=bits),
        f"W{bits}A{bits}": Scheme(weights=bits, activations=bits),
        f"W{bits}A{bits}, weight range mse": Scheme(
            weights=bits, activations=bits, weight_range="mse"
        ),
        "W8A8, weight range mse": Scheme(weights=8, activations=8, weight_range="mse"),
    }
    networks = {"float": folded}
    for name, scheme in schemes.items():
        placed = scheme.model_copy(update={"placement": "after_activation"})
        networks[name] = insert_quantizers(folded, placed)
        calibrate(networks[name], [images], MSE())
    data = open_labelled(test_data(teacher.spec), teacher.spec)
    batches = (
        (x.contiguous(memory_format=torch.channels_last), y)
        for x, y in data.batches(args.eval_batch)
    )
    found = top1(networks, batches)
    env = environment()
    lines = [
        f"# Where {args.network} loses its points",
        "",
        f"Top-1 on {found.images} images. 40 zeroq images x 500 iterations, seed 0,"
        " calibrator `mse`, policy `all`, activations after activation functions.",
        f"{env['cpu']}, torch {env['torch']}, {env['date']};"
        f" `python benchmarks/where_lost.py --network {args.network} --bits {bits}`.",
        "",
        "| scheme | top-1 |",
        "|---|---|",
        *(f"| {name} | {value:.2f} |" for name, value in found.top1.items()),
    ]
    write_text(RESULTS / f"where_lost_{args.network}.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
