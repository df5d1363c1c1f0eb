"""TypiClust (Hacohen, Dekel & Weinshall, "Active Learning on a Budget", ICML 2022, arXiv 2202.02794)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alenv import geometry
from alenv.round import Round
from alenv.strategy import Strategy, best_first


class TypiClust(Strategy):
    """Buy the most typical candidate of each cluster that has no label yet.

    Labelled and unlabelled features are clustered together into min(L + B, 500) clusters. Clusters are visited by rising number
    of labels, then falling size; each gives its candidate of highest typicality, 1 / mean distance to its min(20, size / 2)
    nearest neighbours among the cluster's candidates. O(iterations x N K D) for K clusters, memory one block of distances.

    The paper clusters self-supervised features; with a trained task model the embeddings are its own. Clusters of at most
    `min_size` members come only when the larger ones are used up, as in the authors' code.

    Args:
        features: "embeddings", or the name of a feature provider.
        max_clusters: upper bound on the number of clusters.
        neighbors: neighbours that typicality is measured with.
        min_size: size up to which a cluster counts as an outlier.
        iterations: Lloyd steps at most.
    """

    family = "diversity"

    def __init__(
        self, features: str = "embeddings", max_clusters: int = 500, neighbors: int = 20, min_size: int = 5, iterations: int = 25
    ) -> None:
        self.features, self.max_clusters, self.neighbors = features, max_clusters, neighbors
        self.min_size, self.iterations = min_size, iterations
        own = features == "embeddings"
        self.needs = frozenset({"embeddings", "labeled_embeddings"} if own else {f"features:{features}"})

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return one position per visited cluster, in the order of visits."""
        mine, labeled = self._features(round)
        generator = round.generator("typiclust")
        everyone = torch.cat([mine, labeled])
        clusters = min(len(labeled) + budget, self.max_clusters, len(everyone))
        _, cluster, _ = geometry.kmeans(everyone, clusters, generator, self.iterations)
        here, counts = cluster[: len(mine)], torch.bincount(cluster[len(mine) :], minlength=clusters)
        sizes = torch.bincount(cluster, minlength=clusters)
        free = torch.ones(len(mine), dtype=torch.bool, device=mine.device)
        picks: list[Tensor] = []
        large = sizes > self.min_size
        while len(picks) < budget:
            left = torch.bincount(here[free], minlength=clusters) > 0
            open_ = left & large if bool((left & large).any()) else left
            for c in _visits(counts, sizes, open_)[: budget - len(picks)]:
                members = torch.nonzero((here == c) & free).flatten()
                pick = members[best_first(self._typicality(mine[members]), generator, 1)]
                free[pick] = False
                picks.append(pick)
        return torch.cat(picks)

    def _features(self, round: Round) -> tuple[Float[Tensor, "U D"], Float[Tensor, "L D"]]:
        if self.features == "embeddings":
            return round.embeddings, round.labeled_embeddings
        found = round.features(self.features)
        return found.candidates, found.labeled

    def _typicality(self, x: Float[Tensor, "n D"]) -> Float[Tensor, " n"]:
        """Return 1 / mean distance to the nearest neighbours within `x`, the point itself left out."""
        neighbors = min(self.neighbors, len(x) // 2)
        if neighbors == 0:
            return torch.ones(len(x), device=x.device)
        distances = geometry.squared_distances(x, x).sqrt()
        distances.fill_diagonal_(torch.inf)
        return 1 / (distances.topk(neighbors, largest=False).values.mean(1) + 1e-5)


def _visits(counts: Int[Tensor, " K"], sizes: Int[Tensor, " K"], among: Tensor) -> list[int]:
    """Return the clusters in `among` by rising count of labels, then falling size."""
    which = torch.nonzero(among).flatten()
    which = which[torch.sort(sizes[which], descending=True, stable=True).indices]
    order: list[int] = which[torch.sort(counts[which], stable=True).indices].tolist()
    return order
