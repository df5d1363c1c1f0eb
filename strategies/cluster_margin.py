"""Cluster-Margin (Citovsky et al., "Batch Active Learning at Scale", NeurIPS 2021, arXiv 2107.14263)."""

import math

import torch
from jaxtyping import Int
from torch import Tensor

from alenv import geometry
from alenv.ops import top_two
from alenv.round import Round
from alenv.strategy import Strategy, best_first


class ClusterMargin(Strategy):
    """Take the candidates of smallest margin, cluster them, and buy from the clusters in turns, from the smallest to the largest.

    The `factor` x B smallest margins are clustered by average linkage on the embeddings; each turn buys one random member of
    every cluster that has some left. O(U C + M^2 D) for M = min(factor x B, max(B, max_points)), memory O(M D).

    The paper clusters the whole pool once, before the first round, and reads off the clusters of the M smallest margins. Here
    those M are clustered, anew each round: no U x U work, no state, and the clusters follow the embeddings. Distances are
    squared; the default threshold is the one that leaves B clusters.

    Args:
        factor: M / B.
        threshold: mean squared distance above which clusters stay apart, or None for B clusters.
        max_points: bound on M, unless B exceeds it.
    """

    family = "hybrid"
    needs = frozenset({"probs", "embeddings"})

    def __init__(self, factor: float = 10.0, threshold: float | None = None, max_points: int = 10_000) -> None:
        if factor < 1:
            raise ValueError(f"cluster_margin: expected factor >= 1, got {factor}")
        self.factor, self.threshold, self.max_points = factor, threshold, max_points

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return positions in the order of the turns."""
        generator = round.generator("cluster_margin")
        first, second = top_two(round.probs)
        size = min(math.ceil(self.factor * budget), max(budget, self.max_points), len(round))
        unsure = best_first(second - first, generator, size)
        clusters = budget if self.threshold is None else None
        cluster = geometry.average_linkage(round.embeddings[unsure], clusters, self.threshold)
        return unsure[_in_turns(cluster, generator)[:budget]]


def _in_turns(cluster: Int[Tensor, " n"], generator: torch.Generator) -> Int[Tensor, " n"]:
    """Return all rows, a random one of each cluster in turn, smaller clusters first, until each is used up."""
    sizes = torch.bincount(cluster)
    lot = torch.randperm(len(cluster), generator=generator, device=cluster.device)
    order = lot[torch.sort(cluster[lot], stable=True).indices]
    turn = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[cluster[order]]
    place = torch.randperm(len(sizes), generator=generator, device=sizes.device)  # clusters of one size follow by lot
    place = place[torch.sort(sizes[place], stable=True).indices].argsort()
    order, turn = order[(by := place[cluster[order]].argsort(stable=True))], turn[by]
    return order[torch.sort(turn, stable=True).indices]
