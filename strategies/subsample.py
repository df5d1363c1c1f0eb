"""A uniform sub-pool before any strategy (Yoo & Kweon, "Learning Loss for Active Learning", CVPR 2019, section 4.1)."""

import torch
from jaxtyping import Int
from torch import Tensor

from alenv.round import Round
from alenv.strategy import Strategy, Wrapper, select_among


class Subsample(Wrapper):
    """Draw a sub-pool uniformly at random; another strategy buys from it.

    O(U) beside the cost of `inner` on max(size, B) candidates. Outputs of the task model are shared with all other strategies,
    so the pass over the whole pool stays; what is saved is the selection.

    Args:
        inner: the strategy that buys.
        size: candidates in the sub-pool; at least B.
    """

    def __init__(self, inner: Strategy, size: int = 2000) -> None:
        if size < 1:
            raise ValueError(f"subsample: expected size >= 1, got {size}")
        super().__init__(inner=inner)
        self.inner, self.size = inner, size

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return the inner strategy's picks from the sub-pool."""
        if max(self.size, budget) >= len(round):
            return self.inner.select(round, budget)
        lot = torch.randperm(len(round), generator=round.generator("subsample"), device=round.device)
        return select_among(self.inner, round, lot[: max(self.size, budget)].sort().values, budget)
