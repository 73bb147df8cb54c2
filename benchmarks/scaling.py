"""The page of what costs grow with: blocks made from the tables `scaling` and `scaling_runs`.

``<!-- scaling: NAME -->`` and ``<!-- end -->`` stand around each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.blocks import named, rendered
from benchmarks.page import Source, filled, origin
from benchmarks.record import Record
from benchmarks.scaling_fit import (
    HELD_OUT,
    HELD_OUT_RUN,
    RUN_STEPS,
    STEPS,
    Checked,
    Power,
    batched,
    rest,
    rest_model,
    sizes_of,
    step_model,
)
from datafree.errors import ConfigError
from datafree.reconstruction.genie_m import GenieM
from datafree.synthesis.dsg import DSG
from datafree.synthesis.genie import Genie

Sources = Callable[[str], Source]
TABLE, RUNS = "scaling", "scaling_runs"
AXES = {"images": "images", "blocks": "residual blocks"}
"""What costs are measured against, in words."""
WORDS = {
    "zeroq": "images by ZeroQ", "genie": "images by Genie", "calibration": "calibration",
    "genie_m": "rounding by Genie-M", "capture": "capture", "export": "ONNX and .pt2",
    "allocation": "sensitivities of mixed bits",
}  # fmt: skip
"""Parts in words, in the order of the page."""
BY_LAYERS = "allocation"
"""Looks at every layer with a pass through all that follow."""
_DEEP = {"resnet20": 9, "resnet32": 15, "resnet44": 21, "resnet56": 27, "resnet110": 54}
_FIRST = "32"  # images that networks of all depths were measured with
_NAMES = {
    "resnet20": "ResNet-20", "resnet32": "ResNet-32", "resnet44": "ResNet-44",
    "resnet56": "ResNet-56", "resnet110": "ResNet-110", "densenet40": "DenseNet-40",
    "wrn16_10": "WRN-16-10", "mobilenetv2_96": "MobileNetV2, 96 pixels",
    "resnet18_96": "ResNet-18, 96 pixels", "mobilenet": "MobileNetV1-0.75",
    "resnet18_64": "ResNet-18, 64 pixels", "mobilenetv2_64": "MobileNetV2-0.5, 64 pixels",
    "resnet18": "ResNet-18", "resnet50": "ResNet-50", "resnet50_96": "ResNet-50, 96 pixels",
}  # fmt: skip
_PRICES = {
    "gmacs": ("GMAC, ms", 1e3), "gbytes": ("GB of feature maps, ms", 1e3),
    "layers": ("layer, ms", 1e3),
    "mweights": ("million weights, ms", 1e3), "megapixels": ("megapixel of images, ms", 1e3),
    "gweights": ("million weights of the generator, ms", 1.0),
}  # fmt: skip
_METHODS = {"zeroq": "`zeroq`, `dsg`", "genie": "`genie`", "genie_m": "`genie_m`"}
_DAILY = ("resnet20", "mobilenet", "resnet18", "resnet50")
_MODELS, _DAY, _HOUR = 1_000, 86_400, 3_600
_IMAGES, _GENIE_IMAGES = 32, 1_024  # of a default run, and of Genie's paper
_MARK = "scaling"
_BOUND = 1.05
_NOTHING = "–"  # noqa: RUF001 - a dash


@dataclass(frozen=True)
class Curve:
    """What a part cost, against something.

    Attributes:
        part: of a run.
        sizes: what it is measured against.
        seconds: of each.
        power: fitted to them.
    """

    part: str
    sizes: tuple[float, ...]
    seconds: tuple[float, ...]
    power: Power


def render(text: str, sources: Sources) -> str:
    """A page with the blocks between its comments made anew.

    Raises:
        ConfigError: there is no block of a name.
    """

    def body(name: str) -> str:
        if name not in _BLOCKS:
            raise ConfigError(f"no block of scaling is called {name}: there are {list(_BLOCKS)}")
        return _BLOCKS[name](sources)

    return rendered(text, _MARK, body)


def blocks_in(text: str) -> list[str]:
    """Names of the blocks that a page shows."""
    return named(text, _MARK)


def curves(records: Iterable[Record], axis: str) -> list[Curve]:
    """What every part cost on ResNets, against images or blocks.

    Args:
        records: of the table `scaling`.
        axis: a key of `AXES`.
    """
    own = list(records)
    if axis == "images":
        chosen = {
            float(r.measured["images"]): r for r in own if r.cell["network"] == "resnet20"
        }  # fmt: skip
    else:
        chosen = {
            float(_DEEP[str(r.cell["network"])]): r
            for r in own
            if r.cell["network"] in _DEEP and str(r.cell["images"]) == _FIRST
        }
    found: list[Curve] = []
    for part in WORDS:
        told = {
            size: float(chosen[size].measured[part]["seconds"])
            for size in sorted(chosen)
            if "seconds" in chosen[size].measured.get(part, {})
        }
        if len(told) > 2:
            sizes, seconds = tuple(told), tuple(told.values())
            found.append(Curve(part, sizes, seconds, Power.of(sizes, seconds)))
    return found


@dataclass(frozen=True)
class Models:
    """All that was fitted.

    Attributes:
        steps: by method.
        rest: of a run beside the steps of its images.
        sizes: by network.
    """

    steps: Mapping[str, Checked]
    rest: Checked
    sizes: Mapping[str, Mapping[str, float]]

    @classmethod
    def of(cls, sources: Sources) -> Models:
        """From the records of both tables."""
        few = _one_each(sources)
        steps = {method: step_model(few, method) for method in STEPS}
        sizes = {str(record.cell["network"]): sizes_of(record) for record in few}
        return cls(steps, rest_model(_short(sources)), sizes)

    def seconds(self, network: str, method: str, steps: float, images: int, batch: int) -> float:
        """CPU seconds of `steps` for each batch of `images`."""
        sizes = batched(self.sizes[network], min(batch, images))
        return steps * -(-images // batch) * self.steps[method].model.at(sizes)

    def default_run(self, network: str) -> float:
        """CPU seconds of a run with all defaults."""
        steps = self.seconds(network, "zeroq", DSG.settled_steps, _IMAGES, _IMAGES)
        return steps + self.rest.model.at(self.sizes[network])

    def genie_images(self, network: str) -> float:
        """CPU seconds of Genie's images with the steps of the paper."""
        method = Genie()
        asked = method.iterations, _GENIE_IMAGES, method.batch_size
        return self.seconds(network, "genie", *asked)

    def genie_rounding(self, network: str) -> float:
        """CPU seconds of the steps of Genie-M, as many as in the paper."""
        method = GenieM()
        return self.seconds(
            network, "genie_m", method.iterations, method.batch_size, method.batch_size
        )


def cores(seconds: float) -> float:
    """Cores that are busy all day with a thousand of what takes so long."""
    return _MODELS * seconds / _DAY


def _one_each(sources: Sources) -> list[Record]:
    """A record for every network, with the fewest images it was measured with."""
    found: dict[str, Record] = {}
    for record in sources(TABLE).records.values():
        before = found.get(str(record.cell["network"]))
        if before is None or record.measured["images"] < before.measured["images"]:
            found[str(record.cell["network"])] = record
    return list(found.values())


def _short(sources: Sources) -> list[Record]:
    return [r for r in sources(RUNS).records.values() if r.cell["steps"] == "ten"]


def _answer(sources: Sources) -> str:
    """What the page is read for."""
    records = tuple(sources(TABLE).records.values())
    found = {axis: curves(records, axis) for axis in AXES}
    parts = {axis: [c for c in own if c.part != BY_LAYERS] for axis, own in found.items()}
    most = {axis: max(own, key=lambda c: c.power.exponent) for axis, own in parts.items()}
    over = [c for own in parts.values() for c in own if c.power.exponent > _BOUND]
    models = Models.of(sources)
    run_50 = models.default_run(HELD_OUT)
    hours = (models.genie_images(HELD_OUT) + models.genie_rounding(HELD_OUT)) / _HOUR
    bounded = (
        f"No exponent is above {_BOUND}" if not over
        else f"Above {_BOUND}: " + ", ".join(f"{WORDS[c.part]} ({c.power})" for c in over)
    )  # fmt: skip
    deep = next(c for c in found["blocks"] if c.part == BY_LAYERS)
    counts = [len({size for c in own for size in c.sizes}) for own in found.values()]
    first = (
        f"In proportion to images and to depth. {bounded}: the largest are"
        f" {most['images'].power} in images ({WORDS[most['images'].part]}, {counts[0]} numbers of"
        f" images) and {most['blocks'].power} in residual blocks ({WORDS[most['blocks'].part]},"
        f" {counts[1]} networks). One thing grows faster, and is asked for by mixed bits alone:"
        f" {WORDS[BY_LAYERS]}, with the power {deep.power} of blocks."
    )
    second = (
        f"A thousand runs a day with all defaults keep {_cores(models.default_run('resnet20'))}"
        f" busy for ResNet-20, and {_cores(run_50)} for ResNet-50 at 224 pixels. ResNet-50 with"
        f" {_GENIE_IMAGES:,} images of Genie and rounding by Genie-M, all steps as published, takes"
        f" about {_round(hours):,.0f} core-hours."
    )
    return f"{filled(first)}\n\n{filled(second)}"


def _exponents(sources: Sources) -> str:
    source = sources(TABLE)
    records = tuple(source.records.values())
    by_axis = {axis: {c.part: c for c in curves(records, axis)} for axis in AXES}
    rows: list[list[str]] = []
    for part, words in WORDS.items():
        own = [by_axis[axis].get(part) for axis in AXES]
        powers = [_NOTHING if curve is None else str(curve.power) for curve in own]
        deepest = own[1]
        ends = "" if deepest is None else _ends(deepest)
        rows.append([words, *powers, ends])
    heads = ["part", *(f"exponent of {words}" for words in AXES.values())]
    return _grid([*heads, "seconds, ResNet-20 to ResNet-110"], rows, _caption(source, records))


def _ends(curve: Curve) -> str:
    return f"{curve.seconds[0]:.1f} to {curve.seconds[-1]:.1f}"


def _model(sources: Sources) -> str:
    """Prices of features by method; errors."""
    models = Models.of(sources)
    heads = ["a step of", *(f"a {words}" for words, _ in _PRICES.values())]
    rows: list[list[str]] = []
    for method, checked in models.steps.items():
        prices = checked.model.prices
        told = [
            f"{factor * prices[name]:.2f}" if name in prices else _NOTHING
            for name, (_, factor) in _PRICES.items()
        ]
        rows.append([_METHODS[method], *told])
    return _grid(heads, rows, _caption(sources(TABLE), _one_each(sources)))


def _checks(sources: Sources) -> str:
    """How far models are off, on networks left out one by one and on the one held out."""
    models = Models.of(sources)
    all_ = {f"a step of {_METHODS[m]}": (c, HELD_OUT) for m, c in models.steps.items()}
    all_["a run beside the steps of its images"] = (models.rest, HELD_OUT_RUN)
    rows = [
        [
            what, str(len(c.errors)), f"{100 * c.usual:.0f} %",
            f"{100 * c.errors[c.worst]:+.0f} % ({_NAMES[c.worst]})",
            _NAMES[out], f"{c.measured:.2f}", f"{c.told:.2f}", f"{100 * c.error:+.0f} %",
        ]
        for what, (c, out) in all_.items()
    ]  # fmt: skip
    heads = ["model of", "networks", "median error, each left out", "largest error", "held out",
             "measured, s", "foretold, s", "error"]  # fmt: skip
    below = f"{_caption(sources(TABLE), _one_each(sources))} The last row is of the table below."
    return _grid(heads, rows, below)


def _whole(sources: Sources) -> str:
    """Runs of ten steps, measured and from the models of steps and of all else."""
    models = Models.of(sources)
    rows: list[list[str]] = []
    records = _short(sources)
    for record in records:
        name, measured = str(record.cell["network"]), record.measured
        sizes = sizes_of(record)
        told = RUN_STEPS * models.steps["zeroq"].model.at(sizes) + models.rest.model.at(sizes)
        spent = float(measured["run"]["seconds"])
        held = " (held out)" if name == HELD_OUT_RUN else ""
        rows.append([
            f"{_NAMES[name]}{held}", f"{spent:.0f}", f"{rest(measured):.0f}", f"{told:.0f}",
            f"{100 * (told / spent - 1):+.0f} %",
        ])  # fmt: skip
    heads = ["network", "run, s", "beside the steps, s", "foretold, s", "error"]
    return _grid(heads, rows, _caption(sources(RUNS), records))


def _daily(sources: Sources) -> str:
    """Cores for a thousand runs a day, from the models."""
    models = Models.of(sources)
    rows: list[list[str]] = []
    for name in _DAILY:
        spent = models.default_run(name)
        steps = models.seconds(name, "zeroq", DSG.settled_steps, _IMAGES, _IMAGES)
        rows.append([
            _NAMES[name], f"{models.sizes[name]['macs'] / 1e9:.2f}", f"{_round(spent):,.0f}",
            f"{100 * steps / spent:.0f} %", _cores(spent),
        ])  # fmt: skip
    (default,) = (r for r in sources(RUNS).records.values() if r.cell["steps"] == "default")
    spent = float(default.measured["run"]["seconds"])
    below = (
        f"Computed: {DSG.settled_steps} steps of `dsg` for {_IMAGES} images, and all else of a run."
        f" Measured was one default run of ResNet-20, {spent:.0f} s, whose images settle earlier"
        " than most."
    )
    heads = ["network", "GMAC an image", "CPU seconds a run", "of these images",
             f"for {_MODELS:,} a day"]  # fmt: skip
    return _grid(heads, rows, below)


def _published(sources: Sources) -> str:
    """Core-hours of Genie and Genie-M on 1,024 images, from the models."""
    models = Models.of(sources)
    rows: list[list[str]] = []
    for name in _DAILY:
        both = models.genie_images(name), models.genie_rounding(name)
        rows.append([_NAMES[name], *(f"{_round(s / _HOUR):,.0f}" for s in (*both, sum(both)))])
    images, rounding = Genie(), GenieM()
    held = images.batch_size * models.sizes[HELD_OUT]["kept"] / 1e9
    below = (
        f"Computed: {_GENIE_IMAGES:,} images in batches of {images.batch_size}, each"
        f" {images.iterations:,} steps; {rounding.iterations:,} steps of"
        f" {rounding.batch_size} images for every block. A batch of Genie keeps"
        f" {_round(held):,.0f} GB of feature maps of {_NAMES[HELD_OUT]}; where memory is less, its"
        " batches are smaller and more."
    )
    heads = ["network", "images, core-hours", "rounding, core-hours", "both"]
    return _grid(heads, rows, below)


def _cores(seconds: float) -> str:
    needed = cores(seconds)
    if needed < 1:
        return f"{100 * needed:.0f} % of a core"
    return f"{_round(needed):,.0f} core{'s' * (round(needed) != 1)}"


def _round(number: float) -> float:
    """Two digits: models are not better than that."""
    return float(f"{number:.2g}")


def _caption(source: Source, records: Iterable[Record]) -> str:
    return origin(source.table, records)


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]], below: str) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{filled(below)}"


_BLOCKS: dict[str, Callable[[Sources], str]] = {
    "answer": _answer, "exponents": _exponents, "model": _model, "checks": _checks,
    "runs": _whole, "daily": _daily, "published": _published,
}  # fmt: skip
