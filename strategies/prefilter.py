"""Pre-filtering by uncertainty (Zhdanov, "Diverse mini-batch Active Learning", arXiv 1901.05954, 2019)."""

from jaxtyping import Int
from torch import Tensor

from alenv.round import Round
from alenv.strategy import Strategy, Wrapper, select_among


class Prefilter(Wrapper):
    """Keep the factor x B candidates that one strategy would buy first; another strategy buys from them.

    O(1) beside the costs of `by` on the pool and of `inner` on factor x B candidates. The paper keeps the most uncertain ones and
    clusters them; here any two strategies combine.

    Args:
        by: the strategy that keeps.
        inner: the strategy that buys.
        factor: candidates kept per label bought; 10 in the paper.
    """

    def __init__(self, by: Strategy, inner: Strategy, factor: float = 10) -> None:
        if factor < 1:
            raise ValueError(f"prefilter: expected factor >= 1, got {factor}; fewer candidates than labels would be left")
        super().__init__(by=by, inner=inner)
        self.by, self.inner, self.factor = by, inner, factor

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return the inner strategy's picks from those kept."""
        kept = int(self.factor * budget)
        if kept >= len(round):
            return self.inner.select(round, budget)
        return select_among(self.inner, round, self.by.select(round, kept).sort().values, budget)
