"""Sliding-window UCB: Garivier & Moulines, "On upper-confidence bound policies for switching bandit problems", ALT 2011."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from alenv import bandits
from alenv.selector import Context


class SlidingWindowUCB(bandits.ArmBandit):
    """Pull the strategy with the highest mean + sqrt(xi ln(min(t, window)) / n), both counted over the last `window` rounds.

    Rewards lie in [0, 1]. An arm that has left the window is pulled again. Ties fall by lot.

    Args:
        window: in rounds; None for the paper's 2 sqrt(T ln T / changes), T the rounds of the campaign.
        xi: exploration; the paper's experiments take 0.6, its theorem more than 1/2.
        changes: how often the best strategy is expected to change; only for `window=None`.
    """

    reward = "normalized_gain"
    learned = ("pulled", "rewards")
    quality = "mean"

    def __init__(self, window: int | None = None, xi: float = 0.6, changes: int = 1) -> None:
        if (window is not None and window < 1) or xi < 0 or changes < 1:
            raise ValueError(f"sw_ucb: expected window >= 1, xi >= 0, changes >= 1, got {window}, {xi}, {changes}")
        self.window, self.xi, self.changes = window, xi, changes

    def begin(self, context: Context) -> None:
        """Forget all pulls."""
        super().begin(context)
        rounds = max(2, context.plan.rounds)
        self.span = self.window or math.ceil(2 * math.sqrt(rounds * math.log(rounds) / self.changes))
        self.pulled = torch.zeros(0, dtype=torch.int64)
        self.rewards = torch.zeros(0, dtype=torch.float64)

    def standing(self) -> Float[Tensor, " K"]:
        """Return the mean rewards within the window, 0 where there are none."""
        sums = torch.zeros(self.arms, dtype=torch.float64).index_add(0, self.pulled, self.rewards)
        return sums / self._pulls().clamp(min=1)

    def index(self) -> Float[Tensor, " K"]:
        """Return the upper confidence bounds, infinite for an arm outside the window."""
        pulls = self._pulls()
        bonus = (self.xi * math.log(max(1, len(self.pulled))) / pulls).sqrt()
        return torch.where(pulls > 0, self.standing() + bonus, torch.inf)

    def pull(self, generator: torch.Generator) -> int:
        """Return the arm of the highest bound."""
        return bandits.highest(self.index(), generator)

    def learn(self, arm: int, reward: float) -> None:
        """Add the reward to the window."""
        self.pulled = torch.cat([self.pulled, torch.tensor([arm])])[-self.span :]
        self.rewards = torch.cat([self.rewards, torch.tensor([reward], dtype=torch.float64)])[-self.span :]

    def _pulls(self) -> Float[Tensor, " K"]:
        return torch.bincount(self.pulled, minlength=self.arms).double()
