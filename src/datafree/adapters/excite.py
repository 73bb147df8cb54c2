"""Images that excite a network as data would: the last step of a set for other tools."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from datafree.config import Hyperparameters, InputSpec
from datafree.graph.taps import BatchNorm, batch_norms, tap_batch_norms
from datafree.images import SyntheticSet
from datafree.losses import first_logits, margin_loss, standardized_distance
from datafree.progress import Progress, silent
from datafree.progress.meter import Meter
from datafree.synthesis._images import asked_classes
from datafree.synthesis.base import Batch, Making, Sizes, Stored, even_batches, join
from datafree.tensors import device_of, fast_copy, state_digest

_REACH = 4.0  # deviations that values reach which are no image


class Excite(Hyperparameters):
    """Go on from finished images until classes are as sure, and ranges as wide, as on data.

    Methods that match the statistics of every image by itself make images of no class: all pooled
    vectors are the mean one, and logits stay near zero. A quantizer that sets the ranges of the
    last layers on them clips what real images give. Here statistics hold over a batch, so that
    images may differ, and every image is pushed to lead in a class of its own:
    ``min_x 1/N sum_l d_l(x) + push max(margin - (z_y - max_{c != y} z_c), 0)``, with ``d_l`` the
    squared distance of the batch's mean and deviation at batch norm l from the stored ones, in
    deviations, and x within black and white. At last the darkest and the brightest value of every
    channel of the set become black and white.

    Networks without batch norms have nothing that keeps images plausible: there only the last step
    is taken.
    """

    steps: int = Field(default=100, ge=1)
    """Steps of Adam per batch."""
    learning_rate: float = Field(default=0.1, gt=0)
    """Adam's rate at the beginning, as a share of the range of pixels; it falls to a fiftieth."""
    push: float = Field(default=0.03, ge=0)
    """Weight of the distance to the margin; statistics are measured in deviations."""
    margin: float = Field(default=15.0, ge=0)
    """Lead of the logit of an image's class that is enough."""
    batch_size: int = Field(default=32, ge=1)
    """Images that share their statistics, at most; all their feature maps are in memory at once."""

    def apply(
        self,
        teacher: nn.Module,
        images: SyntheticSet,
        *,
        seed: int = 0,
        progress: Progress = silent,
        checkpoint: Path | None = None,
    ) -> SyntheticSet:
        """A new set of as many images, whose targets are the classes they were pushed to.

        Args:
            teacher: canonical graph with its batch norms unfolded, in eval mode; not changed.
            images: of any method.
            seed: decides which image is pushed to which class.
            progress: shown while it runs, in steps.
            checkpoint: folder that keeps finished batches, as of `Synthesizer.generate`.
        """
        told = {**dict(images.metadata), "excite": self.model_dump(mode="json")}
        if not batch_norms(teacher):
            return full_range(replace(images, metadata={**told, "excite": "no batch norms"}))
        request = {**told, "of": images.digest(), "teacher": state_digest(teacher.state_dict())}
        network = fast_copy(teacher).requires_grad_(False)

        def make(batch: Batch) -> SyntheticSet:
            stored = Stored.of(batch, checkpoint, request)
            part = stored.load()
            if part is not None:
                batch.step(self.steps)
                return part
            part = self._batch(network, images, batch, stored.metadata)
            stored.save(part)
            return part

        size = even_batches(len(images), self.batch_size)
        making = Making(
            "excite images", lambda size: _batches(len(images), size, seed), make, self.steps,
            Sizes(checkpoint, request, size),
        )  # fmt: skip
        total = self.steps * -(-len(images) // size)
        with progress("excite images", total) as step:
            parts = making.parts(Meter(step, total))
        return full_range(join(parts, images.spec, told))

    def _batch(
        self, network: nn.Module, images: SyntheticSet, batch: Batch, told: dict[str, Any]
    ) -> SyntheticSet:
        """One batch, optimised."""
        spec, device = images.spec, device_of(network)
        pixels = _Pixels.of(spec, device)
        given = images.images[batch.start : batch.start + batch.size]
        targets = asked_classes(batch, spec)
        shares = pixels.shares(given.to(device)).contiguous(memory_format=torch.channels_last)
        labels = None if targets is None else targets.to(device)
        shares.requires_grad_()
        optimizer = torch.optim.Adam([shares], lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, self.steps, eta_min=self.learning_rate / 50
        )
        with tap_batch_norms(network) as taps:
            for _ in range(self.steps):
                logits = network(pixels.normalised(shares))
                loss = _distance(taps)
                if self.push and labels is not None:
                    answers = first_logits(logits, spec.outputs)
                    loss = loss + self.push * margin_loss(answers, labels, self.margin)
                (shares.grad,) = torch.autograd.grad(loss, [shares])
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    shares.clamp_(0, 1)
                batch.step(1)
        made = pixels.normalised(shares.detach()).cpu().contiguous()
        return SyntheticSet(made, spec, targets, told)


@dataclass(frozen=True)
class _Pixels:
    """Where black and white lie in normalised space, for every channel.

    Values that are no image lie within four deviations.
    """

    black: Tensor
    span: Tensor

    @classmethod
    def of(cls, spec: InputSpec, device: torch.device) -> _Pixels:
        mean, std = (
            torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (spec.mean, spec.std)
        )
        image = torch.tensor(spec.image_channels, device=device).view(1, -1, 1, 1)
        black = torch.where(image, -mean / std, torch.full_like(mean, -_REACH))
        return cls(black, torch.where(image, 1 / std, torch.full_like(std, 2 * _REACH)))

    def shares(self, images: Tensor) -> Tensor:
        """Normalised images as shares of white, 0 to 1; what is beyond is cut."""
        return ((images - self.black) / self.span).clamp(0, 1)

    def normalised(self, shares: Tensor) -> Tensor:
        return shares * self.span + self.black


def _distance(taps: list[tuple[BatchNorm, Tensor]]) -> Tensor:
    """Mean over batch norms of the distance of a batch from what they stored."""
    rows: list[Tensor] = []
    for layer, features in taps:
        mean, variance = layer.running_mean, layer.running_var
        assert mean is not None and variance is not None  # noqa: S101 - lifting builds no other
        rows.append(standardized_distance(features, mean, torch.sqrt(variance + layer.eps)))
    return torch.stack(rows).mean()


def _batches(count: int, most: int, seed: int) -> list[Batch]:
    """All batches, of at most `most` images."""
    size = even_batches(count, most)
    starts = range(0, count, size)
    seeder = torch.Generator().manual_seed(seed)
    seeds = torch.randint(2**62, (len(starts),), generator=seeder).tolist()
    return [
        Batch(min(size, count - start), start, torch.Generator().manual_seed(number))
        for start, number in zip(starts, seeds, strict=True)
    ]


def full_range(images: SyntheticSet) -> SyntheticSet:
    """The set within black and white, both of which occur in every channel.

    Values beyond are cut, and the darkest and the brightest value of every channel of the set
    become black and white: the range of the network's input is known without any image.
    """
    pixels = _Pixels.of(images.spec, torch.device("cpu"))
    shares = pixels.shares(images.images.cpu())
    planes = shares.transpose(0, 1).reshape(shares.shape[1], -1).clone()
    channels = torch.tensor(images.spec.image_channels).nonzero().flatten()
    planes_of_images = planes[channels]
    planes[channels, planes_of_images.argmin(1)] = 0
    planes[channels, planes_of_images.argmax(1)] = 1
    back = planes.view(shares.shape[1], len(shares), *shares.shape[2:]).transpose(0, 1)
    return replace(images, images=pixels.normalised(back).contiguous())
