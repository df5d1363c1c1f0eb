"""CAL (Margatina et al., "Active Learning by Acquiring Contrastive Examples", EMNLP 2021, arXiv 2109.03764)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from alenv.geometry import CHUNK_ELEMENTS, squared_distances
from alenv.ops import entropy
from alenv.round import Round
from alenv.strategy import ScoreStrategy


class CAL(ScoreStrategy):
    """Score the mean of KL(p(x_l) || p(x)) over the 10 labelled examples x_l nearest to x: near ones, predicted differently.

    Distances are Euclidean between embeddings (the authors' code scales them to length 1, the paper does not say so); of labelled
    examples equally far, some are taken by lot. O(U L D + U C k), memory one block of distances.

    Args:
        neighbors: k; all of them where fewer are labelled.
    """

    family = "hybrid"
    needs = frozenset({"logits", "embeddings", "labeled_embeddings", "head"})
    pointwise = True

    def __init__(self, neighbors: int = 10) -> None:
        if neighbors < 1:
            raise ValueError(f"cal: expected neighbors >= 1, got {neighbors}")
        self.neighbors = neighbors

    def score(self, round: Round) -> Float[Tensor, " U"]:
        """Return mean divergences in nats; 0 while nothing is labelled."""
        h, (weight, bias) = round.labeled_embeddings, round.head
        if len(h) == 0:
            return torch.zeros(len(round), device=round.device)
        h = h[torch.randperm(len(h), generator=round.generator("cal"), device=h.device)]
        probs = (h @ weight.T + bias).softmax(1)
        near = self._nearest(round.embeddings, h)
        mean = F.embedding_bag(near, probs, mode="mean")  # (U, C)
        cross = torch.where(mean > 0, mean * round.logits.log_softmax(1), 0.0).sum(1)
        return -cross - entropy(probs)[near].mean(1)

    def _nearest(self, x: Float[Tensor, "U D"], h: Float[Tensor, "L D"]) -> Int[Tensor, "U k"]:
        k = min(self.neighbors, len(h))
        blocks = x.split(max(1, CHUNK_ELEMENTS // len(h)))
        return torch.cat([squared_distances(block, h).topk(k, largest=False).indices for block in blocks])
