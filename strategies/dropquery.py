"""DropQuery (Gupte et al., "Revisiting Active Learning in the Era of Vision Foundation Models", TMLR 2024, arXiv 2401.14555)."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from alenv import geometry
from alenv.round import Round
from alenv.strategy import Strategy


class DropQuery(Strategy):
    """Buy one candidate per cluster among those whose prediction flips in more than half of M passes with dropped embeddings.

    Made for frozen features: each pass drops every component of every candidate's embedding independently. Candidates that flip
    are clustered into B clusters, and the one nearest each centre is bought; where fewer than B flip, others follow by lot.
    O(M U C D + iterations x U B D), memory one block.

    Args:
        passes: M.
        dropout: probability with which a component is dropped, in [0, 1).
        iterations: Lloyd steps at most.
    """

    needs = frozenset({"embeddings", "logits", "head"})
    family = "hybrid"

    def __init__(self, passes: int = 3, dropout: float = 0.75, iterations: int = 25) -> None:
        if not 0 <= dropout < 1:
            raise ValueError(f"dropquery: expected 0 <= dropout < 1, got {dropout}")
        self.passes, self.dropout, self.iterations = passes, dropout, iterations

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return one position per cluster of flipping candidates, larger clusters first."""
        generator = round.generator("dropquery")
        flips = self.flips(round, generator)
        return geometry.one_per_cluster(round.embeddings[flips], flips, budget, generator, self.iterations)

    def flips(self, round: Round, generator: torch.Generator) -> Bool[Tensor, " U"]:
        """Return who is predicted otherwise in more than half of the passes."""
        weight, bias = round.head
        own, keep = round.logits.argmax(1), 1 - self.dropout
        others = torch.zeros_like(own)
        rows = max(1, geometry.CHUNK_ELEMENTS // max(1, round.embeddings.shape[1]))
        for _ in range(self.passes):  # outside the blocks: their size then decides no draw
            for h, mine, count in zip(round.embeddings.split(rows), own.split(rows), others.split(rows), strict=True):
                kept = torch.rand(h.shape, generator=generator, device=h.device) < keep
                count += ((h * kept / keep) @ weight.T + bias).argmax(1) != mine
        return 2 * others > self.passes
