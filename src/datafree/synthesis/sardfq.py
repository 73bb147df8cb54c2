"""Images that show several things where attention is to look, in the manner of SARDFQ (4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, fx, nn

from datafree.config import InputSpec
from datafree.graph.attention import attending
from datafree.losses import attention_distance, class_logits, total_variation
from datafree.synthesis._attention import AttentionMethod, by_image, grid_of, prefix_tokens
from datafree.synthesis._pixels import Stage
from datafree.synthesis.base import Batch
from datafree.tensors import fast_copy

_LEAST_SPREAD, _MOST_SPREAD = 0.05, 0.25  # deviations of Gaussians, in sides of the image
_CELLS = 4  # a cross cuts an image into so many rectangles


class SARDFQ(AttentionMethod):
    """Give attention somewhere to look, and every part of an image a class of its own.

    ``min_x sum_(l > N/2) l/N D(A_l(x), P_l) attention_weight + label_weight (SCE(x, T) +
    mean_p SCE(x_p, T_p)) + tv_weight TV(x)`` with three ideas of the paper:

    * Attention priors: in every head of the deeper half of the N attentions, the attention that the
      first token pays to the patches (in networks without a class token, the mean over tokens) is
      drawn to a map of its own, a mixture of `components` Gaussians with random centres, widths and
      shares. D is the mean square of the difference, even attention being 1.
    * Several semantics: a random cross cuts an image into four rectangles; one to `most_patches`
      of them, enlarged to the whole input, are to show a class each.
    * Soft labels: a target is ``softmax(z)`` with ``z ~ U(0, 1)``, and ``z ~ U(lowest_logit,
      highest_logit)`` for the classes to be shown: of the whole image all those of its rectangles.

    The equations of the paper were not at hand, only what others say of it: distance, weights and
    the cross are choices of this file.
    """

    citation: ClassVar[str] = (
        "After Zhong et al. (2025), Semantic Alignment and Reinforcement for Data-Free Quantization"
        " of Vision Transformers, ICCV, arXiv:2412.16553"
    )

    iterations: int = Field(default=1000, ge=1)
    """Steps of Adam per batch."""
    shift: float = Field(default=0.0, ge=0, le=0.5)
    """Share of a side that images are rolled by at most, anew in every step."""
    attention_weight: float = Field(default=1.0, ge=0)
    """Weight of the attention priors."""
    components: int = Field(default=5, ge=1)
    """Gaussians in a map."""
    most_patches: int = Field(default=4, ge=0, le=_CELLS)
    """Rectangles of an image that are to show a class, at most; 0 leaves them out."""
    lowest_logit: float = Field(default=5.0, ge=0)
    """Least logit of a class to be shown, in a target."""
    highest_logit: float = Field(default=10.0, ge=0)
    """Greatest logit of a class to be shown."""

    def passes(self, count: int) -> float:
        """Rectangles are images too: half of the most on average."""
        return self.iterations * count * (1 + (1 + self.most_patches) / 2)

    def stages(self) -> tuple[Stage, ...]:
        """A single one."""
        return (Stage(self.iterations, self.shift),)

    def prepare(self, teacher: nn.Module, spec: InputSpec, generator: torch.Generator) -> Any:
        """A copy of the teacher, and one that shows where its attentions look."""
        del spec, generator
        assert isinstance(teacher, fx.GraphModule)  # noqa: S101 - `check` refuses others
        network = fast_copy(teacher).requires_grad_(False)
        return _State(network, attending(network, "weights"))

    def make_batch(
        self, teacher: nn.Module, spec: InputSpec, batch: Batch, state: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Optimise one batch from Gaussian noise; see the base class."""
        pixels = torch.randn(batch.size, *spec.shape, generator=batch.generator)
        scenes = [self._scene(spec, batch.generator) for _ in range(batch.size)]
        whole = torch.stack([scene.target for scene in scenes])
        maps = _Maps(self.components, batch.size, spec, batch.generator)

        def loss(images: Tensor, part: slice) -> Tensor:
            logits, weights = state.watched(images)
            logits = class_logits(logits)
            total = self.label_weight * F.cross_entropy(logits, whole[part].to(logits.device))
            rows = [place for scene in scenes[part] for place in scene.targets]
            if rows:
                cut = torch.cat([s.enlarged(images[i : i + 1]) for i, s in enumerate(scenes[part])])
                found = class_logits(state.network(cut))
                wanted = torch.stack(rows).to(found.device)
                total = total + self.label_weight * F.cross_entropy(found, wanted)
            depth = len(weights)
            for index in range(depth // 2, depth):
                looked = _looked(weights[index], spec, len(images))
                prior = maps.at(index, part, looked)
                distance = attention_distance(looked, prior)
                total = total + self.attention_weight * (index + 1) / depth * distance
            return total

        def smooth(pixels: Tensor) -> Tensor:
            return self.tv_weight * total_variation(pixels)

        made = self.optimize(state.network, pixels, loss, smooth, spec, batch)
        return made, whole.argmax(1)

    def _scene(self, spec: InputSpec, generator: torch.Generator) -> _Scene:
        """A random cross, which of its rectangles show something, and what."""
        _, height, width = spec.shape
        row, column = (_between(side, generator) for side in (height, width))
        boxes = [
            (top, bottom, left, right)
            for top, bottom in ((0, row), (row, height))
            for left, right in ((0, column), (column, width))
            if bottom > top and right > left
        ]
        most = min(self.most_patches, len(boxes))
        count = int(torch.randint(1, most + 1, (), generator=generator)) if most else 0
        chosen = torch.randperm(len(boxes), generator=generator)[:count].tolist()
        shown = torch.randint(spec.answers, (max(1, count),), generator=generator).tolist()
        targets = [self._target([which], spec, generator) for which in shown[:count]]
        return _Scene(
            self._target(shown, spec, generator), tuple(boxes[i] for i in chosen), tuple(targets)
        )

    def _target(self, shown: list[int], spec: InputSpec, generator: torch.Generator) -> Tensor:
        """(K,) probabilities that the classes in `shown` lead."""
        logits = torch.rand(spec.answers, generator=generator)
        high = torch.rand(spec.answers, generator=generator)
        span = max(0.0, self.highest_logit - self.lowest_logit)
        for which in shown:
            logits[which] = self.lowest_logit + span * high[which]
        return logits.softmax(0)


@dataclass(frozen=True)
class _State:
    network: fx.GraphModule
    watched: fx.GraphModule


@dataclass(frozen=True)
class _Scene:
    """What one image is to show.

    Attributes:
        target: (K,) probabilities of the whole image.
        boxes: (top, bottom, left, right) of rectangles.
        targets: (K,) probabilities of each of them, enlarged.
    """

    target: Tensor
    boxes: tuple[tuple[int, int, int, int], ...]
    targets: tuple[Tensor, ...]

    def enlarged(self, image: Tensor) -> Tensor:
        """(rectangles, C, H, W) of an image (1, C, H, W), each as large as the whole."""
        size = list(image.shape[2:])
        parts = [
            F.interpolate(
                image[..., top:bottom, left:right], size, mode="bilinear", align_corners=False
            )
            for top, bottom, left, right in self.boxes
        ]
        return torch.cat(parts) if parts else image[:0]


def _between(side: int, generator: torch.Generator) -> int:
    """A place in the middle half of `side` pixels."""
    return round(side * (0.25 + 0.5 * float(torch.rand((), generator=generator))))


def _looked(weights: Tensor, spec: InputSpec, count: int) -> Tensor:
    """(B w, heads, patches): where attention looks, its shares of the patches adding up to 1.

    Args:
        weights: (…, heads, queries, keys).
        spec: input of the network.
        count: images B.
    """
    matrices = by_image(weights, count)
    first = prefix_tokens(matrices.shape[-1], spec.shape, windows=len(matrices) > count)
    rows = matrices[..., 0, first:] if first else matrices.mean(-2)
    return rows / rows.sum(-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)


class _Maps:
    """Where each head of each attention is to look in each image of a batch, drawn when asked.

    How many heads and patches an attention has shows only when an image has passed.
    """

    def __init__(
        self, components: int, count: int, spec: InputSpec, generator: torch.Generator
    ) -> None:
        self.components = components
        self.count = count
        self.spec = spec
        self.generator = generator
        self.drawn: dict[int, Tensor] = {}

    def at(self, index: int, part: slice, looked: Tensor) -> Tensor:
        """Maps of attention `index` for the images `part`, shaped as what they `looked` at.

        Args:
            index: of the attention.
            part: of the batch.
            looked: (b w, heads, patches), with w windows in each of b images.
        """
        images = len(range(*part.indices(self.count)))
        windows = len(looked) // images
        if index not in self.drawn:
            height, width = grid_of(looked.shape[-1], self.spec.shape)
            amount = self.count * windows * looked.shape[1]
            maps = gaussian_mixtures(amount, height, width, self.components, self.generator)
            self.drawn[index] = maps.view(self.count, windows, looked.shape[1], -1)
        return self.drawn[index][part].flatten(0, 1).to(looked.device)


def gaussian_mixtures(
    count: int, height: int, width: int, components: int, generator: torch.Generator
) -> Tensor:
    """(count, height x width) random mixtures of Gaussians on a grid, each adding up to 1.

    Centres are uniform over the grid, deviations uniform from a twentieth to a quarter of its
    sides, along rows and columns apart, shares uniform on the simplex.

    Args:
        count: of maps.
        height: of the grid.
        width: of the grid.
        components: Gaussians in a map.
        generator: source of the random numbers, on the CPU.
    """
    drawn = torch.rand(5, count, components, 1, generator=generator)
    axes: list[Tensor] = []
    for side, centre, spread in ((height, drawn[0], drawn[1]), (width, drawn[2], drawn[3])):
        places = (torch.arange(side) + 0.5) / side
        deviation = _LEAST_SPREAD + (_MOST_SPREAD - _LEAST_SPREAD) * spread
        axes.append(torch.exp(-((places - centre) / deviation).square() / 2))
    each = (axes[0][..., :, None] * axes[1][..., None, :]).flatten(2)
    each = each / each.sum(-1, keepdim=True).clamp(min=1e-12)
    shares = -drawn[4].clamp(min=1e-12).log()
    return (each * (shares / shares.sum(1, keepdim=True))).sum(1)
