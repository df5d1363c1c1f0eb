"""FALCUN (Gilhuber, Beer, Ma & Seidl, "FALCUN: A Simple and Efficient Deep Active Learning Strategy", ECML-PKDD 2024)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alenv.ops import draw, mask_without, top_two
from alenv.round import Round
from alenv.strategy import Strategy


class Falcun(Strategy):
    """Draw candidates one after the other in proportion to (distance + uncertainty)^gamma, in the space of probabilities.

    Uncertainty is 1 - (p_(1) - p_(2)). The distance of a candidate is its smallest L1 distance to those drawn, at most its
    uncertainty, scaled to [0, 1] over the candidates left: at first both terms say the same, and the batch grows into diversity.
    O(B U C), memory U C.

    Args:
        gamma: exponent; larger is greedier, 0 is uniform.
    """

    family = "hybrid"
    needs = frozenset({"probs"})

    def __init__(self, gamma: float = 10.0) -> None:
        if gamma < 0:
            raise ValueError(f"falcun: expected gamma >= 0, got {gamma}")
        self.gamma = gamma

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return positions in the order they were drawn."""
        generator = round.generator("falcun")
        probs, uncertainty = round.probs, _uncertainty(round)
        distance, left = uncertainty, torch.ones_like(uncertainty, dtype=torch.bool)
        picks: list[Tensor] = []
        for _ in range(budget):
            pick = draw(self._mass(distance, uncertainty, left), generator)
            distance = torch.minimum(distance, torch.cdist(probs, probs[pick].unsqueeze(0), p=1).squeeze(1))
            left = left.index_fill(0, pick, False)
            picks.append(pick)
        return torch.stack(picks)

    def law(self, round: Round, taken: Int[Tensor, " t"]) -> Float[Tensor, " U"]:
        """Return the probabilities of the next draw."""
        uncertainty = distance = _uncertainty(round)
        for row in round.probs[taken]:
            distance = torch.minimum(distance, (round.probs - row).abs().sum(1))
        mass = self._mass(distance, uncertainty, mask_without(len(round), taken))
        return mass / mass.sum()

    def _mass(self, distance: Float[Tensor, " U"], uncertainty: Float[Tensor, " U"], left: Bool[Tensor, " U"]) -> Tensor:
        """Return what the next draw is in proportion to: positive for every candidate left, where any can be told apart."""
        low, high = distance.where(left, torch.inf).min(), distance.where(left, -torch.inf).max()
        relevance = (distance - low) / torch.where(high > low, high - low, 1.0) + uncertainty
        relevance = relevance.where(left, 0.0).double()
        largest = relevance.max()
        relevance = torch.where(largest > 0, relevance / largest, 1.0)  # none certain or apart: all alike
        return relevance.pow(self.gamma).where(left, 0.0)


def _uncertainty(round: Round) -> Float[Tensor, " U"]:
    first, second = top_two(round.probs)
    return 1 - (first - second)
