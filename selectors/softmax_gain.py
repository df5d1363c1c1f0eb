"""Softmax of running gains: the gradient-free yardstick (Sutton & Barto, Reinforcement Learning, 2018, sections 2.3 and 2.5)."""

import torch
from jaxtyping import Float
from torch import Tensor

from alenv import bandits
from alenv.selector import Context


class SoftmaxGain(bandits.ArmBandit):
    """Draw a strategy with probability proportional to exp(value / temperature).

    The value of a strategy is a running mean of its rewards in [0, 1], value <- value + step (r - value), 1/2 at first; so the
    past fades at a constant rate.

    Args:
        step: weight of the newest reward.
        temperature: in units of reward; towards 0 the best value is always taken.
    """

    reward = "normalized_gain"
    learned = ("values",)
    quality = "probability"

    def __init__(self, step: float = 0.3, temperature: float = 0.1) -> None:
        if not 0 < step <= 1 or temperature <= 0:
            raise ValueError(
                f"softmax_gain: expected step in (0, 1], temperature > 0, got step={step}, temperature={temperature}"
            )
        self.step, self.temperature = step, temperature

    def begin(self, context: Context) -> None:
        """Start from equal values."""
        super().begin(context)
        self.values = torch.full((self.arms,), 0.5, dtype=torch.float64)

    def standing(self) -> Float[Tensor, " K"]:
        """Return the probabilities."""
        return (self.values / self.temperature).softmax(0)

    def pull(self, generator: torch.Generator) -> int:
        """Return an arm drawn from the probabilities."""
        return int(torch.multinomial(self.standing(), 1, generator=generator))

    def learn(self, arm: int, reward: float) -> None:
        """Move the value of `arm` towards the reward."""
        self.values[arm] += self.step * (reward - self.values[arm])
