"""UHerding (Bae, Oliveira & Sutherland, "Uncertainty Herding: One Active Learning Method for All Label Budgets", ICLR 2025).

arXiv 2412.20644.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from alenv import coverage
from alenv.ops import top_two
from alenv.round import Round
from alenv.strategy import Strategy


class UncertaintyHerding(Strategy):
    """Buy, one after the other, the candidate that most raises sum_x u(x) max_{s in L u S} exp(-|x - s|^2 / sigma^2).

    u(x) = 1 - (p_(1) - p_(2)) of the logits divided by a temperature, and 1 while nothing is labelled: with few labels the rule
    is MaxHerding, with many it is margin sampling. Sigma is the smallest distance between two labelled examples (of length 1)
    that do not coincide. Ties fall by lot. O(U^2 D (1 + log(1 + B / L)) + L^2 D), memory O(U^2 / 512) beside the features. Of
    more than `candidates` (and 2 B) candidates a random part is herded, as in the authors' code.

    The paper finds the temperature on labels held out from a second training. A strategy trains nothing, so it is a parameter.

    Args:
        features: "embeddings", or the name of a feature provider.
        sigma: width of the kernel while fewer than two labelled examples differ.
        temperature: what logits are divided by.
        candidates: how many are herded at most.
    """

    family = "hybrid"

    def __init__(
        self, features: str = "embeddings", sigma: float = 1.0, temperature: float = 1.0, candidates: int = 35_000
    ) -> None:
        if not (sigma > 0 and temperature > 0):
            raise ValueError(f"uncertainty_herding: expected sigma and temperature > 0, got {sigma} and {temperature}")
        self.features, self.sigma, self.temperature, self.candidates = features, sigma, temperature, candidates
        self.needs = coverage.feature_needs(features) | {"logits"}

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return positions in the order the greedy cover takes them."""
        mine, labeled = coverage.unit_features(round, self.features)
        generator = round.generator("uncertainty_herding")
        part = torch.randperm(len(mine), generator=generator, device=mine.device)[: max(self.candidates, 2 * budget)]
        part = part[coverage.near_together(mine[part], generator)]
        first, second = top_two((round.logits[part] / self.temperature).softmax(1))
        uncertainty = 1 - (first - second) if len(labeled) else None
        sigma = coverage.smallest_gap(labeled) or self.sigma
        cover = coverage.Coverage(mine[part], labeled, sigma, coverage.gaussian, uncertainty)
        return part[cover.take(budget, generator)]
