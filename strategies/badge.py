"""BADGE (Ash et al., "Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds", ICLR 2020)."""

from jaxtyping import Int
from torch import Tensor

from alenv import geometry
from alenv.gradients import pseudo_gradients
from alenv.round import Round
from alenv.strategy import Strategy, best_first


class Badge(Strategy):
    """Draw a batch by k-means++ from the gradients g(x) = (p - onehot(argmax p)) (x) [h(x), 1] of the last layer.

    The first pick has the largest norm; each next one is drawn in proportion to the squared distance to the nearest pick before.
    Once all distances are zero the rest is uniform. Distances come from the two factors; the law of one-by-one drawing is kept,
    yet most candidates are read once (`geometry.spread`). O(U B (C + D)) at worst, memory O(U) beside the factors.

    Args:
        bias: count the layer's bias among its parameters. The paper's layer has none: False is its printed form.
    """

    family = "hybrid"
    needs = frozenset({"probs", "embeddings"})

    def __init__(self, bias: bool = True) -> None:
        self.bias = bias

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return positions in the order drawn."""
        gradients, generator = pseudo_gradients(round, self.bias), round.generator("badge")
        return geometry.spread(gradients, budget, generator, best_first(gradients.norms, generator, 1))
