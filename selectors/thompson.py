"""Thompson sampling: Thompson 1933; for rewards in [0, 1] Agrawal & Goyal, COLT 2012; with a discount Raj & Kalyani 2017."""

import torch
from jaxtyping import Float
from torch import Tensor

from alenv import bandits
from alenv.selector import Context


class Thompson(bandits.ArmBandit):
    """Draw a mean for each strategy from its Beta posterior and pull the strategy of the highest.

    A reward r in [0, 1] counts as r successes and 1 - r failures. Deviation: Agrawal & Goyal toss a coin of probability r; the
    fraction has the same mean and spares a short campaign the noise.

    Args:
        prior: successes and failures of every strategy beforehand.
        discount: of all counts in every round; below 1 the past fades, for campaigns in which the best strategy changes.
    """

    reward = "normalized_gain"
    learned = ("counts",)
    quality = "mean"

    def __init__(self, prior: float = 1.0, discount: float = 1.0) -> None:
        if prior <= 0 or not 0 < discount <= 1:
            raise ValueError(f"thompson: expected prior > 0 and discount in (0, 1], got prior={prior}, discount={discount}")
        self.prior, self.discount = prior, discount

    def begin(self, context: Context) -> None:
        """Forget all rewards."""
        super().begin(context)
        self.counts = torch.zeros(self.arms, 2, dtype=torch.float64)  # successes, failures

    def standing(self) -> Float[Tensor, " K"]:
        """Return the posterior means."""
        posterior = self.counts + self.prior
        return posterior[:, 0] / posterior.sum(1)

    def pull(self, generator: torch.Generator) -> int:
        """Return the arm of the highest draw."""
        return int(bandits.dirichlet(self.counts + self.prior, generator)[:, 0].argmax())

    def learn(self, arm: int, reward: float) -> None:
        """Fade the past and count the reward."""
        if not 0 <= reward <= 1:
            raise ValueError(f"thompson: expected a reward in [0, 1], got {reward}; use reward=normalized_gain or entropy_gain")
        self.counts = self.discount * self.counts
        self.counts[arm] += torch.tensor([reward, 1 - reward], dtype=torch.float64)
