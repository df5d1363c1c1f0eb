"""Variation ratio (Freeman 1965; Gal, Islam & Ghahramani, "Deep Bayesian Active Learning", ICML 2017)."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from alenv.round import Round
from alenv.strategy import ScoreStrategy


class VariationRatio(ScoreStrategy):
    """Score 1 - (votes for the modal class) / T over T stochastic passes, each voting for its argmax. O(T U C).

    Args:
        mode: "vote" is the paper's. "single" is what several published libraries compute, 1 - max_c p_c of one
            deterministic pass: it ranks exactly like least confidence.
    """

    family = "bayesian"
    pointwise = True

    def __init__(self, mode: Literal["vote", "single"] = "vote") -> None:
        if mode not in ("vote", "single"):
            raise ValueError(f"variation_ratio: expected mode=vote or mode=single, got '{mode}'")
        self.mode = mode
        self.needs = frozenset({"mc_probs" if mode == "vote" else "probs"})

    def score(self, round: Round) -> Float[Tensor, " U"]:
        """Return the share of votes that went elsewhere, in [0, 1 - 1/min(T, C)]."""
        if self.mode == "single":
            return 1 - round.probs.amax(1)
        votes = round.mc_probs.argmax(2).T  # (U, T)
        counts = torch.zeros(len(votes), round.num_classes, device=votes.device)
        counts.scatter_add_(1, votes, torch.ones_like(votes, dtype=counts.dtype))
        return 1 - counts.max(1).values / votes.shape[1]
