"""A policy trained by proximal policy optimisation (Schulman et al., arXiv 1707.06347) over many campaigns, and frozen."""

import torch
from jaxtyping import Float
from torch import Tensor

from alenv import agents


class PPO(agents.PickingSelector):
    """Pick the strategy that the policy finds likeliest to pay.

    The policy is a net that treats all strategies alike, so it runs on any data set with any candidates; `python -m
    alenv.train_agent` makes one. It runs frozen. Also runs what algorithm=maskable_ppo and algorithm=imitation trained.

    Args:
        path: folder or .safetensors file of an agent; None for the one that comes with alenv (trained by algorithm=imitation,
            which transfers better: `benchmarks/results/transfer.md`).
        sample: draw a strategy from the policy, as in training, instead of taking the likeliest.
    """

    algorithms = ("ppo", "maskable_ppo", "imitation")

    def __init__(self, path: str | None = None, sample: bool = False) -> None:
        super().__init__(path)
        self.sample = sample

    def weights(self, scores: Float[Tensor, " S"]) -> Float[Tensor, " S"]:
        """Return the probabilities."""
        return scores.softmax(0)

    def choice(self, scores: Float[Tensor, " S"], generator: torch.Generator) -> int:
        """Return the likeliest strategy, or one drawn."""
        return (
            int(torch.multinomial(scores.softmax(0), 1, generator=generator))
            if self.sample
            else super().choice(scores, generator)
        )
