"""CoreLog (Tan, Du & Buntine, "Diversity Enhanced Active Learning with Strictly Proper Scoring Rules", NeurIPS 2021)."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from alenv import geometry, ops
from alenv.round import Round
from alenv.strategy import Strategy, best_first


class CoreLog(Strategy):
    """Buy candidates whose labels are expected to raise the log score most, in different places.

    R(x, x') = T sum_y p(y|x) KL between the updated prediction q at x' and the present one m; the T stochastic draws are the
    posterior, reweighted by p_t(y|x). The `kept_share` of candidates with the largest sum over an estimation set are clustered
    by their L2-normalised rows into B clusters; each gives the candidate nearest its centre.
    O(K U T E C), K <= C labels a candidate and E estimation points; memory U E, and T U C of one block.

    Deviations. The expected gain in log score is KL(q, m), as in the paper; the published code computes KL(m, q) plus a
    constant of x'. The estimation set is capped, so that cost stays linear in U. A candidate's least likely labels count as one
    outcome, which takes at most (1 - coverage) T log T off R. Picks are distinct by construction instead of filled at random.

    Args:
        estimation_share: share of the pool that changes are measured at.
        estimation_limit: points at most; totals over 150 rank 5,000 candidates of 100 classes like those over 3,000 (rank
            correlation .998).
        kept_share: share of the pool that is clustered (at least B candidates).
        divergence: "updated||mean" is the paper's, "mean||updated" the published code's.
        include_constant: add the constant sum_t KL(p_t, m) of x' to the rows, as the published code does.
        coverage: probability a candidate's own outcomes hold; 1 is the full sum over labels.
        iterations: Lloyd steps at most.
    """

    family = "bayesian"
    needs = frozenset({"mc_probs"})

    def __init__(
        self, estimation_share: float = 0.0939, estimation_limit: int = 150, kept_share: float = 0.5,
        divergence: Literal["updated||mean", "mean||updated"] = "updated||mean", include_constant: bool = False,
        coverage: float = 0.99, iterations: int = 25,
    ) -> None:  # fmt: skip
        if divergence not in ("updated||mean", "mean||updated"):
            raise ValueError(f"corelog: expected divergence=updated||mean or mean||updated, got '{divergence}'")
        self.estimation_share, self.estimation_limit, self.kept_share = estimation_share, estimation_limit, kept_share
        self.divergence, self.include_constant = divergence, include_constant
        self.coverage, self.iterations = coverage, iterations

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return one position per cluster, largest total change first."""
        generator = round.generator("corelog")
        points = min(self.estimation_limit, math.ceil(self.estimation_share * len(round)))
        lot = torch.randperm(len(round), generator=generator, device=round.device)[: max(1, points)]
        targets = round.subset(lot).mc_probs
        reverse = self.divergence == "mean||updated"
        changes = [
            len(targets) * ops.predictive_change(block.mc_probs, targets, reverse, self.coverage)
            for block in round.blocks("mc_probs")
        ]
        rows = torch.cat(changes)  # (U, E)
        if self.include_constant:
            rows += len(targets) * ops.mutual_information(targets)
        total = rows.sum(1)
        kept = best_first(total, generator, max(budget, math.ceil(self.kept_share * len(round))))
        kept = kept.sort().values  # else the last digits of totals decided where k-means begins
        return kept[geometry.best_spread(F.normalize(rows[kept]), total[kept], budget, generator, self.iterations)]
