"""CoreMSE (Tan, Du & Buntine, "Diversity Enhanced Active Learning with Strictly Proper Scoring Rules", NeurIPS 2021)."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from alenv import geometry
from alenv.round import Round
from alenv.strategy import Strategy, best_first


class CoreMSE(Strategy):
    """Buy candidates whose labels are expected to lower the squared error most, in different places.

    R(x, x') = T sum_y p(y|x) |q - m|^2: the expected squared move of the prediction at x' from m to q; the T stochastic draws
    are the posterior, reweighted by p_t(y|x). The `kept_share` of candidates with the largest sum over an estimation set are
    clustered by their L2-normalised rows into B clusters; each gives the candidate nearest its centre.

    Exact reduction: with Z(x) = (p_t - m) / sqrt(m) and G(x') = the Gram matrix of p_t - m at x', R(x, x') = <Z Z^T / T, G>.
    So a row of R is a linear image of T^2 numbers, and rows are as far apart as those numbers under the metric sum_x' G G^T:
    nothing of size U x E is ever made. O(U C T^2 + (U + E) T^4), memory U T^2, and T U C of one block.

    Deviations: the constant of x' that the published code adds to its rows is left out unless `include_constant`. Picks are
    distinct by construction instead of filled at random.

    Args:
        estimation_share: share of the pool that changes are measured at.
        kept_share: share of the pool that is clustered (at least B candidates).
        include_constant: add the constant sum_t |p_t - m|^2 of x' to the rows, as the published code does.
        iterations: Lloyd steps at most.
    """

    family = "bayesian"
    needs = frozenset({"mc_probs"})

    def __init__(
        self, estimation_share: float = 0.0939, kept_share: float = 0.5, include_constant: bool = False, iterations: int = 25
    ) -> None:
        self.estimation_share, self.kept_share = estimation_share, kept_share
        self.include_constant, self.iterations = include_constant, iterations

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return one position per cluster, largest total change first."""
        generator = round.generator("coremse")
        change, total, metric = self._measured(round, generator)
        sums = change @ total
        kept = best_first(sums, generator, max(budget, math.ceil(self.kept_share * len(round))))
        kept = kept.sort().values  # else the last digits of sums decided where k-means begins
        scale, axes = torch.linalg.eigh(metric)
        root = axes * scale.clamp(min=0).sqrt()  # metric = root root^T
        root = root[:, scale > 1e-12 * scale[-1].clamp(min=torch.finfo(scale.dtype).tiny)].to(change)
        rows = F.normalize(change[kept] @ root)  # isometric to the normalised rows of R
        return kept[geometry.best_spread(rows, sums[kept], budget, generator, self.iterations)]

    def scores(self, round: Round) -> Float[Tensor, " U"]:
        """Return R summed over the estimation set, for each candidate."""
        change, total, _ = self._measured(round, round.generator("coremse"))
        return change @ total

    def _measured(self, round: Round, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return `_changes`, and `_moments` of an estimation set drawn by lot."""
        change = self._changes(round)
        lot = torch.randperm(len(round), generator=generator, device=round.device)
        total, metric = _moments(round.subset(lot[: max(1, math.ceil(self.estimation_share * len(round)))]))
        return change, total.to(change), metric

    def _changes(self, round: Round) -> Float[Tensor, "U T*T"]:
        """Return Z Z^T / T of every candidate, plus the identity where the constant belongs."""
        blocks = [_gram(_spread(block.mc_probs, scaled=True)) / round.num_draws for block in round.blocks("mc_probs")]
        change = torch.cat(blocks)
        return change + torch.eye(round.num_draws).to(change).flatten() if self.include_constant else change


def _spread(draws: Float[Tensor, "T n C"], scaled: bool = False) -> Float[Tensor, "n T C"]:
    mean = draws.mean(0)
    spread = draws - mean
    return (spread / mean.clamp(min=torch.finfo(mean.dtype).tiny).sqrt() if scaled else spread).transpose(0, 1)


def _gram(rows: Float[Tensor, "n T C"]) -> Float[Tensor, "n T*T"]:
    return (rows @ rows.mT).flatten(1)


def _moments(round: Round) -> tuple[Float[Tensor, " T*T"], Float[Tensor, "T*T T*T"]]:
    """Return the sum of the Gram matrices G of the draws over a round, flat, and that of G G^T, in float64."""
    grams = [_gram(_spread(block.mc_probs)).double() for block in round.blocks("mc_probs")]
    return sum((gram.sum(0) for gram in grams), torch.zeros(())), sum((gram.T @ gram for gram in grams), torch.zeros(()))
