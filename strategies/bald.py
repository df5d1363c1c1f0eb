"""BALD (Houlsby et al., arXiv 1112.5745, 2011; Gal, Islam & Ghahramani, "Deep Bayesian Active Learning", ICML 2017)."""

from jaxtyping import Float
from torch import Tensor

from alenv import ops
from alenv.round import Round
from alenv.strategy import ScoreStrategy


class BALD(ScoreStrategy):
    """Score H(mean_t p_t) - mean_t H(p_t): the mutual information of label and model. O(T U C), T U C of one block in memory."""

    family = "bayesian"
    needs = frozenset({"mc_probs"})
    pointwise = True

    def score(self, round: Round) -> Float[Tensor, " U"]:
        """Return mutual information in nats, in [0, log C]."""
        return ops.mutual_information(round.mc_probs)
