"""Why DSG's slack helps or does not: margins, share of statistics in the band, epsilon 0 to 1.

    python benchmarks/dsg_margins.py

For both margin granularities and several epsilon: how many (layer, sample, channel) statistics lie
inside the band for Gaussian images (where the optimisation starts), for real images, and for the
images made; the loss at the start and at the end; top-1 with min-max calibration (the paper's
"vanilla", Fig. 5). Margins are never chosen by these numbers.
"""

from __future__ import annotations

import argparse

import torch
from common import RESULTS, Record, environment, fast_folded, load, real_images, test_batches
from torch import Tensor, fx

from datafree.calibrators.base import calibrate
from datafree.calibrators.minmax import MinMax
from datafree.config import Scheme
from datafree.evaluate import top1
from datafree.files import write_text
from datafree.graph.alignment import margins
from datafree.graph.insert import insert_quantizers
from datafree.graph.taps import stored_statistics, tap_batch_norms
from datafree.losses import sample_statistics
from datafree.synthesis.dsg import DSG

_KEYS = ("network", "granularity", "epsilon", "seed", "images", "iterations")


def gaps(graph: fx.GraphModule, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Per layer: gaps of the samples' means and deviations to the stored ones, (B, C)."""
    found: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad(), tap_batch_norms(graph) as taps:
        graph(images)
        for layer, feature in taps:
            mean, std = sample_statistics(feature)
            target_mean, target_std = stored_statistics(layer)
            assert std is not None
            found.append(((mean - target_mean).abs(), (std - target_std).abs()))
    return found


def inside(found: list[tuple[Tensor, Tensor]], delta: Tensor, gamma: Tensor) -> float:
    """Percent of all statistics whose gap is within its layer's margin."""
    hits = [
        torch.cat(((m <= d).flatten(), (s <= g).flatten()))
        for (m, s), d, g in zip(found, delta, gamma, strict=True)
    ]
    return 100 * torch.cat(hits).float().mean().item()


def loss(found: list[tuple[Tensor, Tensor]], delta: Tensor, gamma: Tensor) -> float:
    """Mean over samples of the unweighted slack loss, Eq. (5) summed over layers."""
    rows = [
        (m - d).relu().square().sum(1) + (s - g).relu().square().sum(1)
        for (m, s), d, g in zip(found, delta, gamma, strict=True)
    ]
    return torch.stack(rows).sum(0).mean().item()


def measure(args: argparse.Namespace, record: Record) -> None:
    """Fill the record."""
    teacher, graph = load(args.network)
    folded = fast_folded(graph)
    batches = test_batches(teacher.spec)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1024, *teacher.spec.shape, generator=generator)
    from_noise = gaps(graph, noise[:128])
    from_real = gaps(graph, real_images(teacher.spec, 128, 0).images)
    for granularity in args.granularities:
        for epsilon in args.epsilons:
            none = torch.zeros(len(from_noise))
            delta, gamma = margins(graph, noise, epsilon, granularity) if epsilon else (none, none)
            for seed in args.seeds:
                cell = {
                    "network": args.network, "granularity": granularity, "epsilon": epsilon,
                    "seed": seed, "images": args.images, "iterations": args.iterations,
                }  # fmt: skip
                if record.has(**cell):
                    continue
                method = DSG(
                    epsilon=epsilon,
                    margin_granularity=granularity,
                    iterations=args.iterations,
                    batch_size=args.images,
                )
                images = method.generate(graph, teacher.spec, args.images, seed=seed).images
                made = gaps(graph, images)
                accuracies = {}
                for bits in (4, 3):
                    scheme = Scheme(weights=bits, activations=bits, placement="after_activation")
                    student = insert_quantizers(folded, scheme)
                    calibrate(student, [images], MinMax())
                    accuracies[f"top1_w{bits}a{bits}"] = top1({"s": student}, batches).top1["s"]
                record.add(
                    **cell,
                    **accuracies,
                    inside_noise=inside(from_noise, delta, gamma),
                    inside_real=inside(from_real, delta, gamma),
                    inside_made=inside(made, delta, gamma),
                    loss_noise=loss(from_noise, delta, gamma),
                    loss_made=loss(made, delta, gamma),
                    zeroq_loss_made=loss(made, none, none),
                    environment=environment(),
                )
                print(record.cells[-1], flush=True)
    real = [torch.cat((m.flatten(), s.flatten())).mean().item() for m, s in from_real]
    gauss = [torch.cat((m.flatten(), s.flatten())).mean().item() for m, s in from_noise]
    ratios = ", ".join(f"{n / r:.1f}" for n, r in zip(gauss, real, strict=True))
    print("mean gap of Gaussian images over that of real images, layer by layer:", ratios)
    write_text(RESULTS / f"dsg_margins_{args.network}.md", table(args, record, ratios))


def table(args: argparse.Namespace, record: Record, ratios: str) -> str:
    """The record as Markdown."""
    env = record.cells[0]["environment"]
    values = (
        "inside_noise", "inside_real", "inside_made", "loss_noise", "loss_made", "zeroq_loss_made",
        "top1_w4a4", "top1_w3a3",
    )  # fmt: skip
    lines = [
        f"# DSG margins on {args.network}",
        "",
        f"{args.images} images, {args.iterations} iterations, min-max calibration, policy `all`,"
        f" mean ± standard deviation of seeds {args.seeds}. epsilon 0: no slack (ZeroQ with LSE).",
        f"{env['cpu']}, torch {env['torch']}, {env['date']}; `python benchmarks/dsg_margins.py"
        f" --seeds {' '.join(map(str, args.seeds))} --epsilons"
        f" {' '.join(f'{epsilon:g}' for epsilon in args.epsilons)}`.",
        "",
        f"Mean gap of Gaussian images over that of real images, layer by layer: {ratios}.",
        "",
        "| granularity | epsilon | % inside: Gaussian | real | made | slack loss: Gaussian | made |"
        " ZeroQ loss: made | W4A4 | W3A3 |",
        "|---" * 10 + "|",
    ]
    for granularity in args.granularities:
        for epsilon in args.epsilons:
            where = {"granularity": granularity, "epsilon": epsilon}
            cells = [record.mean_spread(v, **where) for v in values]
            lines.append(f"| {granularity} | {epsilon} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet20_cifar10jpeg")
    parser.add_argument("--granularities", nargs="+", default=["sample", "batch"])
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0, 0.3, 0.5, 0.7, 0.9, 1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--iterations", type=int, default=200)
    args = parser.parse_args()
    measure(args, Record(RESULTS / f"dsg_margins_{args.network}.jsonl", _KEYS))


if __name__ == "__main__":
    main()
