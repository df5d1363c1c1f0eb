"""Tensor functions that strategies and selectors share: entropies, quantiles, draws; each has a brute-force twin in the tests."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def entropy(probs: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch"]:
    """Return Shannon entropies in nats; 0 log 0 = 0."""
    return torch.special.entr(probs).sum(-1)


def top_two(values: Float[Tensor, "n C"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return the largest and the second largest value of each row.

    Two maxima instead of `topk(2)`, which is five times slower at C = 100.

    Raises:
        ValueError: fewer than two columns.
    """
    if values.shape[1] < 2:
        raise ValueError(f"expected at least two classes, got {values.shape[1]}; a margin needs a runner-up")
    first = values.max(1)
    second = values.scatter(1, first.indices.unsqueeze(1), -torch.inf).max(1).values
    return first.values, second


def draw(mass: Float[Tensor, " n"], generator: torch.Generator) -> Int[Tensor, ""]:
    """Return an index drawn in proportion to `mass`, by inverse CDF in float64; uniformly where all mass is zero."""
    total = mass.double().cumsum(0)
    flat = torch.arange(1, len(mass) + 1, dtype=torch.float64, device=mass.device)
    total = torch.where(total[-1] > 0, total, flat)
    u = torch.rand((), generator=generator, device=mass.device, dtype=torch.float64) * total[-1]
    return torch.searchsorted(total, u, right=True).clamp(max=len(mass) - 1)


def mask_without(size: int, positions: Int[Tensor, " k"]) -> Bool[Tensor, " size"]:
    """Return a mask of `size` that is false at `positions`."""
    mask = torch.ones(size, dtype=torch.bool, device=positions.device)
    mask[positions] = False
    return mask


def upper_quantile(values: Float[Tensor, " n"], share: float) -> Float[Tensor, ""]:
    """Return a threshold with about `share` of the values above it: midway between the neighbours at that rank."""
    ordered = values.sort(descending=True).values
    rank = min(max(round(share * len(values)), 1), len(values) - 1) if len(values) > 1 else 0
    return (ordered[max(rank - 1, 0)] + ordered[rank]) / 2


def gaussian_mixture(
    values: Float[Tensor, " n"], components: int = 5, iterations: int = 50
) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"], Float[Tensor, " K"]]:
    """Fit a 1-D Gaussian mixture by EM and return weights, means and standard deviations.

    Values are standardised first, so the fit ignores their scale and offset; components start at equal quantiles and are at most
    as many as there are distinct values; no deviation falls below 1e-3 of the values' own. Deterministic.
    """
    centre, spread = values.mean(), values.std(unbiased=False)
    unit = torch.where(spread > 0, spread, 1.0)
    x = ((values - centre) / unit).double()
    count = max(1, min(components, len(torch.unique(x))))
    means = torch.quantile(x, (torch.arange(count, device=x.device, dtype=x.dtype) + 0.5) / count)
    deviations, weights = torch.full_like(means, 1.0 / count), torch.full_like(means, 1.0 / count)
    for _ in range(iterations):
        z = (x[:, None] - means) / deviations
        share = torch.softmax(weights.log() - deviations.log() - 0.5 * z * z, dim=1)  # (n, K) responsibilities
        mass = share.sum(0).clamp(min=1e-9)
        means = (share * x[:, None]).sum(0) / mass
        deviations = ((share * (x[:, None] - means).square()).sum(0) / mass).sqrt().clamp(min=1e-3)
        weights = mass / mass.sum()
    return weights.to(values), (means * unit + centre).to(values), (deviations * unit).to(values)


def mixture_upper_quantile(values: Float[Tensor, " n"], share: float, components: int = 5) -> Float[Tensor, ""]:
    """Return the threshold above which a Gaussian mixture fitted to `values` has mass `share`, by bisection of its CDF."""
    weights, means, deviations = (part.double() for part in gaussian_mixture(values, components))
    low, high = (means - 10 * deviations).min(), (means + 10 * deviations).max()
    for _ in range(60):
        middle = (low + high) / 2
        above = (weights * torch.special.ndtr((means - middle) / deviations)).sum()
        low, high = torch.where(above > share, middle, low), torch.where(above > share, high, middle)
    return ((low + high) / 2).to(values)
