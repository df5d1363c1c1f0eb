"""Least confidence (Lewis & Gale, "A Sequential Algorithm for Training Text Classifiers", SIGIR 1994)."""

from jaxtyping import Float
from torch import Tensor

from alenv.round import Round
from alenv.strategy import ScoreStrategy


class LeastConfidence(ScoreStrategy):
    """Score 1 - max_c p_c(x): buy where the likeliest class is least likely. O(U C)."""

    family = "uncertainty"
    needs = frozenset({"probs"})
    pointwise = True

    def score(self, round: Round) -> Float[Tensor, " U"]:
        """Return 1 - max_c p_c, in [0, 1 - 1/C]."""
        return 1 - round.probs.amax(1)
