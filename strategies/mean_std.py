"""Mean standard deviation (Kampffmeyer, Salberg & Jenssen, "Semantic Segmentation of Small Objects ...", CVPR workshops 2016)."""

import warnings

from jaxtyping import Float
from torch import Tensor

from alenv.round import Round
from alenv.strategy import ScoreStrategy


class MeanSTD(ScoreStrategy):
    """Score (1/C) sum_c std_t p_{t,c}(x) over T stochastic passes (population form). O(T U C)."""

    family = "bayesian"
    needs = frozenset({"mc_probs"})
    pointwise = True

    def score(self, round: Round) -> Float[Tensor, " U"]:
        """Return mean deviations, in [0, 1/2]."""
        spread = round.mc_probs - round.mc_probs[:1]  # from the first draw: identical draws then give 0 exactly
        variance = spread.square().mean(0) - spread.mean(0).square()  # torch.std over the first axis takes ten times as long
        score = variance.clamp_(min=0).sqrt_().mean(1)
        if len(score) and not bool(score.any()):
            warnings.warn("mean_std: no stochasticity, all draws are identical; candidates are bought by lot", stacklevel=2)
        return score
