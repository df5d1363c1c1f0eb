"""EntropyCB (Bengar, van de Weijer, Fuentes & Raducanu, "Class-Balanced Active Learning for Image Classification", WACV 2022)."""

from jaxtyping import Int
from torch import Tensor

from alenv import balance, ops
from alenv.round import Round
from alenv.strategy import Strategy


class EntropyCB(Strategy):
    """Buy the batch of largest total entropy, less `weight` for each label its expected classes miss an equal share by.

    Minimises sum_i -H(p_i) + weight |sum_i p_i - s|_1 over batches, s_c = max(0, floor((L + B) / C) - labels of class c).
    O(U C) a pricing of `balance.balanced_minimum`, memory U.

    The paper writes its own initial size (2 B) into the share; here it is the labels there are. Its integer program, solved by
    a commercial solver for up to 1,000 s, is solved by the linear relaxation, rounding and exchanges;
    `balance.balanced_minimum(...)` gives the objective and a bound no batch can beat.

    Args:
        weight: lambda, nats per missing label; the paper takes 0.6 for CIFAR-10, 2 for CIFAR-100, 3 for Tiny ImageNet.
    """

    family = "imbalance"
    needs = frozenset({"probs", "labels"})

    def __init__(self, weight: float = 1.0) -> None:
        if weight < 0:
            raise ValueError(f"entropy_cb: expected weight >= 0, got {weight}")
        self.weight = weight

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return the batch, the most wanted at its final prices first."""
        return self.solve(round, budget).picks

    def solve(self, round: Round, budget: int) -> balance.Balanced:
        """Return the batch with its objective and the bound that certifies it."""
        shortfall = ops.class_shortfall(round.labels, round.num_classes, budget)
        costs, generator = -ops.entropy(round.probs), round.generator("entropy_cb")
        return balance.balanced_minimum(costs, round.probs, shortfall.to(costs), self.weight, budget, generator)
