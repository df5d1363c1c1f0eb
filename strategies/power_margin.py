"""Power margin (Kirsch et al., "Stochastic Batch Acquisition", arXiv 2106.12059, 2021; Bahri et al., arXiv 2210.03822, 2022)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alenv import ops
from alenv.round import Round
from alenv.strategy import Strategy, best_first


class PowerMargin(Strategy):
    """Draw candidates without replacement in proportion to s^beta, s = 1 - (p_(1) - p_(2)). O(U C).

    They are the top B of beta log s + Gumbel noise. Candidates of score 0 come last, by lot.

    Args:
        beta: 0 is uniform, infinity is margin sampling.
    """

    family = "uncertainty"
    needs = frozenset({"probs"})

    def __init__(self, beta: float = 1.0) -> None:
        self.beta = beta

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return positions in the order they were drawn."""
        generator = round.generator("power_margin")
        log_mass = self._log_mass(round)
        return best_first(log_mass + ops.gumbel(log_mass, generator), generator, budget)

    def law(self, round: Round, taken: Int[Tensor, " t"]) -> Float[Tensor, " U"]:
        """Return s^beta over the candidates left, normalised."""
        return ops.law_of_rest(self._log_mass(round), taken)

    def _log_mass(self, round: Round) -> Float[Tensor, " U"]:
        gaps = [first - second for first, second in (ops.top_two(block.probs) for block in round.blocks("probs"))]
        return self.beta * (1 - torch.cat(gaps)).clamp(min=0).log()
