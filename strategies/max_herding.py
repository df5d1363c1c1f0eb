"""MaxHerding (Bae, Noh & Sutherland, "Generalized Coverage for More Robust Low-Budget Active Learning", ECCV 2024)."""

import torch
from jaxtyping import Int
from torch import Tensor

from alenv import coverage
from alenv.round import Round
from alenv.strategy import Strategy


class MaxHerding(Strategy):
    """Buy, one after the other, the candidate that most raises sum_x max_{s in L u S} exp(-|x - s|^2 / sigma^2) over all x.

    ProbCover's objective with a smooth kernel for its ball. Features are scaled to length 1; ties fall by lot. All gains are kept
    exact (`coverage.Coverage`). O(U^2 D (1 + log(1 + B / L))), memory O(U^2 / 512) beside the features. Of more than
    `candidates` (and 2 B) candidates a random part is herded, as in the authors' code.

    Args:
        features: "embeddings", or the name of a feature provider.
        sigma: width of the kernel, between features of length 1.
        candidates: how many are herded at most.
    """

    family = "diversity"

    def __init__(self, features: str = "embeddings", sigma: float = 1.0, candidates: int = 35_000) -> None:
        if not sigma > 0:
            raise ValueError(f"max_herding: expected sigma > 0, got {sigma}")
        self.features, self.sigma, self.candidates = features, sigma, candidates
        self.needs = coverage.feature_needs(features)

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return positions in the order the greedy cover takes them."""
        mine, labeled = coverage.unit_features(round, self.features)
        generator = round.generator("max_herding")
        part = torch.randperm(len(mine), generator=generator, device=mine.device)[: max(self.candidates, 2 * budget)]
        part = part[coverage.near_together(mine[part], generator)]
        cover = coverage.Coverage(mine[part], labeled, self.sigma, coverage.gaussian)
        return part[cover.take(budget, generator)]
