"""EXP4: Auer, Cesa-Bianchi, Freund & Schapire, "The nonstochastic multiarmed bandit problem", SIAM J. Computing 32, 2002."""

from jaxtyping import Float
from torch import Tensor

from alenv import bandits
from alenv.ballot import Ballot


class Exp4(bandits.ExpertBandit):
    """Draw samples from a mixture of the strategies' advice and weigh the strategies by what their samples brought.

    The update is that of `alenv.bandits.ExpertBandit`. Strategies advise by rank: a_k(i) proportional to exp(beta exp(-alpha
    rank_k(i))), as DEAL does; each is asked for max(B, `depth`) wishes, beyond which the advice is flat anyway.

    Args:
        gamma: share of exploration. The paper's value for T purchases, sqrt(n ln K / ((e - 1) T)), nears 1 in campaigns of a few
            hundred purchases.
        alpha: of the rank, see above.
        beta: of the advice, see above.
        depth: wishes each strategy is asked for.
    """

    reward = "normalized_gain"

    def __init__(self, gamma: float = 0.1, alpha: float = 0.1, beta: float = 10.0, depth: int = 50) -> None:
        if not 0 < gamma <= 1:
            raise ValueError(f"exp4: expected gamma in (0, 1], got {gamma}")
        self.gamma, self.decay, self.beta, self.depth = gamma, alpha, beta, depth

    def advise(self, ballot: Ballot) -> Float[Tensor, "K U"]:
        """Return the laws of the ranks."""
        return bandits.rank_advice(ballot, max(ballot.budget, self.depth), self.decay, self.beta)
