"""Core-set (Sener & Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018)."""

from typing import Literal

from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import normalize

from alenv import geometry
from alenv.round import Round
from alenv.strategy import Strategy


class Coreset(Strategy):
    """Buy the candidate farthest from everything labelled or bought before, B times: the k-centre greedy (algorithm 1).

    Without labels the first is the candidate nearest the mean. The picks are those of the plain greedy, found by stale bounds
    (`geometry.kcenter`). O(U (L + B) D) at worst, about O(U L D) as a rule, memory O(U). The paper's robust form, a mixed-integer
    programme that may leave outliers uncovered, is left out; it changes accuracy by little (section 5 of the paper).

    Args:
        metric: "euclidean" is the paper's; "cosine" scales all embeddings to length one first, on a copy.
    """

    family = "diversity"
    needs = frozenset({"embeddings", "labeled_embeddings"})

    def __init__(self, metric: Literal["euclidean", "cosine"] = "euclidean") -> None:
        if metric not in ("euclidean", "cosine"):
            raise ValueError(f"coreset: expected metric=euclidean or metric=cosine, got '{metric}'")
        self.metric = metric

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return positions in the order of the greedy."""
        mine, labeled = round.embeddings, round.labeled_embeddings
        if self.metric == "cosine":
            mine, labeled = normalize(mine), normalize(labeled)
        return geometry.kcenter(mine, budget, round.generator("coreset"), labeled)
