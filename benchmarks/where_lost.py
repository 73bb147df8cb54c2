"""Which of weights and activations lose a network's points, and what corrected biases give back.

    python benchmarks/where_lost.py --network mobilenet_v1_075_224_imagenet --bits 6 4

Each of weights and activations is quantized by itself, then both, then with biases corrected from
batch norms (no images). All schemes are measured on the same test images in one pass.
"""

from __future__ import annotations

import argparse

from common import RESULTS, ImageSet, environment, fast_folded, load, test_batches
from torch import Tensor, fx

from datafree.calibrators.base import calibrate
from datafree.calibrators.mse import MSE
from datafree.config import InputSpec, Scheme
from datafree.corrections.analytic_bias import correct_biases_analytically
from datafree.evaluate import top1
from datafree.files import write_text
from datafree.graph.insert import insert_quantizers
from datafree.graph.statistics import layer_statistics


def schemes_of(bits: int) -> dict[str, tuple[Scheme, bool]]:
    """The schemes for so many bits by what the table calls them, and whether biases change."""
    both = Scheme(weights=bits, activations=bits)
    fine = both.model_copy(update={"weight_range": "mse"})
    return {
        f"W{bits}A32": (Scheme(weights=bits, activations=32), False),
        f"W8A{bits}": (Scheme(weights=8, activations=bits), False),
        f"W{bits}A{bits}": (both, False),
        f"W{bits}A{bits}, weight range mse": (fine, False),
        f"W{bits}A8, analytic": (Scheme(weights=bits, activations=8), True),
        f"W{bits}A{bits}, analytic": (both, True),
    }


def student(
    graph: fx.GraphModule, scheme: Scheme, images: Tensor, spec: InputSpec, *, analytic: bool
) -> fx.GraphModule:
    """The network quantized to `scheme`, activations where the papers quantize them."""
    folded = fast_folded(graph)
    made = insert_quantizers(folded, scheme.model_copy(update={"placement": "after_activation"}))
    calibrate(made, images.split(40), MSE())
    if analytic:
        correct_biases_analytically(folded, made, layer_statistics(graph), spec)
    return made


def main() -> None:
    """Measure the float network and all schemes on all test images; write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="mobilenet_v1_075_224_imagenet")
    parser.add_argument("--bits", type=int, nargs="+", default=[6, 4])
    parser.add_argument("--eval-batch", type=int, default=50)
    parser.add_argument("--limit", type=int, default=None)
    args = parser.parse_args()
    teacher, graph = load(args.network)
    images = ImageSet(args.network, "zeroq", 40, 500, 0).get(teacher, graph).images
    chosen = {"W8A8": (Scheme(), False), "W8A8, analytic": (Scheme(), True)}
    for bits in args.bits:
        chosen |= schemes_of(bits)
    networks = {"float": fast_folded(graph)}
    for name, (scheme, analytic) in chosen.items():
        networks[name] = student(graph, scheme, images, teacher.spec, analytic=analytic)
    found = top1(networks, test_batches(teacher.spec, args.eval_batch, args.limit))
    env = environment()
    lines = [
        f"# Where {args.network} loses its points",
        "",
        f"Top-1 on {found.images} images. 40 zeroq images x 500 iterations, seed 0, calibrator"
        " `mse`, policy `all`, activations after activation functions; `analytic`: biases corrected"
        " from batch norms.",
        "",
        f"{env['cpu']}, torch {env['torch']}, {env['date']}; `python benchmarks/where_lost.py"
        f" --network {args.network} --bits {' '.join(map(str, args.bits))}"
        f"{f' --limit {args.limit}' if args.limit else ''}`.",
        "",
        "| scheme | top-1 |",
        "|---|---|",
        *(f"| {name} | {value:.2f} |" for name, value in found.top1.items()),
    ]
    write_text(RESULTS / f"where_lost_{args.network}.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
