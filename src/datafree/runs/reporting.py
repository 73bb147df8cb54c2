"""The page of a run: what it is made of, and that it never costs the run."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, fx

from datafree.config import InputSpec, Method, RunConfig
from datafree.errors import DatafreeError, ReportWarning
from datafree.files import write_text
from datafree.images import SyntheticSet
from datafree.jsons import from_json
from datafree.quant.modules import QUANTIZABLE
from datafree.report import Cited, Source, collect, render
from datafree.report.sets import at_most
from datafree.runs.accuracy import Metric, labelled_images
from datafree.runs.exporting import METHODS, class_names
from datafree.runs.folder import ALLOCATION, REPORT
from datafree.runs.plan import make_method

_DFQ = (
    "Nagel et al. (2019), Data-Free Quantization Through Weight Equalization and Bias Correction,"
    " ICCV"
)
_OCS = (
    "Zhao et al. (2019), Improving Neural Network Quantization without Retraining using Outlier"
    " Channel Splitting, ICML"
)
_ZEROQ = "Cai et al. (2020), ZeroQ: A Novel Zero Shot Quantization Framework, CVPR"
_KINDS = {
    "images": "image method", "calibrator": "calibrator", "rounding": "reconstruction",
    "training": "training",
}  # fmt: skip


@dataclass(frozen=True)
class Told:
    """What a run knows when it is done.

    Attributes:
        asked: its configuration as it was asked for.
        config: the same with the methods and bits that were taken.
        spec: input of both networks.
        teacher: canonical graph, of one output tensor.
        student: likewise.
        images: the synthetic ones.
        metrics: what was measured.
        seconds: by stage.
        environment: machine and versions.
        floats: weights of the layers before they were quantized, by path.
    """

    asked: RunConfig
    config: RunConfig
    spec: InputSpec
    teacher: fx.GraphModule
    student: fx.GraphModule
    images: SyntheticSet
    metrics: Mapping[str, Any]
    seconds: Mapping[str, float]
    environment: Mapping[str, Any]
    floats: Mapping[str, Tensor] = field(default_factory=dict)


def write_report(
    folder: Path, told: Told, metric: Metric | None = None, *, name: Path | None = None
) -> None:
    """Write the page of a run into its folder; what goes wrong is a `ReportWarning`.

    Real images stand beside the synthetic ones where the run has labelled ones to be tested on.

    Args:
        folder: of the run.
        told: what is known of it.
        metric: measures on its labelled data, if it is the user's own.
        name: of the run, where `folder` is not where it will be; None is `folder`.
    """
    try:
        real = None
        if told.config.data is not None:
            real = _drawn(told, metric)
        write_page(folder, told, real, name=name)
    except Exception as error:  # noqa: BLE001 - a page must not cost a finished run
        cause = (
            str(error) if isinstance(error, DatafreeError) else f"{type(error).__name__}: {error}"
        )
        warnings.warn(
            f"no {REPORT} was written ({cause}); `datafree report {name or folder}` tries again",
            ReportWarning,
            stacklevel=2,
        )


def write_page(
    folder: Path, told: Told, real: SyntheticSet | None = None, *, name: Path | None = None
) -> Path:
    """Write the page of a run and return its path.

    Args:
        folder: of the run.
        told: what is known of it.
        real: images to compare the synthetic ones with.
        name: as of `write_report`.
    """
    allocation = folder / ALLOCATION
    frontier = None
    if allocation.exists():
        frontier = from_json(allocation.read_text(encoding="utf-8"))
    source = Source(
        name=(name or folder).resolve().name,
        asked=told.asked,
        config=told.config,
        spec=told.spec,
        teacher=told.teacher,
        student=told.student,
        images=told.images,
        metrics=told.metrics,
        seconds=dict(told.seconds),
        floats=told.floats,
        real=real,
        frontier=frontier,
        methods=tuple(cited(told.config, told.images, mixed=told.asked.mixed)),
        environment=told.environment,
        class_names=class_names(told.config, told.spec),
    )
    path = folder / REPORT
    write_text(path, render(collect(source)))
    return path


def weights_of(folded: fx.GraphModule | None) -> dict[str, Tensor]:
    """Weights of all convolutions and linear layers by path; none of no network."""
    if folded is None:
        return {}
    return {
        path: layer.weight.detach()
        for path, layer in folded.named_modules()
        if isinstance(layer, QUANTIZABLE)
    }


def cited(config: RunConfig, images: SyntheticSet, *, mixed: bool = False) -> list[Cited]:
    """The methods that a run used, with what they do and where they come from.

    Args:
        config: with the methods that were taken.
        images: of the run, which say how they were made.
        mixed: bits were chosen layer by layer.
    """
    # The images of a training that dreams its own say that a generator made them.
    made = images.metadata.get("method") == config.synthesis.name
    chosen: dict[str, Method | None] = {
        "images": config.synthesis if made else None,
        "calibrator": None if config.float_student else config.calibration,
        "rounding": config.rounding,
        "training": config.tuning,
    }
    found = [_cited(kind, method) for kind, method in chosen.items() if method is not None]
    return found + [step for step, used in _steps(config, mixed=mixed) if used]


def _cited(kind: str, method: Method) -> Cited:
    package, base = METHODS[kind]
    one = make_method(method, package, base)
    text = (inspect.getdoc(type(one)) or "").partition("\n\n")[0]
    what = " ".join(text.replace("`", "").split())
    return Cited(method.name, _KINDS[kind], what, str(getattr(one, "citation", "")))


def _steps(config: RunConfig, *, mixed: bool) -> list[tuple[Cited, bool]]:
    """Steps there is one of, and whether a run took them."""
    step = "correction"
    return [
        (Cited("equalize", step, "Equalize weight ranges across layers.", _DFQ), config.equalize),
        (
            Cited("absorb_biases", step, "Let the next layer absorb high biases.", _DFQ),
            config.absorb_biases,
        ),
        (
            Cited("split_outliers", step, "Split channels of the largest weights.", _OCS),
            config.split_outliers > 0,
        ),
        (
            Cited("bias_correction", step, "Take the mean shift of outputs off biases.", _DFQ),
            config.bias_rule is not None and not config.float_student,
        ),
        (
            Cited("allocation", "mixed precision", "Choose bits layer by layer.", _ZEROQ),
            mixed,
        ),
    ]


def _drawn(told: Told, metric: Metric | None) -> SyntheticSet | None:
    """Some of the labelled images of a run, as many as are looked at; None where there are none."""
    if not len(told.images):
        return None
    data, _, _ = labelled_images(told.config, told.spec, metric)
    count = min(len(data), len(told.images), at_most(told.images))
    indices = np.random.default_rng(told.config.seed).choice(len(data), count, replace=False)
    return SyntheticSet(data.take(np.sort(indices)), told.spec, metadata={"method": "real"})
