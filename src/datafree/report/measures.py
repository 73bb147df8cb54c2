"""How much alike the images of a set are, and how near to the batch norms (DSG, section 3.2).

The paper names its measures and leaves most of their definitions open; these are implementable
versions (algorithms D.1 to D.5), of which the order counts and not the paper's own numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_GRID = 200  # points of the density's grid along each axis
_AT_ONCE = 4096  # pixels of all images in double precision together


def distance_to_normal(values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Wasserstein-1 distance of every channel's values to ``N(mean, std^2)``, over `std` (D.1).

    ``1/n sum_k |v_(k) - (mu + sigma Phi^-1((k - 1/2) / n))| / sigma`` over the sorted values: how
    far a value has to be moved on average, in deviations of the batch norm. Images that follow the
    statistics too strictly have a *smaller* one than real images.

    Args:
        values: (C, n), n values of every channel.
        mean: (C,) of the normal distribution.
        std: (C,), positive.

    Returns:
        (C,).
    """
    count = values.shape[1]
    places = (torch.arange(count, dtype=torch.float64, device=values.device) + 0.5) / count
    quantiles = torch.special.ndtri(places).to(values.dtype)
    standard = (values - mean[:, None]) / std[:, None]
    return (standard.sort(dim=1).values - quantiles).abs().mean(1)


def variance_of_statistics(means: Tensor, stds: Tensor | None, std: Tensor) -> Tensor:
    """How much the statistics of single images differ, by channel and over ``std^2`` (D.2).

    ``(Var_n mu_n + Var_n sigma_n) / sigma^2`` over the images n; 0 is one and the same image.

    Args:
        means: (N, C) mean of every image and channel.
        stds: (N, C) deviation of every image and channel; None where channels have one value.
        std: (C,) deviation of the batch norm.

    Returns:
        (C,); zero for a single image.
    """
    found = means.var(0, correction=0)
    if stds is not None:
        found = found + stds.var(0, correction=0)
    return found / std.square()


def projected(sets: Sequence[Tensor]) -> tuple[list[Tensor], tuple[float, float]]:
    """All sets on the first two principal components of all their rows together (Figure 7).

    Axes are divided by the deviation of all points along them, so that they have no unit.

    Args:
        sets: (N_i, D) each.

    Returns:
        (N_i, 2) each, and the shares of the variance that the two components explain.
    """
    rows = torch.cat([one.flatten(1) for one in sets])
    # Of the smaller of the two products; images have more pixels than there are images.
    products = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for part in rows.split(_AT_ONCE, 1):
        centred = part.double() - part.double().mean(0)
        products += centred @ centred.T
    values, vectors = torch.linalg.eigh(products)
    places = vectors[:, -2:].flip(1) * values[-2:].flip(0).clamp(min=0).sqrt()
    largest = places.abs().argmax(0)
    places = places * places.gather(0, largest[None]).sign()
    scale = places.std(0, correction=0).clamp(min=1e-12)
    total = float(values.clamp(min=0).sum()) or 1.0
    shares = (float(values[-1].clamp(min=0)) / total, float(values[-2].clamp(min=0)) / total)
    return list((places / scale).split([len(one) for one in sets])), shares


def density(points: Tensor) -> float:
    """Density index: the largest value of ``n p(x)`` over the plane (D.3).

    `p` is a Gaussian kernel density of Scott's bandwidth, looked up on a grid over the points.
    Points that gather in clusters have a larger one; compare sets of equal size only.

    Args:
        points: (N, 2).

    Returns:
        NaN of less than three points, or of points on one line.
    """
    count = len(points)
    if count < 3:
        return float("nan")
    points = points.double()
    covariance = torch.cov(points.T) * count ** (-1 / 3)
    if float(torch.linalg.det(covariance)) < 1e-12:
        return float("nan")
    whitening = torch.linalg.cholesky(torch.linalg.inv(covariance))
    low, high = points.amin(0), points.amax(0)
    axes = [torch.linspace(float(a), float(b), _GRID) for a, b in zip(low, high, strict=True)]
    grid = torch.cartesian_prod(*axes).double()
    square = torch.cdist(grid @ whitening, points @ whitening).square()
    height = torch.exp(-0.5 * square).sum(1).max()
    return float(height / (2 * torch.pi * torch.linalg.det(covariance).sqrt()))


def similarity(rows: Tensor) -> float:
    """Mean cosine of two different rows (D.4): ``(|sum_n phi_n|^2 - N) / (N (N - 1))``.

    The paper's sum over all pairs, freed of the number of rows: near 0 for independent noise, 1
    where all rows point the same way.

    Args:
        rows: (N, …).

    Returns:
        NaN of a single row.
    """
    count = len(rows)
    if count < 2:
        return float("nan")
    unit = torch.nn.functional.normalize(rows.flatten(1).double(), dim=1)
    return float((unit.sum(0).square().sum() - count) / (count * (count - 1)))


def effective_rank(rows: Tensor) -> float:
    """In how many directions rows differ (D.5): ``exp H(lambda / N)`` of their cosines' matrix.

    Args:
        rows: (N, …).

    Returns:
        From 1, all rows alike, to N, all at right angles.
    """
    unit = torch.nn.functional.normalize(rows.flatten(1).double(), dim=1)
    shares = torch.linalg.eigvalsh(unit @ unit.T).clamp(min=0) / len(rows)
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))
