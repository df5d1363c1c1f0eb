"""Uniform random sampling: the baseline every other strategy has to beat."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alenv.round import Round
from alenv.strategy import Strategy


class Uniform(Strategy):
    """Buy candidates uniformly at random, without replacement. O(U)."""

    family = "baseline"
    needs = frozenset()

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return the first `budget` of a random permutation."""
        return torch.randperm(len(round), generator=round.generator("uniform"), device=round.device)[:budget]

    def law(self, round: Round, taken: Int[Tensor, " t"]) -> Float[Tensor, " U"]:
        """Return 1 / (candidates left) for each of them."""
        law = torch.ones(len(round), device=round.device)
        law[taken] = 0
        return law / law.sum()
