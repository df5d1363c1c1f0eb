"""EXP3: Auer, Cesa-Bianchi, Freund & Schapire, "The nonstochastic multiarmed bandit problem", SIAM J. Computing 32, 2002."""

import torch
from jaxtyping import Float
from torch import Tensor

from alenv import bandits
from alenv.selector import Context


class Exp3(bandits.ArmBandit):
    """Draw one strategy a round by exponential weights; no assumption on how rewards come about.

    With K arms and weights w, arm i is drawn with p_i = (1 - gamma) w_i / sum w + gamma / K, and its reward r in [0, 1] updates
    w_i <- w_i exp(gamma r / (K p_i)).

    Args:
        gamma: share of exploration; None for the paper's min(1, sqrt(K ln K / ((e - 1) T))), T the rounds of the campaign
            (corollary 3.2). In a short campaign that is mostly exploration.
    """

    reward = "normalized_gain"
    learned = ("log_weights",)
    quality = "probability"

    def __init__(self, gamma: float | None = None) -> None:
        if gamma is not None and not 0 < gamma <= 1:
            raise ValueError(f"exp3: expected gamma in (0, 1], got {gamma}")
        self.gamma = gamma

    def begin(self, context: Context) -> None:
        """Start from equal weights."""
        super().begin(context)
        self.rate = self.gamma or bandits.exploration(self.arms, self.arms, context.plan.rounds)
        self.log_weights = torch.zeros(self.arms, dtype=torch.float64)

    def standing(self) -> Float[Tensor, " K"]:
        """Return p."""
        return bandits.smoothed(self.log_weights, self.rate)

    def pull(self, generator: torch.Generator) -> int:
        """Return an arm drawn from p."""
        return int(torch.multinomial(self.standing(), 1, generator=generator))

    def learn(self, arm: int, reward: float) -> None:
        """Raise the weight of `arm` by its importance-weighted reward."""
        self.log_weights = self.log_weights.clone()
        self.log_weights[arm] += self.rate * reward / (self.arms * float(self.standing()[arm]))
        self.log_weights -= self.log_weights.max()
