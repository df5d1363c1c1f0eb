"""Entropy sampling (Shannon 1948; Settles, "Active Learning Literature Survey", 2009, section 3.1)."""

from jaxtyping import Float
from torch import Tensor

from alenv import ops
from alenv.round import Round
from alenv.strategy import ScoreStrategy


class Entropy(ScoreStrategy):
    """Score H(p(x)): buy where the predictive distribution is flattest. O(U C)."""

    family = "uncertainty"
    needs = frozenset({"probs"})
    pointwise = True

    def score(self, round: Round) -> Float[Tensor, " U"]:
        """Return entropies in nats, in [0, log C]."""
        return ops.entropy(round.probs)
