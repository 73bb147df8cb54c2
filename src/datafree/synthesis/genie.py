"""GENIE-D: a generator trained with its latent vectors (algorithms A.6.1; Jeon, CVPR 2023)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, fx, nn

from datafree.config import InputSpec
from datafree.graph.swing import swing_convolutions
from datafree.graph.watched import watched
from datafree.synthesis._generator import ImageGenerator
from datafree.synthesis._genie import Generated, Objective, Steps
from datafree.synthesis._images import asked_classes
from datafree.synthesis.base import Batch, Synthesizer, even_batches
from datafree.tensors import device_of, fast_copy, kept_memory


class Genie(Synthesizer):
    """Match the statistics of a batch of generated images to those the batch norms stored.

    ``min_(G, Z) 1/B sum_n |mean(x_n)|^2 + |std(x_n) - 1|^2 + sum_l 1/C_l (|mean_l - mu_l|^2 +
    |std_l - sigma_l|^2)`` over images ``x = G(Z)``, where ``mean_l`` and ``std_l`` are taken over
    the whole batch. Every batch has a generator and latent vectors of its own; strided
    convolutions swing (`datafree.graph.swing`). The set is shared out evenly: 130 images at a batch
    size of 128 make two batches of 65. A single image is made together with a second one that is
    thrown away, since batch statistics of one image say little.

    The defaults of the two learning rates produced the published results; the paper's text has them
    the other way round (``embedding_lr=0.01, generator_lr=0.1``). The statistics tie the whole
    batch together, so all its feature maps are in memory at once: at 224 x 224 pixels, lower
    `batch_size` before anything else.
    """

    citation: ClassVar[str] = (
        "Jeon, Lee, Kim (2023), Genie: Show Me the Data for Quantization, CVPR"
    )
    needs_batch_norm: ClassVar[bool] = True

    iterations: int = Field(default=4000, ge=1)
    """Steps of Adam per batch."""
    batch_size: int = Field(default=128, ge=1)
    """Images made together, at most."""
    latent_dim: int = Field(default=256, ge=1)
    """Length of a latent vector."""
    embedding_lr: float = Field(default=0.1, gt=0)
    """Adam's rate for the latent vectors at the beginning."""
    generator_lr: float = Field(default=0.01, gt=0)
    """Adam's rate for the generator at the beginning."""
    generator_gamma: float = Field(default=0.95, gt=0, le=1)
    """Factor on the generator's rate after every `generator_decay_every` steps."""
    generator_decay_every: int = Field(default=100, ge=1)
    """Steps between two falls of the generator's rate."""
    patience: int = Field(default=100, ge=0)
    """Steps without a lower loss after which the rate of the latent vectors falls to a tenth."""
    min_lr: float = Field(default=1e-4, ge=0)
    """Rate that `embedding_lr` does not fall below."""
    swing: bool = True
    """Shift the inputs of strided convolutions by up to a pixel, at random in every step."""
    label_weight: float = Field(default=0.0, ge=0)
    """Weight of the cross-entropy to balanced random classes; 0 leaves it out."""
    margin: float | None = Field(default=None, ge=0)
    """Lead of the logit of an image's class that is enough: `label_weight` then weighs what is
    missing to it, instead of the cross-entropy. None has the cross-entropy."""

    @model_validator(mode="after")
    def _margin_has_weight(self) -> Self:
        if self.margin is not None and not self.label_weight:
            raise ValueError("margin has no effect without label_weight: give it one, such as 0.03")
        return self

    @property
    def batch_iterations(self) -> int:
        """Steps of Adam."""
        return self.iterations

    def passes(self, count: int) -> float:
        """The generator costs about as much as a small network."""
        return 1.5 * self.iterations * count

    def batch_images(self, teacher: nn.Module, count: int) -> int:
        """Size of the fewest batches of at most `batch_size` images that are about equal."""
        del teacher
        return even_batches(count, self.batch_size)

    def prepare(self, teacher: nn.Module, spec: InputSpec, generator: torch.Generator) -> Any:
        """A copy of the teacher in the memory layout in which convolutions are fastest."""
        del spec, generator
        return fast_copy(teacher).requires_grad_(False)

    def make_batch(
        self, teacher: nn.Module, spec: InputSpec, batch: Batch, state: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Train a new generator and new latent vectors; see the base class."""
        made = self.train_generator(spec, batch, state)
        targets = None if made.targets is None else made.targets[: batch.size]
        return made.images[: batch.size].contiguous(), targets

    def train_generator(self, spec: InputSpec, batch: Batch, network: fx.GraphModule) -> Generated:
        """A new generator and new latent vectors, trained for `iterations` steps.

        Args:
            spec: input of the network.
            batch: size, random numbers, progress.
            network: what `prepare` returned.
        """
        # The generator's own batch norms need two values per channel, whatever the image size.
        enlarged = replace(batch, size=max(batch.size, 2))
        device = device_of(network)
        latents = torch.randn(enlarged.size, self.latent_dim, generator=batch.generator)
        generator = ImageGenerator(spec.shape, self.latent_dim, batch.generator)
        targets = asked_classes(enlarged, spec) if self.label_weight else None
        # A copy in any case: what is watched has other layers.
        network = swing_convolutions(network, batch.generator) if self.swing else fast_copy(network)
        labels = None if targets is None else targets.to(device)
        watching = watched(network, together=True)
        objective = Objective(watching, labels, self.label_weight, spec.outputs, self.margin)
        generator, latents = generator.to(device), latents.to(device).requires_grad_()
        steps = self._steps(generator, latents)
        images = latents
        with kept_memory():
            for _ in batch.iterations(self.iterations):
                images = generator(latents)
                steps.take(objective.loss(images))
                batch.step(1)
        return Generated(generator, latents.detach(), images.detach(), targets)

    def _steps(self, generator: ImageGenerator, latents: Tensor) -> Steps:
        embedding = torch.optim.Adam([latents], lr=self.embedding_lr)
        # At 224 pixels most weights are in one layer, and plain Adam takes longer than the rest.
        weights = torch.optim.Adam(generator.parameters(), lr=self.generator_lr, fused=True)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            embedding, factor=0.1, patience=self.patience, min_lr=self.min_lr
        )
        decay = torch.optim.lr_scheduler.StepLR(
            weights, self.generator_decay_every, gamma=self.generator_gamma
        )
        return Steps(embedding, weights, plateau, decay)
