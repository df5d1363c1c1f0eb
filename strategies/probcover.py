"""ProbCover (Yehuda, Dekel, Hacohen & Weinshall, "Active Learning Through a Covering Lens", NeurIPS 2022, arXiv 2205.11320)."""

import torch
from jaxtyping import Int
from torch import Tensor

from alenv import coverage, geometry
from alenv.round import Round
from alenv.strategy import Strategy


class ProbCover(Strategy):
    """Buy, one after the other, the candidate whose ball of radius delta holds most candidates that no ball covers yet.

    Balls around labelled examples cover first; equal counts, and what is left once all is covered, fall by lot. Features are
    scaled to length 1, as the authors' are. Delta is the paper's: the largest radius at which a share `purity` of the balls hold
    points of one k-means cluster only, with as many clusters as classes; found exactly, from `sample` balls, where the authors
    try a grid. Their graph forgets the points after its last full batch, and buys point 0 again once all is covered; not here.
    O(U^2 D), memory O(U^2 / 512) beside the features: counts are kept exact without a graph (`coverage.Coverage`).

    Args:
        features: "embeddings", or the name of a feature provider.
        delta: radius between features of length 1, in (0, 2]; None: by purity.
        purity: share of pure balls that delta must leave.
        sample: balls that delta is found from.
        iterations: Lloyd steps at most.
    """

    family = "diversity"

    def __init__(
        self, features: str = "embeddings", delta: float | None = None, purity: float = 0.95, sample: int = 2000,
        iterations: int = 25,
    ) -> None:  # fmt: skip
        if delta is not None and not delta > 0:
            raise ValueError(f"probcover: expected delta > 0, or None to find it by purity, got {delta}")
        if not 0 < purity <= 1:
            raise ValueError(f"probcover: expected purity in (0, 1], got {purity}")
        self.features, self.delta, self.purity, self.sample, self.iterations = features, delta, purity, sample, iterations
        self.needs = coverage.feature_needs(features)

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return positions in the order the greedy cover takes them."""
        mine, labeled = coverage.unit_features(round, self.features)
        delta = self.delta if self.delta is not None else self._radius(torch.cat([mine, labeled]), round)
        generator = round.generator("probcover")
        order = coverage.near_together(mine, generator)
        cover = coverage.Coverage(mine[order], labeled, delta, coverage.ball)
        return order[cover.take(budget, generator)]

    def _radius(self, everyone: Tensor, round: Round) -> float:
        generator = round.generator("probcover/radius")
        clusters = min(max(round.num_classes, 1), len(everyone))
        _, cluster, _ = geometry.kmeans(everyone, clusters, generator, self.iterations)
        return coverage.pure_radius(everyone, cluster, self.purity, generator, self.sample)
