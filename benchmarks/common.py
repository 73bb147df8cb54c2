"""What the benchmark scripts share: the networks and images of `shared/data`, records, tables."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, fx

from datafree.calibrators.base import calibrate
from datafree.calibrators.mse import MSE
from datafree.config import InputSpec, ModelConfig, Scheme, build
from datafree.data import calibration_set, open_labelled
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.images import SyntheticSet
from datafree.models import Teacher, from_module, load_teacher
from datafree.reconstruction.base import Reconstructor
from datafree.registry import load as load_method
from datafree.synthesis.base import Synthesizer
from datafree.zoo import load_digits_test

SHARED = Path(os.environ.get("DATAFREE_SHARED", Path(__file__).parents[2] / "shared"))
RESULTS = Path(__file__).parent / "results"
BATCH = 128
PRIORS: dict[str, dict[str, float]] = {
    "label": {"label_weight": 1.0},
    "prior": {"tv_weight": 0.01, "l2_weight": 0.01},
}
"""What ``+label`` and ``+prior`` behind an image method add to it (DSG, Table 7)."""


def networks() -> ModuleType:
    """The module `shared/data/networks.py`."""
    spec = importlib.util.spec_from_file_location("networks", SHARED / "data" / "networks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["networks"] = module
    spec.loader.exec_module(module)
    return module


def load(name: str) -> tuple[Teacher, fx.GraphModule]:
    """Teacher `name` of the shared data and its canonical graph."""
    module = networks()
    net = module.NETWORKS[name]
    shape = (3, net.size, net.size)
    teacher = from_module(module.build(name), input_shape=shape, mean=net.mean, std=net.std)
    return teacher, capture(teacher.model, teacher.spec)


def load_digits() -> tuple[Teacher, fx.GraphModule, list[tuple[Tensor, Tensor]]]:
    """The built-in digits teacher, its canonical graph and its test images."""
    teacher = load_teacher(ModelConfig(source="digits_resnet8"))
    pixels, labels = load_digits_test()
    images = torch.from_numpy(pixels).float().movedim(-1, 1) / 255
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (teacher.spec.mean, teacher.spec.std))
    normal = ((images - mean) / std).split(120)
    batches = list(zip(normal, torch.from_numpy(labels).split(120), strict=True))
    return teacher, capture(teacher.model, teacher.spec), batches


def fast_folded(graph: fx.GraphModule) -> fx.GraphModule:
    """`graph` with batch norms folded, in the memory layout in which convolutions are fastest."""
    return fold_batch_norms(graph).to(memory_format=torch.channels_last)  # pyright: ignore


def test_data(spec: InputSpec) -> Path:
    """The labelled test images that fit `spec`."""
    data = SHARED / "data"
    return data / "cifar10jpeg_test.npz" if spec.classes == 10 else data / "imagenet" / "val1300"


def test_batches(
    spec: InputSpec, size: int = 250, limit: int | None = None
) -> list[tuple[Tensor, Tensor]]:
    """The test images (the first `limit` of them) and their labels, `size` at a time."""
    return [
        (images.contiguous(memory_format=torch.channels_last), labels)
        for images, labels in open_labelled(test_data(spec), spec, limit).batches(size)
    ]


@dataclass(frozen=True)
class ImageSet:
    """The images of one row of a table.

    Attributes:
        network: name of the network they are for.
        source: `real`, or an image method and priors, such as ``dsg+label+prior``.
        images: how many.
        iterations: steps of a method that takes any.
        seed: of the images.
        batch: images made together.
    """

    network: str
    source: str
    images: int
    iterations: int
    seed: int
    batch: int = BATCH

    @property
    def path(self) -> Path:
        """Where they are kept; `batch` is in the name only where it decides the batches."""
        unusual = (
            f"_b{self.batch}" if min(self.batch, self.images) != min(BATCH, self.images) else ""
        )
        stem = f"{self.network}_{self.source}_{self.images}x{self.iterations}_{self.seed}{unusual}"
        return RESULTS / "images" / f"{stem}.safetensors"

    def get(self, teacher: Teacher, graph: fx.GraphModule) -> SyntheticSet:
        """The images, from their file if they were made before."""
        if self.path.exists():
            return SyntheticSet.load(self.path)
        if self.source == "real":
            made = real_images(teacher.spec, self.images, self.seed)
        else:
            started = time.perf_counter()
            method = _image_method(self.source, iterations=self.iterations, batch_size=self.batch)
            made = method.generate(graph, teacher.spec, self.images, seed=self.seed)
            print(
                f"{self.source} seed {self.seed}: {time.perf_counter() - started:.1f} s", flush=True
            )
        made.save(self.path)
        return made


def steps_of(source: str, iterations: int) -> int:
    """Synthesis steps of a source; noise and real images take none."""
    return 0 if source in ("noise", "real") else iterations


def scheme_of(bits: str) -> Scheme:
    """The scheme called ``W3A4``, as the papers on reconstruction have it."""
    weights, _, activations = bits.removeprefix("W").partition("A")
    return Scheme(
        weights=int(weights), activations=int(activations), policy="brecq", weight_range="mse"
    )


def calibrated(
    folded: fx.GraphModule, bits: str, images: Tensor, batch: int = 64, *, learned: bool = True
) -> fx.GraphModule:
    """The student called `bits`, with ranges of least error (power 2.4) on `images`.

    They are those of the float network where the rounding is to be `learned`.
    """
    student = insert_quantizers(folded, scheme_of(bits))
    observe = "float" if learned else "quantized"
    calibrate(student, images.split(batch), MSE(power=2.4), observe=observe)
    return student


def reconstructor(name: str, **options: Any) -> Reconstructor:
    """The reconstruction called `name`."""
    return build(load_method("datafree.reconstruction", name, Reconstructor), options, name)


def _image_method(source: str, **wanted: Any) -> Synthesizer:
    """`source` is a method with priors, ``dsg+label``, or sadag with its student, ``sadag-W3A3``.

    SADAG matches gradients for a fifth as many steps as it warms up for (the code: an eighth); at
    100 steps the generator's rate has fallen to 0.6 % of what it was.
    """
    method, *priors = source.split("+")
    name, _, bits = method.partition("-")
    if bits:
        steps = wanted["iterations"]
        wanted |= {"scheme": scheme_of(bits), "matching_iterations": steps // 5}
        wanted["student_iterations"] = steps
    cls = load_method("datafree.synthesis", name, Synthesizer)
    options: dict[str, Any] = {k: v for k, v in wanted.items() if k in cls.model_fields}
    for prior in priors:
        options |= PRIORS[prior]
    return cls(**options)


def real_images(spec: InputSpec, count: int, seed: int) -> SyntheticSet:
    """`count` random training images: the `real` row, never for a data-free method."""
    if spec.classes != 10:
        return calibration_set(SHARED / "data" / "imagenet" / "train1000", spec, count, seed)
    archive = np.load(SHARED / "data" / "cifar10jpeg_train.npz")
    data, offsets = archive["jpeg"], archive["offsets"]
    chosen = np.random.default_rng(seed).choice(len(archive["labels"]), count, replace=False)
    pictures = [_decode(data[offsets[i] : offsets[i + 1]].tobytes()) for i in chosen]
    images = torch.stack(pictures).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
    return SyntheticSet((images - mean) / std, spec, metadata={"method": "real", "seed": seed})


def _decode(data: bytes) -> Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB")))


class Record:
    """A JSON-lines file of measured cells; a cell already there is not measured again."""

    def __init__(self, path: Path, keys: Iterable[str]) -> None:
        """Open `path`; a cell is identified by the values of `keys`."""
        self.path = path
        self.keys = tuple(keys)
        lines = path.read_text().splitlines() if path.exists() else []
        self.cells: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def has(self, **cell: Any) -> bool:
        """Whether a cell with these key values was measured."""
        return any(all(old.get(k) == cell[k] for k in self.keys) for old in self.cells)

    def add(self, **cell: Any) -> None:
        """Append a measured cell to the file: several processes may fill one record."""
        self.cells.append(cell)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(cell) + "\n")

    def of_seeds(self, seeds: Iterable[int]) -> Record:
        """The same record without the cells of other seeds."""
        kept = Record(self.path, self.keys)
        kept.cells = [cell for cell in self.cells if cell["seed"] in set(seeds)]
        return kept

    def mean_spread(self, value: str, *, decimals: int = 2, **where: Any) -> str:
        """``mean ± standard deviation`` of `value` over the cells that match and have it."""
        matching = [c for c in self.cells if all(c.get(k) == v for k, v in where.items())]
        found = [cell[value] for cell in matching if value in cell]
        if not found:
            return "-"
        spread = f" ± {statistics.stdev(found):.{decimals}f}" if len(found) > 1 else ""
        return f"{statistics.mean(found):.{decimals}f}{spread}"


def environment() -> dict[str, Any]:
    """Hardware and versions, for the head of a record."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
