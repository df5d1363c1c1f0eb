"""DCoM, dynamic coverage and margin mix (Mishal & Weinshall, "DCoM: Active Learning for All Learners", arXiv 2407.01804)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alenv import coverage
from alenv.ops import top_two
from alenv.round import Round
from alenv.strategy import Strategy


class DCoM(Strategy):
    """Buy the highest S (1 - margin) + (1 - S) (uncovered candidates in the ball), both scaled to [0, 1], one after the other.

    Each labelled example i has its own radius: the largest delta_i <= max_delta at which a share `purity` of the points in its
    ball are predicted to be of its class, with purity = 0.4 + 0.2 (share of points in balls of radius `delta`). A point is
    covered in a ball of a labelled example or, of the mean radius, of a pick. Competence S rises with the covered share c:
    S = (1 + exp(-k (1 - a))) / (1 + exp(-k (c - a))). Features are scaled to length 1, ties fall by lot. O(U^2 D + (L + B) U D),
    memory O(U^2 / 512) beside the features.

    The authors give a radius to each new label and keep it for good, starting from `delta`; a round here remembers no other, so
    all radii are found anew with the present model, as the authors find the first ones. They search a radius by bisection, though
    purity need not fall with it; here it is the largest of a grid of the same step.

    Args:
        features: "embeddings", or the name of a feature provider.
        delta: radius to start from, between features of length 1.
        max_delta: largest radius.
        resolution: step between radii; an example with no pure ball has this radius.
        k: steepness of the competence.
        a: covered share at which half the weight goes to the margin.
    """

    family = "hybrid"

    def __init__(
        self, features: str = "embeddings", delta: float = 0.6, max_delta: float = 1.1, resolution: float = 0.05,
        k: float = 50.0, a: float = 0.8,
    ) -> None:  # fmt: skip
        if not (0 < resolution <= max_delta and delta > 0):
            raise ValueError(f"dcom: expected delta > 0 and 0 < resolution <= max_delta, got {delta}, {resolution}, {max_delta}")
        self.features, self.delta, self.max_delta, self.resolution = features, delta, max_delta, resolution
        self.k, self.a = k, a
        self.needs = coverage.feature_needs(features) | {"probs", "labels", "labeled_embeddings", "head"}

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return positions in the order bought."""
        mine, labeled = coverage.unit_features(round, self.features)
        everyone, generator = torch.cat([mine, labeled]), round.generator("dcom")
        radii, mean = torch.full((len(labeled),), self.delta, device=mine.device), self.delta
        if len(labeled):
            weight, bias = round.head
            predicted = torch.cat([round.probs.argmax(1), (round.labeled_embeddings @ weight.T + bias).argmax(1)])
            purity = 0.4 + 0.2 * float(coverage.covered(everyone, labeled, radii).float().mean())
            radii = self.radii(everyone, predicted, labeled, round.labels, purity)
            mean = float(radii.mean())
        covered = coverage.covered(everyone, labeled, radii)
        competence = self.competence(float(covered.float().mean()))
        first, second = top_two(round.probs)
        unsure = competence * _scaled(second - first)
        order = coverage.near_together(mine, generator)
        unsure, open_ = unsure[order], ~covered[order]
        cover = coverage.Coverage(mine[order], mine[:0], mean, coverage.ball, open_.to(mine.dtype))
        return order[cover.take(budget, generator, lambda gain: unsure + (1 - competence) * _scaled(gain))]

    def competence(self, covered: float) -> float:
        """Return S at a covered share, in [0, 1]."""
        return (1 + math.exp(-self.k * (1 - self.a))) / (1 + math.exp(-self.k * (covered - self.a)))

    def radii(
        self, x: Float[Tensor, "n D"], predicted: Int[Tensor, " n"], labeled: Float[Tensor, "l D"], labels: Int[Tensor, " l"],
        purity: float,
    ) -> Float[Tensor, " l"]:  # fmt: skip
        """Return, for each labelled example, the largest radius of the grid at which its ball is pure enough."""
        steps = int(self.max_delta / self.resolution + 1e-6)
        counts = x.new_zeros(2, len(labeled), steps + 1)
        for rows, some, squared in coverage.squared_distances(x, labeled):
            step = (squared.sqrt_() / self.resolution).long().clamp_(max=steps)
            same = (predicted[rows] == labels[some, None]).to(x.dtype)
            counts[0, some].scatter_add_(1, step, torch.ones_like(same))
            counts[1, some].scatter_add_(1, step, same)
        size, pure = counts[:, :, :steps].cumsum(2)
        enough = (size > 0) & (pure >= purity * size)
        best = (enough * torch.arange(1, steps + 1, device=x.device)).amax(1).clamp_(min=1)
        return best.to(x.dtype) * self.resolution


def _scaled(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return values moved and scaled to [0, 1]; 0 where all are equal."""
    low, high = values.aminmax()
    return (values - low) / (high - low).clamp(min=torch.finfo(values.dtype).tiny)
