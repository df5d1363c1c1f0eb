"""Distances, neighbours, clusters and covers of points; each function has a brute-force twin in the tests."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alenv.device import has_native_bfloat16
from alenv.ops import draw, mask_without

PROPOSALS = 512  # rows proposed at once by greedy seeding
SAMPLE = 2**14  # rows that judge the proposals of greedy seeding
LEADERS = 1024  # points brought up to date at once where the next one is the first or the farthest
REFRESHED = 256  # clusters whose nearest one is looked up at once by average linkage, at least
CHUNK_ELEMENTS = 2**21  # numbers of a distance block held at once: 8 MB of float32
COARSE_WORK = 2**31  # multiplications a pass from which on k-means assigns in bfloat16, where that is native
TIED = 1e-4  # distances that differ by no more than this share of themselves, or a hundredth of it of the largest, are equal
DIGITS = 2e-6  # squared distances, as products give them, that are below this share of the squared norm are rounding

P = TypeVar("P", bound="Points")


class Points(ABC):
    """Points known by their squared norms and their products: rows of a matrix, or outer products of factors.

    Attributes:
        norms: (n,) squared norms.
        width: how many numbers `at` makes for a point; 0 where a slice of the points is a view.
    """

    norms: Float[Tensor, " n"]
    width: int = 0

    def __len__(self) -> int:
        """Return n."""
        return len(self.norms)

    @abstractmethod
    def at(self: P, rows: Int[Tensor, " k"] | slice) -> P:
        """Return some of the points."""

    @abstractmethod
    def gaps(self: P, others: P) -> Float[Tensor, "n k"]:
        """Return |p_i - q_j|^2 - |p_i|^2: what tells the others apart for each point."""

    def squared_distances(self: P, others: P) -> Float[Tensor, "n k"]:
        """Return |p_i - q_j|^2, 0 within rounding."""
        norms = self.norms.unsqueeze(1)
        distance = self.gaps(others).add_(norms)
        return distance.masked_fill_(distance <= DIGITS * norms, 0.0)

    def to_nearest(self: P, others: P) -> Float[Tensor, " n"]:
        """Return the squared distance of each point to the nearest of the others, 0 within rounding; block by block."""
        rows = max(1, CHUNK_ELEMENTS // max(1, len(others), self.width))
        distance = torch.cat([self.at(slice(i, i + rows)).gaps(others).amin(1) for i in range(0, len(self), rows)])
        distance += self.norms
        return distance.masked_fill_(distance <= DIGITS * self.norms, 0.0)


class Rows(Points):
    """Rows of a matrix as points."""

    def __init__(self, x: Float[Tensor, "n D"], norms: Float[Tensor, " n"] | None = None) -> None:
        self.x = x
        self.norms = torch.linalg.vector_norm(x, dim=1).square_() if norms is None else norms

    def at(self, rows: Int[Tensor, " k"] | slice) -> "Rows":
        """Return some of the rows."""
        return Rows(self.x[rows], self.norms[rows])

    def gaps(self, others: "Rows") -> Float[Tensor, "n k"]:
        """Return |x_i - y_j|^2 - |x_i|^2 from one matrix product."""
        return torch.addmm(others.norms, self.x, others.x.T, alpha=-2)


def products(a: Float[Tensor, "n D"], b: Float[Tensor, "k D"]) -> Float[Tensor, "n k"]:
    """Return a b^T; of float32 on CPUs by oneDNN, which multiplies such blocks twice as fast as MKL does on AMD's."""
    if a.is_cpu and a.dtype == b.dtype == torch.float32 and min(len(a), len(b)) >= 8 and torch.backends.mkldnn.is_available():
        return F.linear(a.to_mkldnn(), b).to_dense()
    return a @ b.T


def squared_distances(a: Float[Tensor, "n D"], b: Float[Tensor, "k D"]) -> Float[Tensor, "n k"]:
    """Return |a_i - b_j|^2, never negative, from one matrix product."""
    centre = b.mean(0)  # a common offset would eat the digits
    rows = Rows(a - centre)
    return rows.gaps(Rows(b - centre)).add_(rows.norms.unsqueeze(1)).clamp_(min=0)


def nearest(a: Float[Tensor, "n D"], b: Float[Tensor, "k D"]) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Return, for each row of `a`, the squared distance to the nearest row of `b` and which it is; block by block."""
    rows = max(1, CHUNK_ELEMENTS // max(1, len(b)))
    found = [squared_distances(block, b).min(1) for block in a.split(rows)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def neighbors(x: Float[Tensor, "n D"], k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Return the distances (not squared) of each row to its k nearest others, nearest first, and which they are."""
    points, found = Rows(_without(x, _offset(x))), []
    every = torch.arange(len(x), device=x.device)
    for block in every.split(max(1, CHUNK_ELEMENTS // max(1, len(x)))):
        distance = points.at(block).squared_distances(points)
        found.append(distance.scatter_(1, block.unsqueeze(1), torch.inf).topk(k, largest=False))
    return torch.cat([f.values for f in found]).sqrt_(), torch.cat([f.indices for f in found])


def _offset(x: Float[Tensor, "n D"]) -> Float[Tensor, " D"] | float:
    """Return the mean of the rows where that common offset would eat the digits of distances, 0 where it is harmless."""
    mean = x.mean(0)
    return mean if bool(mean @ mean > 0.9 * torch.linalg.vector_norm(x, dim=1).square().mean()) else 0.0


def _without(x: Float[Tensor, "n D"], offset: Tensor | float) -> Float[Tensor, "n D"]:
    return x - offset if isinstance(offset, Tensor) else x


def spread(points: Points, k: int, generator: torch.Generator, first: Int[Tensor, " 1"]) -> Int[Tensor, " k"]:
    """Return `first` and k - 1 more points, drawn one by one in proportion to the squared distance to the nearest drawn before.

    Once all remaining points coincide with a drawn one, the rest is uniform among those not drawn yet.

    The draws are a race: each point has a random amount of time left, exponential, that passes at the rate of its squared
    distance; who runs out is drawn. Distances only shrink, so what is known of a point at any time bounds its finish from
    below: only the points that could finish next are brought up to date. The law is exact, and most points are read once.
    """
    picks, done = torch.cat([first, first.new_zeros(k - 1)]), 1
    times = torch.zeros(k, dtype=torch.float64, device=first.device)  # when each was drawn
    rate = points.to_nearest(points.at(first)).index_fill_(0, first, 0.0)
    left = torch.empty(len(points), dtype=torch.float64, device=first.device).exponential_(generator=generator)
    seen = torch.ones_like(left, dtype=torch.int64)  # how many picks the rate of a point knows of
    finish, chosen, size = left / rate, first, LEADERS
    while done < k:
        size = LEADERS if len(chosen) else 4 * size  # bounds may be far off: then they are mended in fewer rounds
        bound, leaders = _lowest(finish, size)
        leaders = leaders[seen[leaders].argsort()]
        for some in leaders.split(max(1, LEADERS // 4)):
            _catch_up(points, some, picks[:done], times[:done], rate, left, seen)
        finish[leaders], seen[leaders] = times[done - 1] + left[leaders] / rate[leaders], done
        soonest, first_ones = _lowest(finish[leaders], LEADERS)  # of what is up to date a few race, however many had to be mended
        bound, leaders = torch.minimum(bound, soonest), leaders[first_ones]
        steps = min(k - done, len(leaders), 2 * len(chosen) + 16)
        race = _race(points.at(leaders), rate[leaders], left[leaders], times[done - 1], bound, steps)
        chosen, drawn, rate[leaders], left[leaders], finish[leaders] = race
        if len(chosen) == 0 and bool(finish.isinf().all()):
            return torch.cat([picks[:done], _by_lot(picks[:done], len(points), k - done, generator)])
        picks[done : done + len(chosen)], times[done : done + len(chosen)] = leaders[chosen], drawn
        done += len(chosen)
        seen[leaders] = done
    return picks


def _lowest(bounds: Float[Tensor, " n"], size: int) -> tuple[Float[Tensor, ""], Int[Tensor, " q"]]:
    """Return `size` positions of the lowest bounds, and the lowest of the others."""
    if len(bounds) <= size:
        return bounds.new_tensor(torch.inf), torch.arange(len(bounds), device=bounds.device)
    lowest = bounds.topk(size + 1, largest=False)
    return lowest.values[-1], lowest.indices[:-1]


def _catch_up(
    points: P, some: Int[Tensor, " q"], picks: Int[Tensor, " t"], times: Float[Tensor, " t"], rate: Float[Tensor, " n"],
    left: Float[Tensor, " n"], seen: Int[Tensor, " n"],
) -> None:  # fmt: skip
    """Tell `some` points of the picks they have missed: lower their rates and let their time pass, in place."""
    start = int(seen[some].min())
    if start == len(picks):
        return
    between = points.at(some).squared_distances(points.at(picks[start:]))
    rates = torch.cat([rate[some].unsqueeze(1), between], dim=1).cummin(1).values  # after each pick
    missed = torch.arange(start, len(picks), device=some.device) >= seen[some].unsqueeze(1)
    passed = (rates[:, :-1] * missed).double() @ times[start - 1 :].diff()
    left[some] = (left[some] - passed).clamp_(min=1e-12)  # rounding may not end a race that is still on
    rate[some] = rates[:, -1]


def _race(
    near: P, rate: Float[Tensor, " q"], left: Float[Tensor, " q"], now: Float[Tensor, ""], bound: Float[Tensor, ""], count: int
) -> tuple[Int[Tensor, " c"], Float[Tensor, " c"], Float[Tensor, " q"], Float[Tensor, " q"], Float[Tensor, " q"]]:
    """Let points race until `count` have finished or someone else may be next.

    Returns:
        Who finished, and when; rates and time left thereafter; when each would finish.
    """
    chosen, drawn, flags = [], [], []
    stands = torch.ones((), dtype=torch.bool, device=rate.device)
    for _ in range(count):
        finish = now + left / rate
        soonest, pick = finish.min(0)
        stands = stands & (soonest <= bound) & soonest.isfinite()
        after = torch.minimum(rate, near.to_nearest(near.at(pick.view(1)))).index_fill_(0, pick, 0.0)
        passed = (left - rate * (soonest - now)).index_fill_(0, pick, 1.0)  # who is drawn stands still with some time left
        left = torch.where(stands, passed, left)
        rate, now = torch.where(stands, after, rate), torch.where(stands, soonest, now)
        chosen.append(pick)
        drawn.append(soonest)
        flags.append(stands)
    count = int(torch.stack(flags).sum())
    return torch.stack(chosen)[:count], torch.stack(drawn)[:count], rate, left, now + left / rate


def kmeans_plus_plus(x: Float[Tensor, "n D"], k: int, generator: torch.Generator, trials: int = 1) -> Int[Tensor, " k"]:
    """Return k distinct rows, far apart: the seeds of k-means (Arthur & Vassilvitskii 2007). The first is uniform.

    With one trial the others follow the plain law, see `spread`. With more, `trials` rows are proposed for each seed, in blocks,
    and those that lower the sum of squared distances most are kept, one after the other: the greedy form. All rows judge the
    proposals, or `SAMPLE` of them where there are more.
    """
    if not 0 < k <= len(x):
        raise ValueError(f"expected 1..{len(x)} seeds, got {k}")
    points = Rows(_without(x, _offset(x)))
    first = draw(torch.ones(len(x), device=x.device), generator).view(1)
    return spread(points, k, generator, first) if trials == 1 else _greedy_spread(points, k, generator, first, trials)


def _greedy_spread(points: Rows, k: int, generator: torch.Generator, first: Int[Tensor, " 1"], trials: int) -> Int[Tensor, " k"]:
    picks, left = [first], k - 1
    distance = points.to_nearest(points.at(first)).index_fill_(0, first, 0.0)
    judges = slice(None) if len(points) <= SAMPLE else _by_lot(first, len(points), SAMPLE, generator)
    panel = points.at(judges)
    while left:
        proposals = _proposals(distance, min(PROPOSALS, trials * left), generator).unique()
        if len(proposals) == 0:
            return torch.cat([*picks, _by_lot(torch.cat(picks), len(points), left, generator)])
        between = points.at(proposals).squared_distances(panel)
        kept = proposals[_greedy_gains(between, distance[judges], min(left, max(1, len(proposals) // trials)))]
        distance = torch.minimum(distance, points.to_nearest(points.at(kept))).index_fill_(0, kept, 0.0)
        picks.append(kept)
        left -= len(kept)
    return torch.cat(picks)


def _greedy_gains(between: Float[Tensor, "p n"], distance: Float[Tensor, " n"], count: int) -> Int[Tensor, " count"]:
    """Return the rows of `between` that greedily lower the sum of minimum distances; gains only shrink, so few are redone."""
    gains = torch.stack([(distance - row).clamp_(min=0).sum() for row in between]).tolist()
    fresh, kept = [0] * len(gains), list[int]()
    while len(kept) < count:
        best = max(range(len(gains)), key=gains.__getitem__)
        if fresh[best] == len(kept):
            kept.append(best)
            distance, gains[best] = torch.minimum(distance, between[best]), -1.0
        else:
            gains[best], fresh[best] = float((distance - between[best]).clamp_(min=0).sum()), len(kept)
    return torch.tensor(kept, device=between.device)


def _proposals(distance: Float[Tensor, " n"], count: int, generator: torch.Generator) -> Int[Tensor, " p"]:
    """Return `count` draws in proportion to `distance`, or none where all of it is zero."""
    mass = distance.double().cumsum(0)
    if not bool(mass[-1] > 0):
        return torch.zeros(0, dtype=torch.int64, device=distance.device)
    u = torch.rand(count, generator=generator, device=distance.device, dtype=torch.float64)
    return torch.searchsorted(mass, u * mass[-1], right=True).clamp(max=len(distance) - 1)


def _by_lot(taken: Int[Tensor, " t"], size: int, count: int, generator: torch.Generator) -> Int[Tensor, " c"]:
    """Return up to `count` of `size` positions that are not taken, in random order."""
    lot = torch.randperm(size, generator=generator, device=taken.device)
    return lot[mask_without(size, taken)[lot]][:count]


def kcenter(
    x: Float[Tensor, "n D"], k: int, generator: torch.Generator, covered: Float[Tensor, "m D"] | None = None
) -> Int[Tensor, " k"]:
    """Return k distinct rows, each the farthest from `covered` and those before it (Gonzalez 1985); ties fall by lot.

    With nothing covered the first is the row nearest the mean.

    Minimum distances only shrink, so stale ones are upper bounds: the rows that lead by them are brought up to date, and the
    farthest of these is next while it reaches the bound of all others. The picks are those of the plain greedy, but most rows
    are read seldom.
    """
    if not 0 < k <= len(x):
        raise ValueError(f"expected 1..{len(x)} centres, got {k}")
    offset = _offset(x)
    points = Rows(_without(x, offset))
    lot = torch.randperm(len(x), generator=generator, device=x.device)
    picks, done = torch.zeros(k, dtype=torch.int64, device=x.device), 0
    if covered is not None and len(covered):
        distance = points.to_nearest(Rows(_without(covered, offset)))
    else:
        picks[0], done = lot[points.to_nearest(Rows(points.x.mean(0, keepdim=True)))[lot].argmin()], 1
        distance = points.to_nearest(points.at(picks[:1])).index_fill_(0, picks[:1], -torch.inf)
    seen = torch.full((len(x),), done, device=x.device)  # how many picks the distance of a row knows of
    chosen, size = picks[:1], LEADERS
    while done < k:
        size = LEADERS if len(chosen) else 4 * size
        bound, order = _lowest(-distance[lot], size)
        leaders = lot[order.sort().values]  # the first of equal ones is next
        missed = points.at(picks[int(seen[leaders].min()) : done])
        for some in leaders.split(LEADERS) if len(missed) else ():
            distance[some], seen[some] = torch.minimum(distance[some], points.at(some).to_nearest(missed)), done
        others, order = _lowest(-distance[leaders], LEADERS)
        bound, leaders = torch.minimum(bound, others), leaders[order.sort().values]
        chosen, best = _farthest(points.at(leaders), distance[leaders], -bound, min(k - done, len(leaders), 2 * len(chosen) + 16))
        picks[done : done + len(chosen)] = leaders[chosen]
        done += len(chosen)
        distance[leaders], seen[leaders] = best, done
    return picks


def _farthest(
    near: Rows, distance: Float[Tensor, " q"], bound: Float[Tensor, ""], count: int
) -> tuple[Int[Tensor, " c"], Float[Tensor, " q"]]:
    """Return up to `count` picks of the plain greedy, as long as they reach the bound, and the distances thereafter."""
    chosen, stands = [], torch.ones((), dtype=torch.bool, device=distance.device)
    flags = []
    for _ in range(count):
        top, pick = distance.max(0)
        stands = stands & (top >= bound)
        new = near.to_nearest(near.at(pick.view(1)))
        after = torch.minimum(distance, new).index_fill_(0, pick, -torch.inf)
        distance = torch.where(stands, after, distance)
        chosen.append(pick)
        flags.append(stands)
    return torch.stack(chosen)[: int(torch.stack(flags).sum())], distance


def kmeans(
    x: Float[Tensor, "n D"], k: int, generator: torch.Generator, iterations: int = 25, tolerance: float = 1e-3, trials: int = 5
) -> tuple[Float[Tensor, "k D"], Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Cluster rows by Lloyd's iterations from greedy k-means++ seeds, until the inertia falls by less than `tolerance` of itself.

    Large problems assign in bfloat16 on the way where it is native (which takes half the memory of `x` more); what is returned
    is exact for the centres returned.

    Returns:
        Centres; the cluster of each row; its squared distance to that centre. A cluster may end empty where rows
        coincide; it keeps its centre then.
    """
    offset = _offset(x)
    points = Rows(_without(x, offset))
    coarse = len(x) * k * x.shape[1] >= COARSE_WORK and has_native_bfloat16(x.device)
    assign = _coarse_assignment(points) if coarse else functools.partial(_assignment, points)
    centres = points.x[kmeans_plus_plus(points.x, k, generator, trials)]
    total, inertia = float(points.norms.sum(dtype=torch.float64)), torch.inf
    for _ in range(iterations):
        cluster = assign(centres)
        sums = torch.zeros_like(centres).index_add_(0, cluster, points.x)
        sizes = torch.bincount(cluster, minlength=k).unsqueeze(1)
        means = sums / sizes.clamp(min=1)
        centres = torch.where(sizes > 0, means, centres)
        before, inertia = inertia, total - float((means * sums).sum(dtype=torch.float64))
        if before < torch.inf and before - inertia <= tolerance * before:
            break
    cluster = _assignment(points, centres)
    size = max(1, CHUNK_ELEMENTS // max(1, x.shape[1]))
    moves = (rows - centres[mine] for rows, mine in zip(points.x.split(size), cluster.split(size), strict=True))
    distance = torch.cat([move.square_().sum(1) for move in moves])  # from differences: products leave fewer digits
    return centres + offset, cluster, distance.masked_fill_(distance <= DIGITS**2 * points.norms, 0.0)


def _assignment(points: Rows, centres: Float[Tensor, "k D"]) -> Int[Tensor, " n"]:
    """Return which centre is the nearest one of each row."""
    goals, rows = Rows(centres), max(1, CHUNK_ELEMENTS // len(centres))
    return torch.cat([points.at(slice(i, i + rows)).gaps(goals).min(1).indices for i in range(0, len(points), rows)])


def _coarse_assignment(points: Rows) -> Callable[[Tensor], Tensor]:
    """Return a function that finds the nearest centre of each row from products in bfloat16."""
    x = points.x.bfloat16()

    def assign(centres: Float[Tensor, "k D"]) -> Int[Tensor, " n"]:
        norms, y, rows = centres.square().sum(1), centres.bfloat16().T, max(1, CHUNK_ELEMENTS // len(centres))
        return torch.cat([torch.add(norms, block @ y, alpha=-2).argmin(1) for block in x.split(rows)])

    return assign


def representatives(
    cluster: Int[Tensor, " n"], distance: Float[Tensor, " n"], k: int, generator: torch.Generator
) -> Int[Tensor, " k"]:
    """Return k distinct rows: of each cluster the one nearest its centre, larger clusters first.

    Empty clusters are replaced by the rows farthest from their centre among those left. Ties fall by lot, and so do distances
    that differ by rounding alone: the two rows of a cluster of two are equally near their mean.
    """
    lot = torch.randperm(len(cluster), generator=generator, device=cluster.device)
    sizes = torch.bincount(cluster, minlength=k)
    least = distance.new_full(sizes.shape, torch.inf).scatter_reduce(0, cluster, distance, "amin")
    near = distance <= (1 + TIED) * least[cluster] + 0.01 * TIED * distance.max()
    order = lot[near[lot]]
    order = order[torch.sort(cluster[order], stable=True).indices]  # by cluster
    leads = torch.ones_like(order, dtype=torch.bool)
    leads[1:] = cluster[order][1:] != cluster[order][:-1]
    first = order[leads]
    first = first[torch.sort(sizes[cluster[first]], descending=True, stable=True).indices]
    left = mask_without(len(cluster), first)
    far = lot[left[lot]]
    far = far[torch.sort(distance[far], descending=True, stable=True).indices]
    return torch.cat([first, far])[:k]


def best_spread(
    x: Float[Tensor, "n D"], worth: Float[Tensor, " n"], k: int, generator: torch.Generator, iterations: int = 25
) -> Int[Tensor, " k"]:
    """Return one row of each of k clusters, the one nearest its centre, those worth most first."""
    _, cluster, distance = kmeans(x, k, generator, iterations)
    picks = representatives(cluster, distance, k, generator)
    return picks[worth[picks].argsort(descending=True, stable=True)]


def one_per_cluster(
    x: Float[Tensor, "m D"], marked: Bool[Tensor, " n"], count: int, generator: torch.Generator, iterations: int = 25
) -> Int[Tensor, " count"]:
    """Return `count` distinct positions: of each of `count` clusters of the marked rows the one nearest its centre.

    Where fewer than `count` are marked, all of them come first and others follow by lot.

    Args:
        x: the marked rows.
        marked: which of all positions they are.
        count: at most n.
        generator: of seeds, ties and lots.
        iterations: Lloyd steps at most.
    """
    lot = torch.randperm(len(marked), generator=generator, device=marked.device)
    chosen = lot[marked[lot]]
    if len(x) > count:
        _, cluster, distance = kmeans(x, count, generator, iterations)
        chosen = torch.nonzero(marked).flatten()[representatives(cluster, distance, count, generator)]
    return torch.cat([chosen, lot[~marked[lot]]])[:count]


def average_linkage(x: Float[Tensor, "n D"], clusters: int | None = None, threshold: float | None = None) -> Int[Tensor, " n"]:
    """Return the cluster, from 0, of each row under agglomerative clustering with average linkage.

    Two clusters are as far apart as the mean squared distance of their members; it follows from their means and mean squared
    norms, so memory is O(n D). All pairs that are each other's nearest merge at once: average linkage is reducible, so the
    tree is that of one merge at a time (Sumengen et al., arXiv 2105.11653). O(n^2 D) as a rule.

    Args:
        x: rows.
        clusters: how many to leave.
        threshold: mean squared distance above which nothing merges; one of the two is given.
    """
    if (clusters is None) == (threshold is None):
        raise ValueError("expected either clusters= or threshold=")
    heights, pairs = _merges(x, torch.inf if threshold is None else threshold)
    if clusters is not None:
        pairs = pairs[:, heights.argsort(stable=True)[: len(x) - clusters]]
    return _components(len(x), pairs)


def _merges(x: Float[Tensor, "n D"], threshold: float) -> tuple[Float[Tensor, " m"], Int[Tensor, "2 m"]]:
    """Return the merges up to `threshold`: their heights, and a row of either side.

    A cluster whose nearest one merged is no nearer to anything than before, so only those of least bound are looked up again.
    """
    points = Rows(_without(x, _offset(x)))
    means, norms, sizes = points.x.clone(), points.norms.clone(), torch.ones_like(points.norms)
    rows = torch.arange(len(x), device=x.device)  # a member of each cluster
    goal, height = torch.full_like(rows, -1), torch.zeros_like(norms)  # nearest other cluster, -1 if unknown; (bound of) how far
    heights, pairs = [height[:0]], [rows[:0].expand(2, 0)]
    while len(rows) > 1:
        unknown = torch.nonzero(goal < 0).flatten()
        lowest = height[unknown].topk(max(min(len(unknown), REFRESHED), len(unknown) // 16), largest=False).indices
        height[unknown[lowest]], goal[unknown[lowest]] = _nearest_other(means, norms, unknown[lowest])
        here, known, toward = torch.arange(len(rows), device=x.device), goal >= 0, goal.clamp(min=0)
        left = here[known & (goal[toward] == here) & (here < goal) & (height <= threshold)]
        if len(left) == 0:
            if len(unknown) > len(lowest):
                continue
            left = height.argmin().view(1)  # rounding may hide that the closest pair is mutual
            if bool(height[left] > threshold):
                break
        right = goal[left]
        heights.append(height[left])
        pairs.append(torch.stack([rows[left], rows[right]]))
        share = sizes[right] / (sizes[left] + sizes[right])
        means[left] = torch.lerp(means[left], means[right], share.unsqueeze(1))
        norms[left] = torch.lerp(norms[left], norms[right], share)
        sizes[left] += sizes[right]
        touched = torch.zeros_like(known).index_fill_(0, torch.cat([left, right]), True)
        kept = mask_without(len(rows), right)
        goal = torch.where(known & ~touched & ~touched[toward], (kept.cumsum(0) - 1)[toward], -1)[kept]
        means, norms, sizes, rows, height = means[kept], norms[kept], sizes[kept], rows[kept], height[kept]
    return torch.cat(heights), torch.cat(pairs, dim=1)


def _nearest_other(
    means: Float[Tensor, "m D"], norms: Float[Tensor, " m"], which: Int[Tensor, " s"]
) -> tuple[Float[Tensor, " s"], Int[Tensor, " s"]]:
    """Return, for some clusters, the mean squared distance to the nearest other one and which that is; block by block."""
    clusters, found = Rows(means, norms), []
    for block in which.split(max(1, CHUNK_ELEMENTS // len(means))):
        gaps = clusters.at(block).gaps(clusters)
        found.append(gaps.scatter_(1, block.unsqueeze(1), torch.inf).min(1))
    return torch.cat([f.values for f in found]) + norms[which], torch.cat([f.indices for f in found])


def _components(size: int, edges: Int[Tensor, "2 m"]) -> Int[Tensor, " size"]:
    """Return the connected component of each node, numbered from 0."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = edges.cpu().numpy()
    graph = coo_array((torch.ones(ends.shape[1]).numpy(), (ends[0], ends[1])), shape=(size, size))
    return torch.as_tensor(connected_components(graph, directed=False)[1], dtype=torch.int64, device=edges.device)
