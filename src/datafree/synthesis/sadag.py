"""SADAG: images on which the quantized network's gradients agree with their neighbours' (A.7)."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, fx, nn

from datafree.config import InputSpec, Scheme
from datafree.errors import ModelError
from datafree.graph.swing import swing_convolutions
from datafree.graph.taps import last_linear
from datafree.graph.watched import watched
from datafree.images import SyntheticSet
from datafree.losses import gradient_diversity, gradient_matching, set_matching
from datafree.progress import Progress, silent
from datafree.progress.deadline import NEVER, Deadline
from datafree.reconstruction.genie_m import GenieM
from datafree.synthesis._draft import Draft
from datafree.synthesis._generator import ImageGenerator
from datafree.synthesis._genie import Generated, Objective
from datafree.synthesis._making import in_time
from datafree.synthesis._matching import (
    Features,
    Matcher,
    calibrated,
    frozen,
    matching,
    unit,
)
from datafree.synthesis.base import Batch, Stored
from datafree.synthesis.genie import Genie
from datafree.tensors import device_of, kept_memory, load_tensors, save_tensors
from datafree.tensors.memory import Portion

# Of the time that is left where there is a limit, about as their steps cost.
_WARM_SHARE, _STUDENT_SHARE = 0.3, 0.4
_LATER = 2**32  # added to the seed after the warm-up
_PROBE = 0.1  # length of the random step that starts the power iteration
_SAME = 1e-9  # what the released code adds to the samples it compares with themselves


class SADAG(Genie):
    """Train Genie's images on until the student's gradients on them match their neighbours'.

    First every batch is made as `genie` makes it, in `iterations` steps: the warm-up. On these
    images a student of the network is quantized by `genie_m` and frozen. Then generator and latent
    vectors of each batch learn

        L_BN + matching_weight * L_GM + diversity_weight * L_div

    where the gradient of a sample is that of the reconstruction loss for the weights of the last
    linear layer. ``L_GM`` (Eq. 18) compares it with that of a neighbour ``G(z + eps)``, the one
    within `rho` that differs most: ``L_GM = 1/B sum_i 1 - cos(g_i, g'_i)``. ``L_div`` (Eq. 19)
    keeps samples apart, in the batch and from all batches before:
    ``L_div = 1/B sum_i max_(j != i) max(|cos(g_i, g_j)| - tau, 0)``. Swinging is for the warm-up
    only, unless `matching_swing` goes on with it. With ``match=set`` the gradients compared are
    those of the whole batch (Eq. 15), ``L_GM = 1 - cos(sum_i g_i, sum_i g'_i)``.

    With `compare_with`, a file of images such as real ones, metadata of the set have the cosine of
    its gradient and theirs (``cosine``), and that of the warm-up (``warm_cosine``).

    The gradient that should point to the neighbour is 0 at ``eps = 0``; `perturb` chooses the way
    out.
    """

    citation: ClassVar[str] = (
        "Dung et al. (2024), Sharpness-Aware Data Generation for Zero-shot Quantization, ICML"
    )

    matching_iterations: int = Field(default=500, ge=1)
    """Steps after the warm-up per batch."""
    student_iterations: int = Field(default=4000, ge=1)
    """Steps per block with which the student learns its rounding."""
    scheme: Scheme | None = None
    """The student's numbers; None takes those of the run, or outside a run W4A4 with policy `brecq`
    and weight ranges of least error."""
    matching_weight: float = Field(default=1.0, ge=0)
    """Weight of the gradient matching ``L_GM``."""
    diversity_weight: float = Field(default=1.0, ge=0)
    """Weight of the diversity ``L_div``."""
    match: Literal["sample", "set"] = "sample"
    """Whose gradients are matched with those of neighbours: each `sample`'s, or the `set`'s, that
    is the sum over the batch."""
    matching_swing: bool = False
    """Let strided convolutions swing after the warm-up too, where statistics are matched."""
    compare_with: Path | None = None
    """File of images that `synthesize` wrote, or of real ones in that form, with whose gradient the
    set's is compared. They change nothing."""
    rho: float = Field(default=2.0, ge=0)
    """Euclidean distance of the neighbours in latent space; the released script has 1."""
    tau: float = Field(default=0.0, ge=0, le=1)
    """Likeness of two gradients that costs nothing, as an absolute cosine; 0 or 0.1 in the
    paper."""
    perturb: Literal["power", "official", "random"] = "power"
    """How neighbours are found: `power`, by one power iteration from a random step of 0.1;
    `official`, along rounding noise, as the released code does; `random`, along the random step
    itself."""
    matching_embedding_lr: float = Field(default=1e-5, gt=0)
    """Adam's rate for the latent vectors after the warm-up."""
    matching_generator_lr: float = Field(default=1e-4, gt=0)
    """Adam's rate for the generator after the warm-up."""
    matching_gamma: float = Field(default=0.95, gt=0, le=1)
    """Factor on the generator's rate after every step that follows the warm-up."""

    def for_scheme(self, scheme: Scheme) -> SADAG:
        """The method with the student of a run, unless it has one of its own."""
        return self.model_copy(update={"scheme": self.scheme or scheme})

    def passes(self, count: int) -> float:
        """Each step of the matching takes three passes through teacher, student and generator."""
        student = GenieM(iterations=self.student_iterations).passes(count)
        return super().passes(count) + 6 * self.matching_iterations * count + student

    def check(self, teacher: nn.Module) -> None:
        """Refuse a network without batch norms or without a linear layer to match gradients of.

        Raises:
            DataError: the file to compare with holds no images.
            ModelError: what is missing, and methods that do without.
        """
        super().check(teacher)
        if self.compare_with is not None:
            SyntheticSet.load(self.compare_with)
        if not isinstance(teacher, fx.GraphModule) or last_linear(teacher) is None:
            raise ModelError(
                "sadag matches gradients of the last linear layer, and this network has none; use"
                " the method genie"
            )

    def generate(  # noqa: PLR0913 - as in the base class
        self,
        teacher: nn.Module,
        spec: InputSpec,
        count: int,
        *,
        seed: int = 0,
        progress: Progress = silent,
        checkpoint: Path | None = None,
        deadline: Deadline = NEVER,
    ) -> SyntheticSet:
        """Warm up, quantize, match; arguments as in the base class.

        All images depend on one student, so that where memory runs out all begin again in batches
        of half the size.
        """
        portion = Portion(f"{self.name} images", self.batch_images(teacher, count))

        def work(size: int) -> SyntheticSet:
            asked = size == self.batch_images(teacher, count)
            method = self if asked else self.model_copy(update={"batch_size": size})
            return method._made(
                teacher, spec, count, seed=seed, progress=progress, checkpoint=checkpoint,
                deadline=deadline,
            )  # fmt: skip

        found = portion.fit(work)
        asked = {**found.metadata, **self.describe()}
        return (
            found
            if asked == found.metadata
            else replace(found, metadata={**asked, "batch_sizes": [[0, portion.size]]})
        )

    def _made(  # noqa: PLR0913 - as `generate`
        self,
        teacher: nn.Module,
        spec: InputSpec,
        count: int,
        *,
        seed: int,
        progress: Progress,
        checkpoint: Path | None,
        deadline: Deadline,
    ) -> SyntheticSet:
        """The images, in batches of the size the method has."""
        self.check(teacher)
        others = None
        if self.compare_with is not None:  # what does not fit is told now, not after hours
            others = SyntheticSet.load(self.compare_with).fitted(spec).images
        network = self.prepare(teacher, spec, torch.Generator())
        request = self.request(teacher, spec, count, seed, stored=checkpoint is not None)
        with ExitStack() as stack:
            folder = checkpoint or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            with progress("sadag warm-up", self._steps_of(teacher, count, self.iterations)) as step:
                # What came after the warm-up does not matter to it.
                warm = {k: v for k, v in request.items() if k not in _OWN_FIELDS}
                learned = warm | {k: request[k] for k in _STUDENT_FIELDS}
                drafts = [
                    self._draft(Draft(folder, batch, warm, self.latent_dim), spec, network)
                    for batch in in_time(
                        self.batches(teacher, count, seed, step), deadline.share(_WARM_SHARE)
                    )
                ]
            images = torch.cat([d.load(spec, network).images[: d.batch.size] for d in drafts])
            student = self._student(
                network, images, spec, seed, progress, folder, learned, deadline
            )
            parts: list[SyntheticSet] = []
            total = self._steps_of(teacher, count, self.matching_iterations)
            with progress("sadag images", total) as step, matching(network, student) as matcher:
                # Random numbers of their own: those of the warm-up are spent.
                later = self.batches(teacher, count, seed + _LATER, step)
                for draft, batch in zip(drafts, in_time(later, deadline), strict=True):
                    part = self._finished(draft, batch, request, spec, matcher)
                    matcher.remember(part.images.to(device_of(network)))
                    parts.append(part)
                found = _compared(matcher, images, parts, others)
        made = self.joined(parts, spec, seed, count)
        return replace(made, metadata={**made.metadata, **found})

    def _steps_of(self, teacher: nn.Module, count: int, iterations: int) -> int:
        return -(-count // self.batch_images(teacher, count)) * iterations

    def _draft(self, draft: Draft, spec: InputSpec, network: fx.GraphModule) -> Draft:
        """Warm one batch up, unless that was done before."""
        if draft.exists():
            draft.batch.step(self.iterations)
        else:
            draft.save(self.train_generator(spec, draft.batch, network))
        return draft

    def _student(  # noqa: PLR0913 - what one call of `generate` has in common
        self,
        network: fx.GraphModule,
        images: Tensor,
        spec: InputSpec,
        seed: int,
        progress: Progress,
        folder: Path,
        request: Mapping[str, object],
        deadline: Deadline,
    ) -> fx.GraphModule:
        """The network quantized by Genie-M on `images`; frozen, its weights on their grids."""
        folded, student = calibrated(network, images, spec, self.scheme)
        path = folder / "batch_student.safetensors"
        found = load_tensors(path, request)
        if found is None:
            GenieM(iterations=self.student_iterations).reconstruct(
                folded, student, images, unfolded=network, seed=seed, progress=progress,
                checkpoint=folder / "batch_student_unfinished.safetensors",
                deadline=deadline.share(_STUDENT_SHARE),
            )  # fmt: skip
            save_tensors(path, student.state_dict(), request)
        else:
            student.load_state_dict(found[0])
        return frozen(student)

    def _finished(
        self,
        draft: Draft,
        batch: Batch,
        request: dict[str, Any],
        spec: InputSpec,
        matcher: Matcher,
    ) -> SyntheticSet:
        """One batch with its gradients matched: trained now, or read from an earlier call."""
        drawn = batch.generator.initial_seed()
        stored = Stored(draft.folder, batch.start, {**request, "batch_seed": drawn})
        found = stored.load()
        if found is not None:
            batch.step(self.matching_iterations)
            return found
        made = self._match(draft.load(spec, matcher.teacher), batch, matcher)
        targets = None if made.targets is None else made.targets[: batch.size]
        images = made.images[: batch.size].contiguous().cpu()
        self.check_images(images, matcher.teacher, spec, batch)
        part = SyntheticSet(images, spec, targets, stored.metadata)
        stored.save(part)
        return part

    def _match(self, made: Generated, batch: Batch, matcher: Matcher) -> Generated:
        """Train generator and latent vectors on; the images are those before the last update."""
        network, sets = matcher.network, self.match == "set"
        if self.matching_swing:
            swung = swing_convolutions(matcher.teacher, batch.generator)
            network = watched(swung, together=True)
        look = matcher.raw if sets else matcher.features
        compare = set_matching if sets else gradient_matching
        labels = None if made.targets is None else made.targets.to(device_of(network))
        objective = Objective(network, labels, self.label_weight, margin=self.margin)
        latents = made.latents.requires_grad_()
        steps = self._later()._steps(made.generator, latents)
        images = made.images
        with kept_memory():
            for _ in batch.iterations(self.matching_iterations):
                images = made.generator(latents)
                loss = objective.loss(images)
                own = look(images, passed=not self.matching_swing)
                shift = self._shift(made.generator, latents, own, matcher, batch.generator)
                near = look(made.generator(latents + shift))
                loss = loss + self.matching_weight * compare(own, near)
                own = unit(own) if sets else own
                others = matcher.with_memory(own)
                loss = loss + self.diversity_weight * gradient_diversity(own, others, self.tau)
                steps.take(loss)
                batch.step(1)
        return replace(made, images=images.detach())

    def _shift(
        self,
        generator: ImageGenerator,
        latents: Tensor,
        own: Features,
        matcher: Matcher,
        random: torch.Generator,
    ) -> Tensor:
        """Steps (B, latent) of length `rho` towards the neighbours that differ most, Eq. (17)."""
        fixed = own[0].detach(), own[1].detach()
        look = matcher.raw if self.match == "set" else matcher.features
        compare = set_matching if self.match == "set" else gradient_matching
        if self.perturb == "official":
            moved = fixed[0] + _SAME, fixed[1] + _SAME
            unlikeness = compare(own, moved)
            (direction,) = torch.autograd.grad(unlikeness, [latents], retain_graph=True)
            return self.rho * F.normalize(direction)
        drawn = torch.randn(latents.shape, generator=random).to(latents.device)
        start = (_PROBE * F.normalize(drawn)).requires_grad_()
        if self.perturb == "random":
            return self.rho * F.normalize(start.detach())
        near = look(generator(latents.detach() + start))
        (direction,) = torch.autograd.grad(compare(near, fixed), [start])
        return self.rho * F.normalize(direction)

    def _later(self) -> SADAG:
        """The rates after the warm-up."""
        return self.model_copy(
            update={
                "embedding_lr": self.matching_embedding_lr,
                "generator_lr": self.matching_generator_lr,
                "generator_gamma": self.matching_gamma,
                "generator_decay_every": 1,
                "min_lr": min(self.min_lr, self.matching_embedding_lr),
            }
        )


_OWN_FIELDS = frozenset(SADAG.model_fields) - frozenset(Genie.model_fields)
_STUDENT_FIELDS = frozenset({"scheme", "student_iterations"})


def _compared(
    matcher: Matcher, warm: Tensor, parts: list[SyntheticSet], others: Tensor | None
) -> dict[str, float]:
    """Cosines with the images of `others`, after the matching and before it."""
    if others is None:
        return {}
    wanted = matcher.of_set(others)
    sets = {"cosine": torch.cat([part.images for part in parts]), "warm_cosine": warm}
    return {
        name: 1 - float(set_matching(matcher.of_set(images), wanted))
        for name, images in sets.items()
    }
