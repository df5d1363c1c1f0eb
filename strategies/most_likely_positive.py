"""Most likely positives: an arm per class of TAILOR (Zhang, Shao, Verma & Nowak, NeurIPS 2023)."""

from jaxtyping import Float
from torch import Tensor

from alenv.round import Round
from alenv.strategy import ScoreStrategy


class MostLikelyPositive(ScoreStrategy):
    """Score p_target(x): buy what is most likely of one class, so that its labels become more. O(U).

    Args:
        target: number of the class, from 0.
    """

    family = "imbalance"
    needs = frozenset({"probs"})
    pointwise = True

    def __init__(self, target: int) -> None:
        if target < 0:
            raise ValueError(f"most_likely_positive: expected the number of a class, got {target}")
        self.target = target

    def score(self, round: Round) -> Float[Tensor, " U"]:
        """Return the probability of the class."""
        if self.target >= round.num_classes:
            raise ValueError(f"most_likely_positive: expected target in 0..{round.num_classes - 1}, got {self.target}")
        return round.probs[:, self.target]
