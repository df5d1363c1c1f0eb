"""Covering a pool with balls or kernels around what is labelled; each function has a brute-force twin in the tests."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alenv import geometry, ops
from alenv.round import Round
from alenv.trainer import has_native_bfloat16

SIDE = 1024  # rows and columns of a kernel block: 4 MB of float32 stay in cache
LEADERS = 64  # columns computed at once for rows likely to be added next: one wide product costs a tenth of many thin ones
COINCIDE = 3e-3  # rows of length 1 that are nearer are the same row: float32 knows their distance to 1 % from here on
Kernel = Callable[[Tensor], Tensor]


def ball(closeness: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Return 1 within one bandwidth, 0 within; `closeness` is -(distance / bandwidth)^2, and is overwritten."""
    return closeness.gt_(-1)


def gaussian(closeness: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Return exp(-(distance / bandwidth)^2); `closeness` is -(distance / bandwidth)^2, and is overwritten."""
    return closeness.exp_()


class Coverage:
    """Greedy maximisation of sum_x u(x) max_{s in S} k(x, s) over the rows x, for a kernel k that falls with distance.

    S holds the labelled rows first; rows are added one by one. A new row lifts the maximum only of those rows that are nearer to
    it than to all of S, and only through them do gains fall. So all gains are kept exact at the price of about n log(b) kernel
    columns after the n of the start (n at most for balls, which cover a row once) instead of n a pick, and neither a graph nor
    an n x n array is held.

    Args:
        x: rows to cover and to choose from.
        labeled: rows of S at the start.
        bandwidth: radius of the ball, or sigma of the Gaussian.
        kernel: `ball` or `gaussian`.
        weight: u, non-negative (default: 1).

    Attributes:
        gain: by how much the sum would grow if a row were added; -inf for rows added.
        level: max_{s in S} k(x, s).
    """

    def __init__(
        self, x: Float[Tensor, "n D"], labeled: Float[Tensor, "l D"], bandwidth: float, kernel: Kernel,
        weight: Float[Tensor, " n"] | None = None,
    ) -> None:  # fmt: skip
        centre = x.mean(0)  # a common offset would eat the digits
        scale = 2**0.5 / bandwidth
        self.kernel, self.rows = kernel, _augmented((x - centre) * scale)
        self.weight = x.new_ones(len(x)) if weight is None else weight
        self.level = x.new_zeros(len(x))
        for part in _augmented((labeled - centre) * scale).split(SIDE) if len(labeled) else ():
            for block in _cuts(len(x), SIDE):
                self.level[block] = torch.maximum(self.level[block], kernel(_closeness(self.rows[block], part)).amax(1))
        filtered = kernel is ball and x.is_cpu and has_native_bfloat16(x.device)
        self._filter = _filtered_balls(self.rows) if filtered else None
        self.gain = self._gains()
        self._ready: dict[int, Tensor] = {}

    def add(self, pick: Int[Tensor, ""]) -> None:
        """Add row `pick` to S and bring the gains up to date."""
        ready = self._ready.pop(int(pick), None)
        closeness = _closeness(self.rows, self.rows[pick].unsqueeze(0)).squeeze(1) if ready is None else ready
        # two radii at most from the pick to a row that loses one of the rows the pick covers
        touched = torch.nonzero(closeness > -4.001).flatten() if self.kernel is ball else None
        similar = self.kernel(closeness)
        lifted = torch.nonzero((similar > self.level) & (self.weight > 0)).flatten()
        low, high, weight = self.level[lifted], similar[lifted], self.weight[lifted]
        others = _swapped(self.rows[lifted])
        for block in _cuts(len(self.rows) if touched is None else len(touched), max(1, SIDE**2 // max(1, len(lifted)))):
            where = block if touched is None else touched[block]
            fall = self.kernel(self.rows[where] @ others.T).clamp_(low, high).sub_(low)
            self.gain[where] -= fall @ weight
        self.level[lifted] = high
        self.gain[pick] = -torch.inf

    def take(self, count: int, generator: torch.Generator, score: Callable[[Tensor], Tensor] | None = None) -> Int[Tensor, " k"]:
        """Add the row of the largest gain, or of the largest score(gains), `count` times; equals fall by lot."""
        lot = torch.randperm(len(self.rows), generator=generator, device=self.rows.device)
        pick = self._take_lazily if score is None else self._take_eagerly
        return torch.stack(list(pick(count, lot, score)))

    def _take_eagerly(self, count: int, lot: Int[Tensor, " n"], score: Any) -> Iterator[Tensor]:
        for _ in range(count):
            worth = score(self.gain.clamp(min=0)).masked_fill_(self.gain == -torch.inf, -torch.inf)
            pick = lot[worth[lot].argmax()]
            self._prepare(pick, worth, lot, count)
            self.add(pick)
            yield pick

    def _take_lazily(self, count: int, lot: Int[Tensor, " n"], _: Any) -> Iterator[Tensor]:
        """Let lifts wait until they fill a block: gains only fall, so old ones are bounds, and leaders are brought up to date."""
        bounds, waiting = self.gain.clone(), _Lifts.none(self.level)

        def gains(rows: Tensor) -> Tensor:
            return self.gain[rows] - self._fall(rows, waiting)

        for _ in range(count):
            pick = ops.lazy_argmax(bounds, gains, lot)
            self._prepare(pick, bounds, lot, count)
            similar = self.kernel(self._ready.pop(int(pick)))
            rows = torch.nonzero((similar > self.level) & (self.weight > 0)).flatten()
            waiting = waiting.and_also(rows, self.level[rows], similar[rows])
            self.level[rows] = similar[rows]
            self.gain[pick] = bounds[pick] = -torch.inf
            if len(waiting.rows) >= SIDE:
                waiting = self._settle(waiting)
                bounds = self.gain.clone()
            yield pick
        self._settle(waiting)

    def _prepare(self, pick: Int[Tensor, ""], worth: Float[Tensor, " n"], lot: Int[Tensor, " n"], count: int) -> None:
        """Compute the column of `pick`, and of those likely to be added after it."""
        if int(pick) not in self._ready:
            leaders = torch.cat([pick.view(1), lot[worth[lot].topk(min(LEADERS, count, len(lot))).indices]])
            columns = _closeness(self.rows, self.rows[leaders]).T.contiguous()
            self._ready = dict(zip(leaders.tolist(), columns, strict=True))

    def _fall(self, some: Int[Tensor, " k"], lifts: "_Lifts") -> Float[Tensor, " k"]:
        """Return by how much lifts lower the gains of some rows."""
        parts = []
        for block in some.split(max(1, SIDE**2 // max(1, len(lifts.rows)))):
            similar = self.kernel(_closeness(self.rows[block], self.rows[lifts.rows]))
            parts.append(similar.clamp_(lifts.low, lifts.high).sub_(lifts.low) @ self.weight[lifts.rows])
        return torch.cat(parts)

    def _settle(self, lifts: "_Lifts") -> "_Lifts":
        """Lower all gains by what was lifted, and return that nothing waits."""
        for part in lifts.split(SIDE) if len(lifts.rows) else ():
            others = _swapped(self.rows[part.rows]).T
            weight = self.weight[part.rows]
            for block in _cuts(len(self.rows), SIDE):
                if self._filter:
                    self.gain[block] -= self._filter(block, part.rows) @ weight
                else:
                    fall = self.kernel(self.rows[block] @ others).clamp_(part.low, part.high).sub_(part.low)
                    self.gain[block] -= fall @ weight
        return _Lifts.none(self.level)

    def _gains(self) -> Float[Tensor, " n"]:
        """Return all gains at once; the kernel is symmetric, so each block of it serves twice."""
        gain = torch.zeros(len(self.rows), dtype=torch.float64, device=self.rows.device)
        cuts = list(_cuts(len(self.rows), SIDE))
        for i, left in enumerate(cuts):
            for right in cuts[i:]:
                block = self._filter(left, right) if self._filter else self.kernel(_closeness(self.rows[left], self.rows[right]))
                if right is not left:
                    gain[right] += self.weight[left] @ (block - self.level[left, None]).clamp_(min=0)
                gain[left] += block.sub_(self.level[right]).clamp_(min=0) @ self.weight[right]
        return gain


class _Lifts(NamedTuple):
    """Rows of a cover whose level was lifted, from where and to where; a row may be lifted again."""

    rows: Int[Tensor, " m"]
    low: Float[Tensor, " m"]
    high: Float[Tensor, " m"]

    @classmethod
    def none(cls, like: Float[Tensor, " n"]) -> "_Lifts":
        return cls(torch.zeros(0, dtype=torch.int64, device=like.device), like[:0], like[:0])

    def and_also(self, rows: Int[Tensor, " k"], low: Float[Tensor, " k"], high: Float[Tensor, " k"]) -> "_Lifts":
        return _Lifts(torch.cat([self.rows, rows]), torch.cat([self.low, low]), torch.cat([self.high, high]))

    def split(self, size: int) -> "list[_Lifts]":
        return [_Lifts(*part) for part in zip(*(each.split(size) for each in self), strict=True)]


def _filtered_balls(rows: Float[Tensor, "n E"]) -> Callable[[slice, slice | Tensor], Float[Tensor, "p q"]]:
    """Return what gives `ball` of a block of pairs: multiplied in bfloat16, and again in float32 where that may err.

    Norms enter the product as three numbers of 8 bits each, so it is closeness + 1 itself that is rounded at the end, which keeps
    its sign. Rounding x and y errs by less than 2^-7.9 |x| |y|.
    """
    x, norms = rows[:, :-2].bfloat16(), rows[:, -2] + 0.5
    digits = [norms.bfloat16()]
    digits += [(norms - digits[0]).bfloat16()]
    digits += [(norms - digits[0] - digits[1]).bfloat16()]
    ones = torch.ones_like(digits[0])
    left, right = (torch.cat([x, torch.stack(columns, 1)], 1) for columns in ([*digits, *[ones] * 3], [*[ones] * 3, *digits]))
    lengths = (-2 * rows[:, -2]).sqrt()

    def block(these: slice, others: slice | Tensor) -> Tensor:
        within = left[these] @ right[others].T
        slack = float(lengths[these].amax() * lengths[others].amax()) * 2**-7.9 + 1e-4
        i, j = torch.nonzero(within.abs().le_(slack), as_tuple=True)
        inside = within.gt_(0).float()
        for part in _cuts(len(i), SIDE):
            pairs = rows[these][i[part]] * _swapped(rows[others][j[part]])
            inside[i[part], j[part]] = ball(pairs.sum(1))
        return inside

    return block


def _augmented(x: Float[Tensor, "n D"]) -> Float[Tensor, "n E"]:
    """Return rows [x, -|x|^2 / 2, 1]."""
    return torch.cat([x, x.square().sum(1, keepdim=True) / -2, torch.ones_like(x[:, :1])], 1)


def _swapped(rows: Float[Tensor, "n E"]) -> Float[Tensor, "n E"]:
    """Return rows [x, 1, -|x|^2 / 2]: the product with an augmented row is -|x - y|^2 / 2."""
    return torch.cat([rows[:, :-2], rows[:, -1:], rows[:, -2:-1]], 1)


def _closeness(a: Float[Tensor, "p E"], b: Float[Tensor, "q E"]) -> Float[Tensor, "p q"]:
    return a @ _swapped(b).T


def _cuts(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def covered(x: Float[Tensor, "n D"], centres: Float[Tensor, "c D"], radii: Float[Tensor, " c"]) -> Bool[Tensor, " n"]:
    """Return which rows of `x` lie within the radius of some centre; block by block."""
    found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    if len(centres):
        rows = max(1, geometry.CHUNK_ELEMENTS // len(centres))
        reach = radii.square()
        found = torch.cat([(geometry.squared_distances(block, centres) < reach).any(1) for block in x.split(rows)])
    return found


def pure_radius(
    x: Float[Tensor, "n D"], cluster: Int[Tensor, " n"], purity: float, generator: torch.Generator, sample: int = 2000
) -> float:
    """Return the largest radius at which a share `purity` of the rows have none but their own cluster in their ball.

    A ball is pure up to the distance of the nearest row of another cluster, so the radius is a quantile of those distances; of a
    random `sample` of rows where there are more. Never less than `COINCIDE`.
    """
    rows = torch.randperm(len(x), generator=generator, device=x.device)[:sample]
    points = geometry.Rows(x - x.mean(0))  # a common offset would eat the digits
    nearest = [
        points.at(part).squared_distances(points).masked_fill_(cluster[part, None] == cluster, torch.inf).amin(1)
        for part in rows.split(max(1, geometry.CHUNK_ELEMENTS // len(x)))
    ]
    impure = int((1 - purity) * len(rows) + 1e-9)
    return max(float(torch.cat(nearest).sort().values[min(impure, len(rows) - 1)].sqrt()), COINCIDE)


def smallest_gap(x: Float[Tensor, "n D"]) -> float | None:
    """Return the smallest distance between two rows that do not coincide, or None if there are no such two."""
    if len(x) < 2:
        return None
    blocks = x.split(max(1, geometry.CHUNK_ELEMENTS // len(x)))
    apart = (geometry.squared_distances(block, x) for block in blocks)
    gap = float(torch.stack([a.masked_fill_(a < COINCIDE**2, torch.inf).amin() for a in apart]).amin().sqrt())
    return gap if gap < torch.inf else None


def boundary_distances(
    logits: Float[Tensor, "n C"], weight: Float[Tensor, "C D"], nearness: Float[Tensor, "C C"] | None = None
) -> Float[Tensor, "n C"]:
    """Return the distance from each row's input of a linear layer to where a class becomes as likely as the predicted one.

    It is (l_y - l_c) / |W_y - W_c| for logits l, weights W and predicted class y; infinite to y itself and to classes of the same
    weights. `nearness` is `class_nearness(weight)`, where that is known.
    """
    nearness = class_nearness(weight) if nearness is None else nearness
    top, predicted = logits.max(1, keepdim=True)
    distances = (top - logits) * nearness[predicted.squeeze(1)]
    return distances.nan_to_num_(nan=torch.inf, posinf=torch.inf)


def class_nearness(weight: Float[Tensor, "C D"]) -> Float[Tensor, "C C"]:
    """Return 1 / |W_y - W_c| for each pair of classes, infinite where their weights are equal."""
    apart = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")  # equal weights are exactly 0 apart
    return torch.where(apart > 0, 1 / apart, torch.inf)


def unit_features(round: Round, name: str) -> tuple[Float[Tensor, "U D"], Float[Tensor, "L D"]]:
    """Return the features of candidates and labelled examples, scaled to length 1: "embeddings" or a provider's."""
    if name == "embeddings":
        return F.normalize(round.embeddings), F.normalize(round.labeled_embeddings)
    found = round.features(name)
    return F.normalize(found.candidates), F.normalize(found.labeled)


def feature_needs(name: str) -> frozenset[str]:
    """Return what `unit_features` reads of a round."""
    return frozenset({"embeddings", "labeled_embeddings"} if name == "embeddings" else {f"features:{name}"})
