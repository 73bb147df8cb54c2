"""Sample correlation inhibition (DSG): samples of a batch no more alike than random vectors."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

GAP_EPS = 1e-8
"""``eta`` of ``D / (D^2 + eta)``, which stands for ``1 / D`` in gradients of eigenvectors: exact to
1 % for gaps D above 1e-3, at most 5000."""

SPREAD_FLOOR = 1e-4
"""Least difference of the largest and smallest eigenvalue that weights are divided by. Without it
the weights of nearly orthogonal samples, and their gradients, would be rounding errors blown up."""


def correlation_inhibition(
    features: Tensor,
    reference: Tensor,
    mode: Literal["eigvals", "eigvecs_detached", "full"] = "eigvals",
) -> Tensor:
    """Distance of the samples' similarity kernel from that of random vectors (DSG Eq. 9).

    Rows flattened and divided by their Euclidean norm, ``phi(f)``, make the kernel
    ``K_f = phi(f) phi(f)^T``, (B, B) with unit diagonal; likewise ``K_r``. With eigenpairs
    ``(l_f, v_f)`` and ``(l_r, v_r)`` paired in ascending order::

        max(sum_i |l_f^i - l_r^i| - w^i |cos(v_f^i, v_r^i)|, 0),
        w^i = (l_f^i - min l_f) / (max l_f - min l_f).

    The cosine is taken absolutely because the sign of an eigenvector is arbitrary. The denominator
    is at least 1e-4. Kernels are made in the dtype of the features and decomposed in float64.

    Where eigenvalues coincide the eigenvectors themselves are arbitrary, and for random vectors of
    many dimensions (``K_r`` about the identity) nearly so. Hence the modes:

    ==================== ================ ================= ================================
    mode                 eigenvalue term  term ``w |cos|``  gradient
    ==================== ================ ================= ================================
    ``eigvals``          yes              no                ``d l_f^i = v_f^i^T dK v_f^i``
    ``eigvecs_detached`` yes              yes               the same; also through `w`, not
                                                            through ``v_f``
    ``full``             yes              yes               also through ``v_f``, where
                                                            ``1 / D`` of a gap D between
                                                            eigenvalues is replaced by
                                                            ``D / (D^2 + 1e-8)``
    ==================== ================ ================= ================================

    The last two have the same value, never above that of ``eigvals``. All gradients are finite,
    whatever the eigenvalues. There is none where the maximum is 0, nor between samples that are
    exactly equal, whose cosine is at its largest: a generator that has collapsed stays so.

    Args:
        features: (B, …) of one block of the generator, B at least 2. A sample of zeros is like no
            other.
        reference: of the same shape, drawn from N(0, 1) by the caller, afresh for every step.
            Treated as a constant.
        mode: what is included and differentiated, see above.

    Returns:
        Scalar from 0 (as unlike as the reference) to ``2 (B - 1)`` (all alike, orthogonal
        reference), in the dtype of `features`.

    Raises:
        ValueError: for fewer than two samples, or shapes that differ.
    """
    if features.shape != reference.shape:
        raise ValueError(f"features are {features.shape}, the reference is {reference.shape}")
    if len(features) < 2:
        raise ValueError(f"correlation needs at least 2 samples, got {len(features)}")
    values, vectors = cast("tuple[Tensor, Tensor]", _Eigh.apply(_kernel(features)))
    other_values, other_vectors = torch.linalg.eigh(_kernel(reference.detach()))
    loss = (values - other_values).abs().sum()
    if mode != "eigvals":
        vectors = vectors if mode == "full" else vectors.detach()
        cosines = (vectors * other_vectors).sum(0).abs()
        loss = F.relu(loss - (_min_max(values) * cosines).sum())
    return loss.to(features.dtype)


def _kernel(features: Tensor) -> Tensor:
    """Cosines between samples: (B, …) to (B, B) in float64; 0 where a sample is 0."""
    rows = features.flatten(1)
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    unit = rows / torch.where(norms > 0, norms, 1.0)
    return (unit @ unit.T).double()


def _min_max(values: Tensor) -> Tensor:
    """Ascending values shifted and scaled to ``[0, 1]``."""
    return (values - values[0]) / (values[-1] - values[0]).clamp(min=SPREAD_FLOOR)


class _Eigh(torch.autograd.Function):
    """`torch.linalg.eigh` with gradients that stay finite where eigenvalues coincide."""

    @staticmethod
    def forward(ctx: Any, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """Ascending eigenvalues (B,) and eigenvectors, the columns of (B, B)."""
        values, vectors = torch.linalg.eigh(kernel)
        ctx.save_for_backward(values, vectors)
        ctx.set_materialize_grads(False)
        return values, vectors

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch calls it by position
        ctx: Any, *grad_outputs: Tensor | None
    ) -> Tensor:
        """``V (diag(g_l) + P * V^T g_v) V^T`` with ``P_ij`` about ``1 / (l_j - l_i)``."""
        values, vectors = ctx.saved_tensors
        to_values, to_vectors = grad_outputs
        inner = torch.zeros_like(vectors) if to_values is None else to_values.diag()
        if to_vectors is not None:
            gaps = values - values[:, None]
            inner = inner + gaps / (gaps.square() + GAP_EPS) * (vectors.T @ to_vectors)
        return vectors @ inner @ vectors.T
