"""k-means sampling: one candidate near each of B cluster centres (AutoAL's KMeans candidate, arXiv 2410.13853)."""

from jaxtyping import Int
from torch import Tensor

from alenv import geometry
from alenv.round import Round
from alenv.strategy import Strategy


class KMeans(Strategy):
    """Cluster the candidates' embeddings into B clusters; buy the candidate nearest each centre, larger clusters first.

    O(iterations x U B D), memory one block of distances.

    Args:
        iterations: Lloyd steps at most.
    """

    family = "diversity"
    needs = frozenset({"embeddings"})

    def __init__(self, iterations: int = 25) -> None:
        self.iterations = iterations

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return one position per cluster."""
        generator = round.generator("kmeans")
        _, cluster, distance = geometry.kmeans(round.embeddings, budget, generator, self.iterations)
        return geometry.representatives(cluster, distance, budget, generator)
