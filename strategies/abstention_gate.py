"""A gate for coin tosses (Zhu & Nowak, "Efficient Active Learning with Abstention", NeurIPS 2022)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alenv.round import Round
from alenv.strategy import Strategy, Wrapper, select_preferring


class AbstentionGate(Wrapper):
    """Do not buy what the model is sure to be a coin toss; another strategy buys among the rest.

    The paper asks for no label where the confidence interval of P(y = 1 | x) lies within [1/2 - gamma, 1/2 + gamma]: more data
    would not decide such a point. Here the T stochastic draws stand for the version space. With c and d the two likeliest
    classes of the mean prediction, the interval of the gap is [min_t, max_t] of p_t(c) - p_t(d), and the band is
    [-2 gamma, 2 gamma]: the paper's rule for C = 2. Gated candidates come last, so that the batch keeps its size.
    O(T U C), T U C of one block in memory, beside the cost of `inner`.

    Args:
        inner: the strategy that buys.
        gamma: half-width of the band of label noise, a probability in [0, 1/2].
    """

    def __init__(self, inner: Strategy, gamma: float = 0.05) -> None:
        if not 0 <= gamma <= 0.5:
            raise ValueError(f"abstention_gate: expected gamma in [0, 0.5], got {gamma}")
        super().__init__(inner=inner)
        self.inner, self.gamma = inner, gamma
        self.needs |= {"mc_probs"}

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return the inner strategy's picks among the candidates worth a label, then among the gated ones."""
        wanted = [~_within(block.mc_probs, 2 * self.gamma) for block in round.blocks("mc_probs")]
        return select_preferring(self.inner, round, torch.cat(wanted), budget)


def _within(draws: Float[Tensor, "T n C"], band: float) -> Bool[Tensor, " n"]:
    """Return where the gap of the two likeliest classes lies within +-band in every draw."""
    first, second = draws.mean(0).topk(2).indices.unsqueeze(0).expand(len(draws), -1, -1).unsqueeze(-1).unbind(2)
    return ((draws.gather(2, first) - draws.gather(2, second)).squeeze(2).abs() <= band).all(0)
