"""Distances, neighbours and clusters of points; each function has a brute-force twin in the tests."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alenv.ops import draw, mask_without

PROPOSALS = 256  # rows proposed at once by k-means++
CHUNK_ELEMENTS = 2**24  # numbers of a distance block held at once: 64 MB of float32


def squared_distances(a: Float[Tensor, "n D"], b: Float[Tensor, "k D"]) -> Float[Tensor, "n k"]:
    """Return |a_i - b_j|^2, never negative, from one matrix product."""
    centre = b.mean(0)  # a common offset would eat the digits
    a, b = a - centre, b - centre
    return (a.square().sum(1, keepdim=True) - 2 * a @ b.T + b.square().sum(1)).clamp_(min=0)


def nearest(a: Float[Tensor, "n D"], b: Float[Tensor, "k D"]) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Return, for each row of `a`, the squared distance to the nearest row of `b` and which it is; block by block."""
    rows = max(1, CHUNK_ELEMENTS // max(1, len(b)))
    found = [squared_distances(block, b).min(1) for block in a.split(rows)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def kmeans_plus_plus(x: Float[Tensor, "n D"], k: int, generator: torch.Generator) -> Int[Tensor, " k"]:
    """Return k distinct rows drawn one after the other in proportion to the squared distance to the nearest drawn before.

    The first is uniform (Arthur & Vassilvitskii 2007). Once all remaining rows coincide with a drawn one, the rest is uniform
    among the rows not drawn yet. Rows are drawn in blocks: distances only shrink, so stale ones are upper bounds, and a proposal
    drawn from them and kept with probability true / stale follows the law of one-by-one drawing exactly; the rows are read once
    a block instead of once a draw.
    """
    if not 0 < k <= len(x):
        raise ValueError(f"expected 1..{len(x)} seeds, got {k}")
    x = x - x.mean(0)  # a common offset would eat the digits of the distances
    first = draw(torch.ones(len(x), device=x.device), generator).view(1)
    picks = [first]
    distance = nearest(x, x[first])[0].index_fill_(0, first, 0.0)
    left = k - 1
    while left:
        mass = distance.double().cumsum(0)
        if not bool(mass[-1] > 0):
            lot = torch.randperm(len(x), generator=generator, device=x.device)
            picks.append(lot[mask_without(len(x), torch.cat(picks))[lot]][:left])
            break
        count = min(PROPOSALS, 2 * left)
        u = torch.rand(2, count, generator=generator, device=x.device, dtype=torch.float64)
        proposals = torch.searchsorted(mass, u[0] * mass[-1], right=True).clamp(max=len(x) - 1)
        kept = proposals[_thinned(x[proposals], distance[proposals], u[1])[:left]]
        distance = torch.minimum(distance, nearest(x, x[kept])[0]).index_fill_(0, kept, 0.0)
        picks.append(kept)
        left -= len(kept)
    return torch.cat(picks)


def _thinned(x: Float[Tensor, "p D"], stale: Float[Tensor, " p"], u: Float[Tensor, " p"]) -> Int[Tensor, " q"]:
    """Return which proposals stand: each with probability (distance given those kept before it) / (stale distance)."""
    between, upper, lots = squared_distances(x, x).tolist(), stale.tolist(), u.tolist()
    kept: list[int] = []
    for j, (bound, lot) in enumerate(zip(upper, lots, strict=True)):
        true = min([bound, *(between[j][i] for i in kept)])
        if lot * bound < true:
            kept.append(j)
    return torch.tensor(kept, dtype=torch.int64, device=x.device)


def kmeans(
    x: Float[Tensor, "n D"], k: int, generator: torch.Generator, iterations: int = 25, tolerance: float = 1e-3
) -> tuple[Float[Tensor, "k D"], Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Cluster rows with k-means++ seeds and Lloyd's iterations, until the inertia falls by less than `tolerance` of itself.

    Returns:
        Centres; the cluster of each row; its squared distance to that centre. A cluster may end empty where rows
        coincide; it keeps its centre then.
    """
    centres = x[kmeans_plus_plus(x, k, generator)]
    distance, cluster = nearest(x, centres)
    inertia = float(distance.sum())
    for _ in range(iterations):
        sums = torch.zeros_like(centres).index_add_(0, cluster, x)
        sizes = torch.bincount(cluster, minlength=k).unsqueeze(1)
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
        distance, cluster = nearest(x, centres)
        before, inertia = inertia, float(distance.sum())
        if before - inertia <= tolerance * before:
            break
    return centres, cluster, distance


def representatives(
    cluster: Int[Tensor, " n"], distance: Float[Tensor, " n"], k: int, generator: torch.Generator
) -> Int[Tensor, " k"]:
    """Return k distinct rows: of each cluster the one nearest its centre, larger clusters first.

    Empty clusters are replaced by the rows farthest from their centre among those left. Ties fall by lot.
    """
    lot = torch.randperm(len(cluster), generator=generator, device=cluster.device)
    order = lot[torch.sort(distance[lot], stable=True).indices]
    order = order[torch.sort(cluster[order], stable=True).indices]  # by cluster, nearest first
    leads = torch.ones_like(order, dtype=torch.bool)
    leads[1:] = cluster[order][1:] != cluster[order][:-1]
    first = order[leads]
    sizes = torch.bincount(cluster, minlength=k)
    first = first[torch.sort(sizes[cluster[first]], descending=True, stable=True).indices]
    left = mask_without(len(cluster), first)
    far = lot[left[lot]]
    far = far[torch.sort(distance[far], descending=True, stable=True).indices]
    return torch.cat([first, far])[:k]
