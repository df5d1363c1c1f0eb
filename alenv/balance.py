"""The cheapest choice of rows whose classes come out as wanted: a linear relaxation with a certified gap."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from alenv.ops import mask_without


class Balanced(NamedTuple):
    """A solution of `balanced_minimum`.

    Attributes:
        picks: (B,) rows, those worth most first.
        objective: what they cost.
        bound: what no choice of B rows costs less than; objective - bound is the certified gap.
    """

    picks: Int[Tensor, " B"]
    objective: float
    bound: float


def balanced_minimum(
    costs: Float[Tensor, " n"], shares: Float[Tensor, "n C"], target: Float[Tensor, " C"], weight: float | int, count: int,
    generator: torch.Generator, *, columns: int = 1024, exchanges: int = 200,
) -> Balanced:  # fmt: skip
    """Choose `count` rows z that minimise sum(costs[z]) + weight * |sum(shares[z]) - target|_1, up to a certified gap.

    The linear relaxation (each row chosen to a share between 0 and 1) is solved to its optimum by sifting: small programs
    (HiGHS) over the rows near the threshold, each priced against all rows, until no row outside asks to come in. At most C + 1
    rows stay fractional; they are rounded, then rows are exchanged one for one while that lowers the objective. The bound is
    the Lagrangian dual at the last prices over all rows in float64: it holds however well the programs were solved. Ties fall by
    lot. O(n C) a pricing, memory O(n + columns C).

    Args:
        costs: cost per row.
        shares: what a row adds to each class.
        target: what the classes should get.
        weight: price of one unit of deviation.
        count: how many rows to choose, 1..n.
        generator: breaks ties.
        columns: rows that enter a program at a time.
        exchanges: how many at most.
    """
    if not 0 < count <= len(costs):
        raise ValueError(f"expected 1..{len(costs)} rows to choose, got {count}")
    lots = torch.rand(len(costs), generator=generator, device=costs.device, dtype=torch.float64)
    program = _Balance(
        costs.double() + 1e-10 * costs.abs().max().clamp(min=1e-9) * lots, shares, target.double(), float(weight), count
    )
    prices, chosen = program.relax(lots.topk(min(columns, len(lots))).indices, columns)
    reduced = program.reduced(prices)
    starts = [chosen.topk(count).indices, program.costs.topk(count, largest=False).indices]  # rounded; and greedy
    start = min(starts, key=program.objective)
    picks = program.exchange(start, reduced, exchanges)
    return Balanced(picks[reduced[picks].argsort()], program.objective(picks), program.bound(prices))


@dataclass(frozen=True, eq=False)
class _Balance:
    """The program of `balanced_minimum`: costs (n,), shares (n, C), target (C,), weight, count; all but shares in float64."""

    costs: Tensor
    shares: Tensor
    target: Tensor
    weight: float
    count: int

    def objective(self, picks: Tensor) -> float:
        deviation = (self.shares[picks].double().sum(0) - self.target).abs().sum()
        return float(self.costs[picks].sum() + self.weight * deviation)

    def reduced(self, prices: Tensor) -> Tensor:
        """Return what each row costs when `prices` (C,) are paid for its shares."""
        blocks = self.shares.split(max(1, 2**20 // len(prices)))
        return self.costs + torch.cat([block.double() @ prices for block in blocks])

    def bound(self, prices: Tensor) -> float:
        """Return the Lagrangian dual at `prices`, which lie in [-weight, weight]."""
        return float(self.reduced(prices).topk(self.count, largest=False).values.sum() - prices @ self.target)

    def relax(self, sample: Tensor, columns: int) -> tuple[Tensor, Tensor]:
        """Return optimal prices (C,) and to what share each row is chosen, (n,)."""
        part = len(sample) / len(self.costs)
        prices = self._solve(sample, self.target * part, self.count * part)[0]  # the whole, drawn smaller
        reduced = self.reduced(prices)
        threshold = reduced.kthvalue(self.count).values
        free = torch.zeros_like(reduced, dtype=torch.bool)
        free[(reduced - threshold).abs().topk(min(columns, len(reduced)), largest=False).indices] = True
        taken = (reduced < threshold) & ~free
        while True:
            rows = torch.nonzero(free).flatten()
            sums = self.shares[taken].double().sum(0)
            prices, chosen = self._solve(rows, self.target - sums, float(self.count - int(taken.sum())))
            reduced = self.reduced(prices)
            threshold = reduced.kthvalue(self.count).values
            wrong = torch.where(taken, reduced - threshold, threshold - reduced).masked_fill_(free, 0.0)
            wrong[wrong <= 1e-9 * self.costs.abs().max()] = 0.0
            worst = wrong.topk(min(columns, len(wrong)))
            enter = worst.indices[worst.values > 0]
            if not len(enter):
                return prices, taken.double().index_copy_(0, rows, chosen)
            free[enter], taken[enter] = True, False

    def exchange(self, picks: Tensor, reduced: Tensor, exchanges: int) -> Tensor:
        """Return `picks` after one-for-one exchanges, each the best among the rows nearest the threshold."""
        chosen = ~mask_without(len(reduced), picks)
        leave = picks[reduced[picks].topk(min(128, self.count)).indices]
        outside = torch.where(chosen, torch.inf, reduced)
        enter = outside.topk(min(512, len(reduced) - self.count), largest=False).indices
        if not len(enter):
            return picks
        rest = self.shares[picks].double().sum(0) - self.target
        for _ in range(exchanges):
            without, new = rest - self.shares[leave], self.shares[enter].double()
            after = torch.cat([torch.cdist(row, -new, p=1) for row in without.split(128)])
            change = self.weight * (after - rest.abs().sum()) + self.costs[enter] - self.costs[leave].unsqueeze(1)
            best = int(change.argmin())
            i, j = divmod(best, len(enter))
            if float(change[i, j]) >= -1e-9 * max(1.0, abs(float(self.costs.abs().max()))):
                break
            out, into = leave[i].clone(), enter[j].clone()
            rest = rest - self.shares[out] + self.shares[into]
            chosen[out], chosen[into] = False, True
            leave[i], enter[j] = into, out
        return torch.nonzero(chosen).flatten()

    def _solve(self, rows: Tensor, target: Tensor, count: float) -> tuple[Tensor, Tensor]:
        """Return prices and shares chosen for the program on `rows` alone."""
        from scipy.optimize import linprog

        classes = len(target)
        shares, one = self.shares[rows].double().cpu().numpy(), np.ones((1, len(rows)))
        equal = np.block([[shares.T, -np.eye(classes), np.eye(classes)], [one, np.zeros((1, 2 * classes))]])
        cost = np.concatenate([self.costs[rows].cpu().numpy(), np.full(2 * classes, self.weight)])
        bounds = [(0.0, 1.0)] * len(rows) + [(0.0, None)] * (2 * classes)
        found = linprog(cost, A_eq=equal, b_eq=np.append(target.cpu().numpy(), count), bounds=bounds, method="highs")
        if found.x is None:
            raise RuntimeError(f"HiGHS: {found.message}")
        prices = np.clip(-found.eqlin.marginals[:-1], -self.weight, self.weight)
        return torch.from_numpy(prices).to(target), torch.from_numpy(found.x[: len(rows)].clip(0, 1)).to(target)
