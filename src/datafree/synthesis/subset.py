"""A part of given images, chosen by gradient matching (SADAG's Table 1; algorithms A.7)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, fx, nn

from datafree.config import InputSpec, Scheme
from datafree.errors import ConfigError, DataError, ModelError
from datafree.files import sha256
from datafree.graph.taps import last_linear
from datafree.images import SyntheticSet
from datafree.synthesis._matching import Features, calibrated, matching
from datafree.synthesis.base import Batch, Synthesizer
from datafree.tensors import fast_copy


class Subset(Synthesizer):
    """Take those of given images whose gradient is most like that of all of them.

    Of the pool V it takes the part T with the largest ``cos(g(V), g(T))``, Eq. (15), where ``g`` is
    the gradient of the reconstruction loss of the logits for the weights of the last linear layer,
    at the student as it is calibrated and rounded to the nearest. Images are added one at a time,
    each time the one that raises the cosine most. The method is not data-free where the pool is
    real: it is the row of SADAG's Table 1 that shows what gradient matching is worth, beside
    ``choice=random``.
    """

    citation: ClassVar[str] = (
        "Dung et al. (2024), Sharpness-Aware Data Generation for Zero-shot Quantization, ICML"
    )
    needs_file: ClassVar[bool] = True
    chooses: ClassVar[bool] = True

    pool: Path | None = None
    """File of images to choose from, as `synthesize` writes it; has to be given."""
    digest: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """SHA-256 the file must have, in hexadecimal digits; None takes any. Metadata of images always
    have it."""
    choice: Literal["gradient", "random"] = "gradient"
    """How images are chosen: by their `gradient`, or at `random`."""
    scheme: Scheme | None = None
    """The student's numbers; None takes those of the run, or outside a run W4A4 with policy `brecq`
    and weight ranges of least error."""

    def passes(self, count: int) -> float:
        """How large the pool is, is not known before it is read; it passes forwards only."""
        return 3.0 * count

    def for_scheme(self, scheme: Scheme) -> Subset:
        """The method with the student of a run, unless it has one of its own."""
        return self.model_copy(update={"scheme": self.scheme or scheme})

    def describe(self) -> dict[str, Any]:
        """As in the base class, with the digest of the file that `pool` names."""
        return {**super().describe(), "digest": _digest(self._file())}

    def check(self, teacher: nn.Module) -> None:
        """Refuse to go on without a pool, or without a linear layer to match gradients of.

        Raises:
            ConfigError: no file was named.
            DataError: there is no such file, or it is not the one that `digest` says.
            ModelError: no linear layer.
        """
        super().check(teacher)
        found = _digest(self._file())
        if self.digest not in (None, found):
            raise DataError(
                f"{self.pool} holds other images: its SHA-256 is {found}, not {self.digest}"
            )
        linear = isinstance(teacher, fx.GraphModule) and last_linear(teacher) is not None
        if self.choice == "gradient" and not linear:
            raise ModelError(
                "subset matches gradients of the last linear layer, and this network has none:"
                " choose with choice=random"
            )

    def prepare(
        self, teacher: nn.Module, spec: InputSpec, generator: torch.Generator
    ) -> SyntheticSet:
        """Read the pool."""
        del teacher, generator
        return SyntheticSet.load(self._file()).fitted(spec)

    def make_batch(
        self, teacher: nn.Module, spec: InputSpec, batch: Batch, state: SyntheticSet
    ) -> tuple[Tensor, Tensor | None]:
        """Choose; see the base class.

        Raises:
            DataError: the pool has fewer images than are asked for.
        """
        if len(state) < batch.size:
            raise DataError(
                f"{self.pool} holds {len(state)} images, and {batch.size} are to be chosen: ask for"
                " fewer, or give a larger pool"
            )
        if self.choice == "random":
            chosen = torch.randperm(len(state), generator=batch.generator)[: batch.size]
        else:
            chosen = matching_part(self._features(teacher, spec, state.images), batch.size)
        batch.step(1)
        targets = None if state.targets is None else state.targets[chosen]
        return state.images[chosen], targets

    def _features(self, teacher: nn.Module, spec: InputSpec, images: Tensor) -> Features:
        assert isinstance(teacher, fx.GraphModule)  # noqa: S101 - `check` refuses others
        network = fast_copy(teacher).requires_grad_(False)
        student = calibrated(network, images, spec, self.scheme)[1].requires_grad_(False)
        with matching(network, student) as matcher:
            return matcher.of_set(images)

    def _file(self) -> Path:
        if self.pool is None:
            raise ConfigError(
                "the method subset chooses among images: name their file with the option pool"
            )
        return self.pool


def matching_part(features: Features, count: int) -> Tensor:
    """(count,) indices of the samples that together match the gradient of all, greedily.

    ``g_i = a_i r_i^T`` has rank one, so that ``<g_i, g_j> = (a_i a_j) (r_i r_j)`` and no gradient
    is formed but that of all.

    Args:
        features: classifier inputs a (N, D) and logit residuals r (N, C).
        count: at most N.
    """
    inputs, residuals = (part.double().cpu() for part in features)
    whole = inputs.T @ residuals
    towards = ((inputs @ whole) * residuals).sum(1)
    own = inputs.square().sum(1) * residuals.square().sum(1)
    chosen: list[int] = []
    product, square = torch.zeros((), dtype=torch.float64), torch.zeros_like(own[0])
    overlap = torch.zeros_like(own)
    for _ in range(count):
        squares = square + 2 * overlap + own
        likeness = (product + towards) / squares.clamp(min=1e-30).sqrt()
        likeness[chosen] = -torch.inf
        best = int(likeness.argmax())
        chosen.append(best)
        product, square = product + towards[best], squares[best]
        overlap = overlap + (inputs @ inputs[best]) * (residuals @ residuals[best])
    return torch.tensor(chosen)


def _digest(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise DataError(f"cannot read images {path}: {error.strerror}") from None
