"""REXP4: Pang, Dong, Wu & Hospedales, "Dynamic ensemble active learning" (DEAL), ICPR 2018, arXiv 1810.07778."""

import torch
from jaxtyping import Float
from torch import Tensor

from alenv import bandits
from alenv.ballot import Ballot


class RExp4(bandits.ExpertBandit):
    """EXP4 that forgets: the best criterion drifts within one campaign, so weights start again every `period` rounds.

    Advice by rank, a_k(i) proportional to exp(beta exp(-alpha rank_k(i))); otherwise `alenv.bandits.ExpertBandit`.

    Deviations: n counts the effective pool. With the whole pool, as published code has it, the exponent gamma / n is so small
    that nothing is learned between two restarts. The default reward is the base learner's improvement, scaled to [0, 1].

    Args:
        gamma: share of exploration.
        period: rounds between restarts; None for never, which is EXP4.
        alpha: of the rank, see above.
        beta: of the advice, see above.
        depth: wishes each strategy is asked for at least; the advice is flat beyond.
    """

    reward = "normalized_gain"

    def __init__(
        self, gamma: float = 0.1, period: int | None = 10, alpha: float = 0.1, beta: float = 10.0, depth: int = 50
    ) -> None:
        if not 0 < gamma <= 1:
            raise ValueError(f"rexp4: expected gamma in (0, 1], got {gamma}")
        if period is not None and period < 1:
            raise ValueError(f"rexp4: expected a period of at least one round (or null for none), got {period}")
        self.gamma, self.period, self.decay, self.beta, self.depth = gamma, period, alpha, beta, depth

    def advise(self, ballot: Ballot) -> Float[Tensor, "K U"]:
        """Return the laws of the ranks."""
        return bandits.rank_advice(ballot, max(ballot.budget, self.depth), self.decay, self.beta)

    def learn(self, gains: Float[Tensor, " K"], rate: float, round: int) -> None:
        """Update, and start again after every `period` rounds."""
        super().learn(gains, rate, round)
        if self.period is not None and round % self.period == 0:
            self.log_weights = torch.zeros_like(self.log_weights)
