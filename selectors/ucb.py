"""UCB1: Auer, Cesa-Bianchi & Fischer, "Finite-time analysis of the multiarmed bandit problem", Machine Learning 47, 2002."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from alenv import bandits
from alenv.selector import Context


class UCB(bandits.ArmBandit):
    """Pull each strategy once, then the one with the highest mean reward + exploration x sqrt(2 ln t / n).

    n counts the pulls of the arm, t those of all arms; rewards lie in [0, 1]. Ties fall by lot.

    Args:
        exploration: 1 is the paper's; smaller values trust the means of a short campaign sooner.
    """

    reward = "normalized_gain"
    learned = ("pulls", "sums")
    quality = "mean"

    def __init__(self, exploration: float = 1.0) -> None:
        if exploration < 0:
            raise ValueError(f"ucb: expected exploration >= 0, got {exploration}")
        self.exploration = exploration

    def begin(self, context: Context) -> None:
        """Forget all pulls."""
        super().begin(context)
        self.pulls = torch.zeros(self.arms, dtype=torch.float64)
        self.sums = torch.zeros(self.arms, dtype=torch.float64)

    def standing(self) -> Float[Tensor, " K"]:
        """Return the mean rewards, 0 where there are none."""
        return self.sums / self.pulls.clamp(min=1)

    def index(self) -> Float[Tensor, " K"]:
        """Return the upper confidence bounds, infinite where an arm was never pulled."""
        bonus = self.exploration * (2 * math.log(max(1.0, float(self.pulls.sum()))) / self.pulls).sqrt()
        return torch.where(self.pulls > 0, self.standing() + bonus, torch.inf)

    def pull(self, generator: torch.Generator) -> int:
        """Return the arm of the highest bound."""
        return bandits.highest(self.index(), generator)

    def learn(self, arm: int, reward: float) -> None:
        """Count the reward."""
        self.pulls[arm] += 1
        self.sums[arm] += reward
