"""IntraQ: images of one class that differ (algorithms A.8; Zhong et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, fx, nn

from datafree.config import InputSpec
from datafree.errors import ModelError
from datafree.graph.insert import quantizable_layers
from datafree.graph.taps import BatchNorm, tap_batch_norms, tap_calls
from datafree.images import SyntheticSet
from datafree.losses import class_logits, first_logits, variance_distance
from datafree.synthesis._classes import ClassImages
from datafree.synthesis._images import balanced_targets
from datafree.synthesis.base import Batch
from datafree.tensors import device_of

_CHUNK = 64


@dataclass(frozen=True)
class _State:
    """The network, and what its classifier read of all finished images by class.

    Attributes:
        network: with its batch norms.
        sums: (K, D) pooled features, or None before there are any.
        counts: (K,) images.
    """

    network: fx.GraphModule
    sums: Tensor | None = None
    counts: Tensor | None = None


class IntraQ(ClassImages):
    """Match batch statistics with images that keep the variety a class has.

    Pixels are the parameters. Every image has a class, all classes equally often, and

        L = 1/N sum_l (MSE(mean_l, mu_l) + MSE(var_l, sigma_l^2)) + distance_weight L_MDC
            + inception_weight L_SIL

    over the N batch norms, with the mean and variance of the whole batch. Three parts make images
    of one class differ:

    * Local object reinforcement: with probability `crop_probability` per step, every image is seen
      through a random crop of its own, scaled to full size and mirrored half the time.
    * Marginal distance constraint ``L_MDC = mean_n max(lambda_lower - d_n, 0) + max(d_n -
      lambda_upper, 0)``, where d_n is the cosine distance between the classifier's input for image
      n and the running mean of its class: neither in one point nor far away.
    * Soft inception ``L_SIL = mean_n (p_n - t_n)^2`` of the softmax entry p_n of the image's class;
      t_n is drawn once from U(epsilon, 1) for a share `soft_share` of the images, 1 for the others.

    The published values of (epsilon, lambda_lower, lambda_upper) are (0.95, 0.05, 0.8) for
    CIFAR-10, which are the defaults, and (0.6, 0.02, 1.0) for CIFAR-100. Those of the released
    ImageNet script, (1, 0, 2), switch the last two parts off. In the paper, class means are those
    of finished batches and nothing is constrained before there are any (``centers=batches``, and
    protocol `paper`). A small set is one batch, which would know no means at all: by default they
    are exponential averages over the steps of the batch itself, without gradient, that take in the
    step's own images first. Left open, and chosen here: targets are drawn once, not every step;
    crops keep the aspect ratio within 3/4 to 4/3 of the image's.

    The set is shared out evenly into batches of at most `batch_size`. A batch's statistics tie its
    images together, so all its feature maps are in memory at once: at 224 x 224 pixels, lower
    `batch_size` before anything else.
    """

    citation: ClassVar[str] = (
        "Zhong et al. (2022), IntraQ: Learning Synthetic Images with Intra-Class Heterogeneity for"
        " Zero-Shot Network Quantization, CVPR"
    )
    paper_options: ClassVar[Mapping[str, Any]] = {"centers": "batches"}
    lambda_lower: float = Field(default=0.05, ge=0, le=2)
    """Cosine distance to the class mean below which images are pushed away from it."""
    lambda_upper: float = Field(default=0.8, ge=0, le=2)
    """Cosine distance to the class mean above which images are pulled back to it."""
    centers: Literal["steps", "batches"] = "steps"
    """What class means are taken over: `steps`, those of the batch at hand; `batches`, all images
    of finished batches, as in the paper: images of a class that has none yet are free."""
    center_momentum: float = Field(default=0.9, ge=0, lt=1)
    """Share of a class mean that is kept at every step, with `centers` `steps`."""
    distance_weight: float = Field(default=1.0, ge=0)
    """Weight of the marginal distance constraint."""
    epsilon: float = Field(default=0.95, ge=0, le=1)
    """Lowest soft target: the probability of its class that the network is to give an image."""
    soft_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the images with a soft target."""
    inception_weight: float = Field(default=1.0, ge=0)
    """Weight of the soft inception loss."""

    def check(self, teacher: nn.Module) -> None:
        """Refuse a network without batch norms, or without a classifier.

        Raises:
            ModelError: as in the base class; or no convolution or linear layer.
        """
        super().check(teacher)
        if not isinstance(teacher, fx.GraphModule) or not quantizable_layers(teacher):
            raise ModelError(
                f"{self.name} compares what the last convolution or linear layer reads, and this"
                " network has neither; use the method zeroq, which needs batch norms only"
            )

    def prepare(self, teacher: nn.Module, spec: InputSpec, generator: torch.Generator) -> Any:
        """A copy of the teacher, see `ClassImages.frozen`, and no finished images yet."""
        del generator
        network: Any = self.frozen(teacher, spec)
        return _State(network)

    def after_batch(self, state: Any, part: SyntheticSet) -> Any:
        """With `centers` `batches`, what the classifier reads of the finished images counts too."""
        if self.centers == "steps":
            return state
        assert part.targets is not None  # noqa: S101 - `make_batch` returns them
        network: fx.GraphModule = state.network
        device, seen = device_of(network), list[Tensor]()
        classifier = network.get_submodule(quantizable_layers(network)[-1])

        def see(_name: str, features: Tensor, _logits: Tensor) -> None:
            seen.append(pooled(features, classifier))

        with torch.no_grad(), tap_calls({"classifier": classifier}, see):
            for chunk in part.images.split(_CHUNK):
                network(chunk.to(device, memory_format=torch.channels_last))
        members = F.one_hot(part.targets.to(device), part.spec.answers).to(seen[0].dtype)
        sums, counts = members.T @ torch.cat(seen), members.sum(0)
        if state.sums is not None:
            sums, counts = state.sums + sums, state.counts + counts
        return _State(network, sums, counts)

    def make_batch(
        self, teacher: nn.Module, spec: InputSpec, batch: Batch, state: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Optimise one batch from Gaussian noise; see the base class."""
        network: fx.GraphModule = state.network
        device = device_of(network)
        images = torch.randn(batch.size, *spec.shape, generator=batch.generator)
        targets = balanced_targets(batch, spec.answers)
        wanted = soft_targets(batch.size, self.soft_share, self.epsilon, batch.generator)
        objective = _Objective(self, state, targets.to(device), wanted.to(device), spec.answers)
        classifier = {"classifier": objective.classifier}
        with tap_batch_norms(network) as taps, tap_calls(classifier, objective.see):

            def loss(seen: Tensor) -> Tensor:
                return objective.loss(first_logits(network(seen), spec.outputs), taps)

            return self.descend(images, network, batch, loss), targets


class _Objective:
    """What the images of one batch are judged by; holds the running means of their classes."""

    def __init__(
        self, method: IntraQ, state: _State, targets: Tensor, wanted: Tensor, classes: int
    ) -> None:
        self.method = method
        self.state = state
        network = state.network
        self.classifier = network.get_submodule(quantizable_layers(network)[-1])
        self.targets = targets
        self.wanted = wanted
        self.classes = classes
        self.features = torch.empty(0)
        self.centers: Tensor | None = None

    def see(self, _name: str, features: Tensor, _logits: Tensor) -> None:
        """Keep what the classifier reads in this step."""
        self.features = pooled(features, self.classifier)

    def loss(self, logits: Tensor, taps: list[tuple[BatchNorm, Tensor]]) -> Tensor:
        """Scalar loss from what one forward pass left; the class means take it in first."""
        layers = [variance_distance(inputs, *_running_statistics(layer)) for layer, inputs in taps]
        margin = self._by_batches() if self.method.centers == "batches" else self._by_steps()
        inception = soft_inception(logits, self.targets, self.wanted)
        return (
            torch.stack(layers).mean()
            + self.method.distance_weight * margin
            + self.method.inception_weight * inception
        )

    def _by_steps(self) -> Tensor:
        means = class_means(self.features.detach(), self.targets, self.classes)
        kept = self.method.center_momentum
        self.centers = means if self.centers is None else torch.lerp(means, self.centers, kept)
        return self._margin(self.features, self.centers[self.targets])

    def _by_batches(self) -> Tensor:
        """The constraint of the images whose class has finished ones, over all images."""
        sums, counts = self.state.sums, self.state.counts
        if sums is None or counts is None:
            return self.features.new_zeros(())
        known = counts[self.targets] > 0
        own = self.targets[known]
        if not len(own):
            return self.features.new_zeros(())
        margin = self._margin(self.features[known], sums[own] / counts[own, None])
        return margin * (len(own) / len(self.targets))

    def _margin(self, features: Tensor, centers: Tensor) -> Tensor:
        method = self.method
        return marginal_distance(features, centers, method.lambda_lower, method.lambda_upper)


def soft_targets(count: int, share: float, epsilon: float, generator: torch.Generator) -> Tensor:
    """(count,) probabilities images should have of their class: U(epsilon, 1) for some, else 1.

    Args:
        count: number of images.
        share: of the images, to the nearest number, that get a soft one; which ones is random.
        epsilon: lowest soft target.
        generator: source of the random numbers, on the CPU.
    """
    soft = torch.randperm(count, generator=generator)[: round(share * count)]
    wanted = torch.ones(count)
    wanted[soft] = 1 - (1 - epsilon) * torch.rand(len(soft), generator=generator)
    return wanted


def soft_inception(logits: Tensor, targets: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared distance of the softmax entry of every image's class from `wanted`.

    Args:
        logits: (B, K).
        targets: (B,) classes.
        wanted: (B,) probabilities.

    Returns:
        Scalar.
    """
    picked = class_logits(logits).softmax(1).gather(1, targets[:, None])[:, 0]
    return F.mse_loss(picked, wanted)


def marginal_distance(features: Tensor, centers: Tensor, lower: float, upper: float) -> Tensor:
    """Mean over images of how far their cosine distance to `centers` lies outside a band.

    ``max(lower - d, 0) + max(d - upper, 0)`` with ``d = 1 - cos(feature, center)``.

    Args:
        features: (B, D).
        centers: (B, D) mean of the class of each image.
        lower: end of the band, 0 to 2.
        upper: end of the band, 0 to 2.

    Returns:
        Scalar.
    """
    distance = 1 - F.cosine_similarity(features, centers, dim=1)
    return (F.relu(lower - distance) + F.relu(distance - upper)).mean()


def class_means(features: Tensor, targets: Tensor, classes: int) -> Tensor:
    """(K, D) mean features of the images of every class; zero for a class without images.

    Args:
        features: (B, D).
        targets: (B,) classes.
        classes: K.
    """
    # A product rather than index_add, which on CUDA adds in no fixed order.
    members = F.one_hot(targets, classes).to(features.dtype)
    return (members / members.sum(0).clamp(min=1)).T @ features


def pooled(features: Tensor, layer: nn.Module) -> Tensor:
    """(B, D) mean over positions of what `layer` reads: channels last for a linear layer."""
    if isinstance(layer, nn.Linear):
        return features if features.ndim == 2 else features.flatten(1, -2).mean(1)
    return features.flatten(2).mean(2)


def _running_statistics(layer: BatchNorm) -> tuple[Tensor, Tensor]:
    mean, variance = layer.running_mean, layer.running_var
    assert mean is not None and variance is not None  # noqa: S101 - lifting builds no other kind
    return mean, variance
