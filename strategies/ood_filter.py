"""A filter against out-of-distribution candidates by nearest neighbours among what was bought.

The distance is that of Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022, arXiv 2204.06507.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from alenv import geometry
from alenv.round import Round
from alenv.strategy import Strategy, Wrapper, select_preferring


class OODFilter(Wrapper):
    """Pass over candidates that lie nearer to purchases of no known class than to labelled ones; another strategy buys.

    Nearer: on unit-norm embeddings, the mean distance to the k nearest purchases found outside the classes is below that to the
    k nearest labelled examples. The paper thresholds the distance to the known data alone, which would keep a learner from
    anything new; here a region is left out only once something bought there was of no class, and until then nothing is. What is
    passed over comes last. O(U (L + X) D), memory one block of distances, beside the cost of `inner`.

    Args:
        inner: the strategy that buys.
        neighbors: k; at most what either side has.
    """

    def __init__(self, inner: Strategy, neighbors: int = 5) -> None:
        if neighbors < 1:
            raise ValueError(f"ood_filter: expected neighbors >= 1, got {neighbors}")
        super().__init__(inner=inner)
        self.inner, self.neighbors = inner, neighbors
        self.needs |= {"embeddings", "labeled_embeddings", "discarded_embeddings"}

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return the inner strategy's picks among the candidates that look like known classes, then among the rest."""
        return select_preferring(self.inner, round, self.usable(round), budget)

    def usable(self, round: Round) -> Bool[Tensor, " U"]:
        """Return which candidates are not nearer to purchases outside the classes than to labelled examples."""
        purity = self.purity(round)
        return torch.ones(len(round), dtype=torch.bool, device=round.device) if purity is None else purity >= 0

    def purity(self, round: Round) -> Float[Tensor, " U"] | None:
        """Return by how much labelled examples are nearer than purchases outside the classes; None while one kind is missing."""
        return round.once(self, self._margins)

    def _margins(self, round: Round) -> Float[Tensor, " U"] | None:
        known, outside = round.labeled_embeddings, round.discarded_embeddings[round.outside]
        known, outside = normalize(known, dim=1), normalize(outside, dim=1)
        k = min(self.neighbors, len(known), len(outside))
        if k == 0:
            return None
        rows = max(1, geometry.CHUNK_ELEMENTS // max(len(known), len(outside)))
        blocks = (normalize(block, dim=1) for block in round.embeddings.split(rows))
        return torch.cat([_mean_distance(block, outside, k) - _mean_distance(block, known, k) for block in blocks])


def _mean_distance(a: Float[Tensor, "n D"], b: Float[Tensor, "k D"], nearest: int) -> Float[Tensor, " n"]:
    return geometry.squared_distances(a, b).topk(nearest, largest=False, sorted=False).values.sqrt().mean(1)
