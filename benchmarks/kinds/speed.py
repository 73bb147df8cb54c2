"""What a step of each method costs, in steps of the bare network: measured beside it."""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from benchmarks import networks
from benchmarks.kinds.base import Bench, Kind
from benchmarks.moments import middle, noting
from benchmarks.place import Place
from datafree import generators
from datafree.calibrators.base import calibrate
from datafree.calibrators.mse import MSE
from datafree.config import Frozen, InputSpec, RunConfig, Scheme
from datafree.errors import DatafreeError
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.reconstruction.genie_m import GenieM
from datafree.reconstruction.qdrop import QDrop
from datafree.synthesis.base import Batch, Synthesizer
from datafree.synthesis.dsg import DSG
from datafree.synthesis.genie import Genie
from datafree.synthesis.sadag import SADAG
from datafree.synthesis.zeroq import ZeroQ
from datafree.tensors import fast_copy
from datafree.training import Task, train
from datafree.training.dfqf import DFQF

Timed = Callable[[], float]
"""CPU seconds of one step; called once a round."""
Name = Literal["zeroq", "dsg", "genie", "sadag", "qdrop", "genie_m", "dfqf"]
_STEPS = 6  # of a method in a round
_PASSES = 3  # of the bare network


class Request(Frozen):
    """What the process that measures is told."""

    model: str
    """A name of `benchmarks.networks`."""
    together: int
    """Images of a step."""
    rounds: int
    """Of all that is compared, one after the other."""
    steps: tuple[Name, ...]
    """Methods."""


class Speed(Kind):
    """CPU seconds of a step over those of the floor, in one process, taken in turns.

    The floor is the network with its batch norms folded, channels last, there and back to the
    images, by itself: as it is (`eager`) or by `torch.compile` where a C++ compiler is at hand
    (`compiled`), both in ms; ratios are to the faster one. They are medians over the rounds;
    `noise` has their standard deviations. A step of `sadag` is one of its matching, one of `qdrop`
    and `genie_m` a step of every block. One of `dfqf` is compared with a floor of its own (`game`):
    generator, teacher and student there and back by themselves.
    """

    together: int = 32
    """Images of a step."""
    rounds: int = 3
    """Rounds."""
    steps: tuple[Name, ...] = ("zeroq", "dsg", "genie", "sadag", "qdrop", "genie_m", "dfqf")
    """Methods."""
    library: str | None = None
    """Commit whose library is measured; None is the one in `src`."""

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        with TemporaryDirectory() as folder:
            root = bench.place.root if self.library is None else Path(folder)
            if self.library is not None:
                unpack(self.library, bench.place.root, root)
            path = [str(root / "src"), *sys.path]
            environment = {
                **os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1",
                "DATAFREE_SHARED": str(bench.place.shared),
            }  # fmt: skip
            asked = Request(
                model=config.model, together=self.together, rounds=self.rounds, steps=self.steps
            )
            done = subprocess.run(
                [sys.executable, "-c", f"from {__name__} import child; child()"],
                input=asked.model_dump_json(), capture_output=True, text=True, env=environment,
                check=False,
            )  # fmt: skip
        if done.returncode:
            told = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
            raise DatafreeError(f"steps in a process of their own failed: {told}")
        return json.loads(done.stdout.splitlines()[-1])


def unpack(commit: str, root: Path, folder: Path) -> None:
    """Write the library as it was at `commit` of the repository `root` to ``folder/src``.

    Raises:
        DatafreeError: there is no such commit.
    """
    done = subprocess.run(
        ["git", "-C", root, "archive", commit, "src"], capture_output=True, check=False
    )
    if done.returncode:
        told = " ".join(done.stderr.decode().split())
        raise DatafreeError(f"cannot take the library of commit {commit}: {told}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")


def child() -> None:
    """Read a request from the standard input, and print what was measured as JSON."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    request = Request.model_validate_json(sys.stdin.read())
    print(json.dumps(measured(request, Place.here())))  # noqa: T201 - how processes talk


def measured(request: Request, place: Place) -> dict[str, Any]:
    """What `Speed` tells, measured in this process."""
    network = networks.load(request.model, place)
    graph, spec = network.graph, network.teacher.spec
    images = torch.randn(
        request.together, *spec.shape, generator=torch.Generator().manual_seed(0)
    ).to(memory_format=torch.channels_last)
    folded = fast_copy(fold_batch_norms(graph)).requires_grad_(False)
    timed: dict[str, Timed] = {"eager": bare(folded, images)}
    compiled = torch.compile(folded)
    try:
        bare(compiled, images)()
        timed["compiled"] = bare(compiled, images)
    except Exception:  # noqa: BLE001 - no compiler, or one that fails: inductor raises anything
        compiled = None
    timed |= {name: _step(name, graph, spec, images) for name in request.steps}
    if "dfqf" in request.steps:
        timed["game"] = bare_game(folded, spec, request.together)
    found: dict[str, list[float]] = {name: [] for name in timed}
    for done in range(request.rounds + 1):
        for name, step in timed.items():
            spent = step()
            if done:  # the first round warms up
                found[name].append(spent)
    return summary(found)


def summary(found: dict[str, list[float]]) -> dict[str, Any]:
    """Floors in ms, and ratios to the faster one with their noise.

    Args:
        found: CPU seconds of every round, of `eager`, of `compiled` and `game` if there are such,
            and of methods.
    """
    floors = {name: found[name] for name in ("eager", "compiled", "game") if name in found}
    fastest = min(floors.keys() - {"game"}, key=lambda name: statistics.median(floors[name]))
    below = {name: floors["game" if name == "dfqf" else fastest] for name in found}
    ratios = {
        name: [one / floor for one, floor in zip(times, below[name], strict=True)]
        for name, times in found.items()
        if name not in floors
    }
    return {
        **{name: 1e3 * statistics.median(times) for name, times in floors.items()},
        "floor": fastest,
        **{name: statistics.median(values) for name, values in ratios.items()},
        "noise": {name: statistics.stdev(values) for name, values in ratios.items()},
    }


def bare(network: Callable[[Tensor], Tensor], images: Tensor) -> Timed:
    """A pass of `images` through `network` and back to them."""

    def once() -> None:
        chunk = images.detach().requires_grad_()
        torch.autograd.grad(network(chunk).sum(), [chunk])

    return _mean(once)


def _mean(once: Callable[[], None]) -> Timed:
    """CPU seconds of `once`, the mean of several after one."""

    def several() -> float:
        once()
        began = time.process_time()
        for _ in range(_PASSES):
            once()
        return (time.process_time() - began) / _PASSES

    return several


def bare_game(folded: fx.GraphModule, spec: InputSpec, count: int) -> Timed:
    """A step of DFQF without statistics, quantizers and optimizers.

    New images by generator, teacher and student, and back to the generator; new ones by all three,
    and back to the student.
    """
    teacher, student = fast_copy(folded).requires_grad_(False), fast_copy(folded).requires_grad_()
    asked = generators.GeneratorConfig(
        shape=(spec.shape[0], spec.shape[1], spec.shape[2]), classes=spec.classes or 1,
        latent=DFQF().latent, condition="none",
    )  # fmt: skip
    random = torch.Generator().manual_seed(0)
    generator = generators.Generator(asked, random).train()
    latents = torch.randn(count, asked.latent, generator=random)

    def once() -> None:
        made = generator(latents, None)
        total = teacher(made).sum() + student(made).sum()
        torch.autograd.grad(total, list(generator.parameters()))
        with torch.no_grad():
            made = generator(latents, None)
            teacher(made)
        torch.autograd.grad(student(made).sum(), list(student.parameters()))

    return _mean(once)


def _step(name: Name, graph: fx.GraphModule, spec: InputSpec, images: Tensor) -> Timed:
    """A step of a method on as many images as there are `images`."""
    count = len(images)
    together: dict[str, Any] = {"iterations": _STEPS, "batch_size": count}
    if name == "zeroq":
        return _batch(ZeroQ(**together, least_fall=0), graph, spec, count)
    if name == "dsg":
        return _batch(DSG(**together, least_fall=0, margin_images=8), graph, spec, count)
    if name == "genie":
        return _batch(Genie(**together), graph, spec, count)
    if name == "sadag":
        return _matching(graph, spec, count)
    if name == "dfqf":
        return _game(graph, spec, count)
    method = QDrop if name == "qdrop" else GenieM
    return _blocks(method(iterations=_STEPS, batch_size=count), graph, spec, images)


def _batch(method: Synthesizer, graph: nn.Module, spec: InputSpec, count: int) -> Timed:
    """A step of a batch of `method`, the first two left out."""
    state = method.prepare(graph, spec, torch.Generator().manual_seed(0))

    def step() -> float:
        moments: dict[str, list[float]] = {}
        with noting(moments)("steps", _STEPS) as told:
            batch = Batch(count, 0, torch.Generator().manual_seed(0), told)
            method.make_batch(graph, spec, batch, state)
        return middle(moments["steps"])

    return step


def _matching(graph: fx.GraphModule, spec: InputSpec, count: int) -> Timed:
    """A step of SADAG's matching."""
    method = SADAG(iterations=1, batch_size=count, matching_iterations=_STEPS, student_iterations=1)

    def step() -> float:
        moments: dict[str, list[float]] = {}
        method.generate(graph, spec, count, progress=noting(moments))
        return middle(moments["sadag images"])

    return step


def _game(graph: fx.GraphModule, spec: InputSpec, count: int) -> Timed:
    """A step of DFQF's fine-tuning, generator and student."""
    method = DFQF(warmup=0, iterations=_STEPS, batch_size=count, calibration_images=64, checks=1)
    scheme = Scheme(bits="W4A4", policy="brecq")
    task = Task(graph, fold_batch_norms(graph), spec, scheme, MSE())

    def step() -> float:
        moments: dict[str, list[float]] = {}
        train(method, task, progress=noting(moments))
        noted = moments["dfqf fine-tuning"]
        return middle(noted[:-1])

    return step


def _blocks(
    method: QDrop | GenieM, graph: fx.GraphModule, spec: InputSpec, images: Tensor
) -> Timed:
    """A step of every block, one after the other, the first two of each left out."""
    folded = fold_batch_norms(graph)

    def step() -> float:
        scheme = Scheme(bits="W4A4", policy="brecq", weight_range="mse")
        student = insert_quantizers(folded, scheme, spec)
        calibrate(student, [images], MSE(power=2.4), observe="float")
        moments: dict[str, list[float]] = {}
        method.reconstruct(folded, student, images, progress=noting(moments))
        (noted,) = moments.values()
        noted = noted[1:]  # what was done before: nothing
        blocks = [noted[start : start + _STEPS] for start in range(0, len(noted), _STEPS)]
        return sum(middle(block) for block in blocks)

    return step
