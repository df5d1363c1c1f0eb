"""Margin sampling (Scheffer, Decomain & Wrobel, "Active Hidden Markov Models", IDA 2001).

Also called "breaking ties" (Luo et al., JMLR 2005).
"""

from jaxtyping import Float
from torch import Tensor

from alenv.round import Round
from alenv.strategy import ScoreStrategy


class Margin(ScoreStrategy):
    """Score -(p_(1) - p_(2)): buy where the two likeliest classes are closest. O(U C)."""

    family = "uncertainty"
    needs = frozenset({"probs"})
    pointwise = True

    def score(self, round: Round) -> Float[Tensor, " U"]:
        """Return the negative margin, in [-1, 0]."""
        first, second = round.top_two
        return second - first
