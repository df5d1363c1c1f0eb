"""PowerBALD (Kirsch et al., "Stochastic Batch Acquisition", arXiv 2106.12059, 2021; TMLR 2023)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alenv import ops
from alenv.round import Round
from alenv.strategy import Strategy, best_first


class PowerBALD(Strategy):
    """Draw candidates without replacement in proportion to BALD^beta: the top B of beta log s + Gumbel noise. O(T U C).

    Candidates of score 0 come last, by lot.

    Args:
        beta: 0 is uniform, infinity is BALD; the paper recommends 1.
    """

    family = "bayesian"
    needs = frozenset({"mc_probs"})

    def __init__(self, beta: float = 1.0) -> None:
        self.beta = beta

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return positions in the order they were drawn."""
        generator = round.generator("power_bald")
        log_mass = self._log_mass(round)
        return best_first(log_mass + ops.gumbel(log_mass, generator), generator, budget)

    def law(self, round: Round, taken: Int[Tensor, " t"]) -> Float[Tensor, " U"]:
        """Return s^beta over the candidates left, normalised."""
        return ops.law_of_rest(self._log_mass(round), taken)

    def _log_mass(self, round: Round) -> Float[Tensor, " U"]:
        return self.beta * torch.cat([ops.mutual_information(block.mc_probs) for block in round.blocks("mc_probs")]).log()
