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
    nearest neighbours among the cluster's candidates left. O(iterations x N K D) for K clusters, memory one block of distances.

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
        order = torch.sort(here, stable=True).indices
        members = order.split(torch.bincount(here, minlength=clusters).tolist())
        searched: dict[int, _Cluster] = {}
        left = torch.bincount(here, minlength=clusters)
        large = sizes > self.min_size
        picks: list[Tensor] = []
        while len(picks) < budget:
            open_ = (left > 0) & large if bool(((left > 0) & large).any()) else left > 0
            for c in _visits(counts, sizes, open_)[: budget - len(picks)]:
                if c not in searched:
                    spare = 1 + (budget - len(picks)) // clusters  # neighbours that later visits will have bought
                    searched[c] = _Cluster(mine[members[c]], self.neighbors, spare)
                pick = best_first(searched[c].typicality(), generator, 1)
                searched[c].remove(pick)
                left[c] -= 1
                picks.append(members[c][pick])
        return torch.cat(picks)

    def _features(self, round: Round) -> tuple[Float[Tensor, "U D"], Float[Tensor, "L D"]]:
        if self.features == "embeddings":
            return round.embeddings, round.labeled_embeddings
        found = round.features(self.features)
        return found.candidates, found.labeled


class _Cluster:
    """The candidates of a cluster and their neighbours, searched again only once too many of these are bought.

    Args:
        x: (n, D) the candidates.
        neighbors: neighbours that typicality is measured with, at most.
        spare: further ones to find.
    """

    def __init__(self, x: Float[Tensor, "n D"], neighbors: int, spare: int) -> None:
        self.x, self.neighbors, self.spare = x, neighbors, spare
        self.free = torch.ones(len(x), dtype=torch.bool, device=x.device)
        self.size = len(x)
        self._search()

    def _search(self) -> None:
        self.rows = torch.nonzero(self.free).flatten()
        count = min(len(self.rows) - 1, min(self.neighbors, len(self.rows) // 2) + self.spare)
        self.distance, which = geometry.neighbors(self.x[self.rows], count)
        self.which = self.rows[which]

    def typicality(self) -> Float[Tensor, " n"]:
        """Return 1 / mean distance to the nearest of those left, -inf for those that are not."""
        needed = min(self.neighbors, self.size // 2)
        typicality = self.distance.new_full((len(self.x),), -torch.inf)
        if needed == 0:
            return typicality.masked_fill_(self.free, 1.0)
        nth = self.free[self.which].cumsum(1)
        if bool((nth[self.free[self.rows], -1] < needed).any()):
            self._search()
            nth = self.free[self.which].cumsum(1)
        nearest = self.free[self.which] & (nth <= needed)
        mean = torch.where(nearest, self.distance, 0.0).sum(1) / needed
        typicality[self.rows] = 1 / (mean + 1e-5)
        return typicality.masked_fill_(~self.free, -torch.inf)

    def remove(self, pick: Int[Tensor, " 1"]) -> None:
        """Leave out who is bought."""
        self.free[pick] = False
        self.size -= 1


def _visits(counts: Int[Tensor, " K"], sizes: Int[Tensor, " K"], among: Tensor) -> list[int]:
    """Return the clusters in `among` by rising count of labels, then falling size."""
    which = torch.nonzero(among).flatten()
    which = which[torch.sort(sizes[which], descending=True, stable=True).indices]
    order: list[int] = which[torch.sort(counts[which], stable=True).indices].tolist()
    return order
