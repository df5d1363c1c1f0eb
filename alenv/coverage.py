"""Covering a pool with balls or kernels around what is labelled; each function has a brute-force twin in the tests."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alenv import geometry, ops
from alenv.device import has_native_bfloat16
from alenv.round import Round

SIDE = 1024  # rows and columns of a kernel block: 4 MB of float32 stay in cache
LEADERS = 64  # columns computed at once for rows likely to be added next: one wide product costs a tenth of many thin ones
DENSE = 64  # of one pair in so many a filter is not sure: then all are multiplied again
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
    it than to all of S, and of a lifted row only the gains of those fall that are nearer to it than S was. The n^2 / 2 kernel
    values that the gains of the start need tell the largest of each row with each group of `SIDE` / 2 consecutive rows: a group
    it does not lift is passed over. Rows in the order of `near_together` leave few groups; no order changes a result. Neither a
    graph nor an n x n array is held.

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
        self._blocks, self._group = list(_cuts(len(x), SIDE)), SIDE // 2
        for part in _augmented((labeled - centre) * scale).split(SIDE) if len(labeled) else ():
            for block in self._blocks:
                self.level[block] = torch.maximum(self.level[block], kernel(_closeness(self.rows[block], part)).amax(1))
        filtered = kernel is ball and x.is_cpu and has_native_bfloat16(x.device)
        self._filter = _Filter(self.rows) if filtered else None
        self._reach = x.new_zeros(-(-len(x) // self._group), len(x))  # the largest kernel value between a group and a row
        self.gain = self._gains()
        self._known = self.level.clone()  # the levels that gains are those of
        self._ready: dict[int, Tensor] = {}

    def add(self, pick: Int[Tensor, ""]) -> None:
        """Add row `pick` to S and bring the gains up to date."""
        self._lift(pick, self._column(pick))
        self._settle(self._lifted())

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
        bounds, lifted = self.gain.clone(), self._lifted()

        def gains(rows: Tensor) -> Tensor:
            return self.gain[rows] - self._fall(rows, lifted)

        for _ in range(count):
            pick = ops.lazy_argmax(bounds, gains, lot)
            self._prepare(pick, bounds, lot, count)
            self._lift(pick, self._column(pick))
            bounds[pick] = -torch.inf
            lifted = self._lifted()
            if len(lifted) >= SIDE:
                self._settle(lifted)
                bounds, lifted = self.gain.clone(), lifted[:0]
            yield pick
        self._settle(lifted)

    def _prepare(self, pick: Int[Tensor, ""], worth: Float[Tensor, " n"], lot: Int[Tensor, " n"], count: int) -> None:
        """Where many rows may be lifted by `pick`, compute the kernel with it, and with those likely to be added after it."""
        if int(pick) not in self._ready and 8 * len(self._near(pick)) > len(lot):
            leaders = torch.cat([pick.view(1), lot[worth[lot].topk(min(LEADERS, count, len(lot))).indices]])
            columns = torch.cat([self._similar(block, leaders).T for block in self._blocks], 1)
            self._ready = dict(zip(leaders.tolist(), columns, strict=True))

    def _near(self, pick: Int[Tensor, ""]) -> Int[Tensor, " m"]:
        """Return the rows that `pick` may lift; row 0 may be among them for nothing."""
        near = torch.nonzero(self._reach[pick // self._group] > self.level).flatten()
        return F.pad(near, (0, -len(near) % self._group))  # few sizes: oneDNN compiles a kernel for each

    def _column(self, pick: Int[Tensor, ""]) -> Float[Tensor, " n"]:
        """Return the kernel with `pick` of all rows that it may lift."""
        if int(pick) in self._ready:
            return self._ready.pop(int(pick))
        near, column = self._near(pick), torch.zeros_like(self.level)
        if len(near):
            column[near] = self._similar(near, pick.view(1)).squeeze(1)
        return column

    def _lift(self, pick: Int[Tensor, ""], similar: Float[Tensor, " n"]) -> None:
        """Add a row to S, but leave the gains of the others as they are."""
        self.level = torch.where(self.weight > 0, torch.maximum(self.level, similar), self.level)
        self.gain[pick] = -torch.inf

    def _lifted(self) -> Int[Tensor, " m"]:
        """Return the rows whose lift the gains do not know of."""
        return torch.nonzero(self.level > self._known).flatten()

    def _fall(self, some: Int[Tensor, " k"] | slice, lifted: Int[Tensor, " m"]) -> Float[Tensor, " k"]:
        """Return by how much lifts lower the gains of some rows."""
        if len(lifted) == 0:
            return self.gain.new_zeros(len(self.gain[some]))
        spare = -len(lifted) % LEADERS  # few sizes: oneDNN compiles a kernel for each
        weight, lifted = F.pad(self.weight[lifted], (0, spare)), F.pad(lifted, (0, spare))
        low, high = self._known[lifted], self.level[lifted]
        return self._similar(some, lifted).clamp_(low, high).sub_(low) @ weight

    def _settle(self, lifted: Int[Tensor, " m"]) -> None:
        """Lower all gains by what was lifted."""
        for part in lifted.split(SIDE) if len(lifted) else ():
            concerned = self._reach[:, part] > self._known[part]
            for group, concerns in zip(_cuts(len(self.rows), self._group), concerned, strict=True):
                self.gain[group] -= self._fall(group, part[concerns])
        self._known = self.level

    def _gains(self) -> Float[Tensor, " n"]:
        """Return all gains at once; the kernel is symmetric, so each block of it serves twice."""
        gain = torch.zeros(len(self.rows), dtype=torch.float64, device=self.rows.device)
        for i, left in enumerate(self._blocks):
            for right in self._blocks[i:]:
                block = self._block(left, right)
                if block is None:
                    continue
                for (rows, columns), each in (((left, right), block), ((right, left), block.T)):
                    for k, part in enumerate(each.split(self._group), rows.start // self._group):
                        self._reach[k, columns] = part.amax(0)
                if right is not left:
                    gain[right] += self.weight[left] @ (block - self.level[left, None]).clamp_(min=0)
                gain[left] += block.sub_(self.level[right]).clamp_(min=0) @ self.weight[right]
        return gain

    def _similar(self, some: slice | Tensor, others: slice | Tensor) -> Float[Tensor, "p q"]:
        """Return the kernel between rows."""
        found = self._block(some, others)
        return self.rows.new_zeros(len(self.rows[some]), len(self.rows[others])) if found is None else found

    def _block(self, some: slice | Tensor, others: slice | Tensor) -> Float[Tensor, "p q"] | None:
        """Return the kernel between rows, None where all of it is known to be 0."""
        if self._filter:
            return self._filter(some, others)
        return self.kernel(_closeness(self.rows[some], self.rows[others]))


class _Filter:
    """`ball` of pairs of augmented rows: multiplied in bfloat16, and again in float32 where that may err.

    Norms enter the product as three numbers of 8 bits each, so it is closeness + 1 itself that is rounded at the end, which keeps
    its sign. The rest errs by |x - x'| |y| + |x'| |y - y'| at most, for rows x' and y' as rounded.
    """

    def __init__(self, rows: Float[Tensor, "n E"]) -> None:
        self.rows, norms = rows, rows[:, -2] + 0.5
        rounded = rows[:, :-2].bfloat16()
        digits = [norms.bfloat16()]
        digits += [(norms - digits[0]).bfloat16()]
        digits += [(norms - digits[0] - digits[1]).bfloat16()]
        self.coarse = torch.cat([rounded, torch.stack([*digits, *[torch.ones_like(digits[0])] * 3], 1)], 1)
        self.lengths = 1.01 * (-2 * rows[:, -2]).sqrt()
        self.errors = torch.cat([(part[:, :-2] - part[:, :-2].bfloat16()).norm(dim=1) for part in rows.split(SIDE)])

    def __call__(self, some: slice | Tensor, others: slice | Tensor) -> Float[Tensor, "p q"] | None:
        """Return 1 for pairs within a radius, 0 for others; None where there are none within."""
        right = self.coarse[others]
        within = self.coarse[some] @ torch.cat([right[:, :-6], right[:, -3:], right[:, -6:-3]], 1).T
        (error, other_error), (length, other_length) = (
            (of[some].amax(), of[others].amax()) for of in (self.errors, self.lengths)
        )
        slack = float(error * other_length + other_error * length) + 1e-4
        if float(within.max()) < -slack:
            return None
        i, j = torch.nonzero(within.abs() <= slack, as_tuple=True)
        inside = within.gt_(0).to(self.rows.dtype)
        left, right = self.rows[some], self.rows[others]
        if len(i) > within.numel() // DENSE:
            return ball(_closeness(left, right))
        for part in _cuts(len(i), SIDE):
            x, y = left[i[part]], right[j[part]]
            inside[i[part], j[part]] = ball((x[:, :-2] * y[:, :-2]).sum(1) + (x[:, -2] + y[:, -2]))
        return inside


def _augmented(x: Float[Tensor, "n D"]) -> Float[Tensor, "n E"]:
    """Return rows [x, -|x|^2 / 2, 1]."""
    return torch.cat([x, x.square().sum(1, keepdim=True) / -2, torch.ones_like(x[:, :1])], 1)


def _swapped(rows: Float[Tensor, "n E"]) -> Float[Tensor, "n E"]:
    """Return rows [x, 1, -|x|^2 / 2]: the product with an augmented row is -|x - y|^2 / 2."""
    return torch.cat([rows[:, :-2], rows[:, -1:], rows[:, -2:-1]], 1)


def _closeness(a: Float[Tensor, "p E"], b: Float[Tensor, "q E"]) -> Float[Tensor, "p q"]:
    return geometry.products(a, _swapped(b)) if len(b) < len(a) else geometry.products(_swapped(a), b)


def _cuts(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def near_together(x: Float[Tensor, "n D"], generator: torch.Generator) -> Int[Tensor, " n"]:
    """Return the rows in an order in which near ones stand together: by cluster of about `SIDE` rows, found roughly."""
    if len(x) <= SIDE:
        return torch.arange(len(x), device=x.device)
    return geometry.kmeans(x, -(-len(x) // SIDE), generator, iterations=5, trials=1)[1].argsort()


def squared_distances(
    x: Float[Tensor, "n D"], centres: Float[Tensor, "c D"]
) -> Iterator[tuple[slice, slice, Float[Tensor, "q p"]]]:
    """Yield squared distances of some centres to some rows, block by block: which rows, which centres, and what."""
    offset = centres.mean(0)  # a common offset would eat the digits
    goals = _swapped(_augmented(centres - offset))
    for rows in _cuts(len(x), SIDE):
        block = _augmented(x[rows] - offset)
        for some in _cuts(len(goals), SIDE):
            yield rows, some, geometry.products(goals[some], block).mul_(-2).clamp_(min=0)


def covered(x: Float[Tensor, "n D"], centres: Float[Tensor, "c D"], radii: Float[Tensor, " c"]) -> Bool[Tensor, " n"]:
    """Return which rows of `x` lie within the radius of some centre; block by block."""
    found, reach = torch.zeros(len(x), dtype=torch.bool, device=x.device), radii.square().unsqueeze(1)
    for rows, some, apart in squared_distances(x, centres) if len(centres) else ():
        found[rows] |= (apart - reach[some]).amin(0) < 0
    return found


def pure_radius(
    x: Float[Tensor, "n D"], cluster: Int[Tensor, " n"], purity: float, generator: torch.Generator, sample: int = 2000
) -> float:
    """Return the largest radius at which a share `purity` of the rows have none but their own cluster in their ball.

    A ball is pure up to the distance of the nearest row of another cluster, so the radius is a quantile of those distances; of a
    random `sample` of rows where there are more. Never less than `COINCIDE`.
    """
    rows = torch.randperm(len(x), generator=generator, device=x.device)[:sample]
    nearest = torch.full((len(rows),), torch.inf, dtype=x.dtype, device=x.device)
    for block, some, apart in squared_distances(x, x[rows]):
        strangers = apart.masked_fill_(cluster[rows[some], None] == cluster[block], torch.inf)
        nearest[some] = torch.minimum(nearest[some], strangers.amin(1))
    impure = int((1 - purity) * len(rows) + 1e-9)
    return max(float(nearest.sort().values[min(impure, len(rows) - 1)].sqrt()), COINCIDE)


def smallest_gap(x: Float[Tensor, "n D"]) -> float | None:
    """Return the smallest distance between two rows that do not coincide, or None if there are no such two."""
    if len(x) < 2:
        return None
    gap = float(
        torch.stack([apart.masked_fill_(apart < COINCIDE**2, torch.inf).amin() for _, _, apart in squared_distances(x, x)])
        .amin()
        .sqrt()
    )
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
