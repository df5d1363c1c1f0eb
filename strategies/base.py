"""BASE, balanced selection (Emam et al., "Active Learning at the ImageNet Scale", arXiv 2111.12880, 2021)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alenv.coverage import boundary_distances, class_nearness
from alenv.geometry import CHUNK_ELEMENTS
from alenv.round import Round
from alenv.strategy import Strategy

LOTS = 2**31  # more than candidates


class BASE(Strategy):
    """Buy, for each class, the B / C candidates nearest its decision boundary in the last layer's input space.

    The distance of x to class c is (l_y - l_c) / |W_y - W_c|, with y the predicted class, l logits and W the layer's weights; to
    its own class y it is the smallest of the others, as in MASE. Classes choose one after the other among what is left, in an
    order drawn by lot, and a remainder of B falls to the first ones (the authors go by the number of the class); a batch
    holds the nearest of every class first. O(U C + C^2 D), in memory for B candidates of each class. Classes of equal weights
    have no boundary between them.
    """

    family = "imbalance"
    needs = frozenset({"logits", "head"})

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return the best of each class, then their second ones, and so on."""
        generator, classes = round.generator("base"), round.num_classes
        order = torch.randperm(classes, generator=generator, device=round.device).tolist()
        nearest = _nearest(round, budget, generator)
        left = torch.ones(len(round), dtype=torch.bool, device=round.device)
        picks, ranks = [], []
        for turn, c in enumerate(order):
            quota = budget // classes + (turn < budget % classes)
            chosen = nearest[c][left[nearest[c]]][:quota]
            left[chosen] = False
            picks.append(chosen)
            ranks.append(torch.arange(len(chosen), device=round.device))
        return torch.cat(picks)[torch.sort(torch.cat(ranks), stable=True).indices]


def _nearest(round: Round, budget: int, generator: torch.Generator) -> Int[Tensor, "C B"]:
    """Return the candidates nearest the boundary of each class, equal ones by lot: a class never looks beyond so many.

    They are kept as integers of distance and lot, so that one selection over blocks of the pool settles both.
    """
    lot = torch.randperm(len(round), generator=generator, device=round.device)
    nearness, start = class_nearness(round.head[0]), 0
    found = [lot.new_empty(round.num_classes, 0)]
    for block in round.blocks("logits", size=max(1, CHUNK_ELEMENTS // (2 * round.num_classes))):
        bits = _distances(block, nearness).float().view(torch.int32).long()  # of numbers >= 0 they are in the same order
        found.append(bits.T * LOTS + lot[start : start + len(block)])
        start += len(block)
        if sum(part.shape[1] for part in found[1:]) >= budget or start == len(round):
            together = torch.cat(found, 1)
            found = [together.topk(min(budget, together.shape[1]), largest=False).values]
    return lot.argsort()[found[0] % LOTS]


def _distances(round: Round, nearness: Float[Tensor, "C C"]) -> Float[Tensor, "U C"]:
    """Return distances to the boundary of each class, that of the predicted one included."""
    distances = boundary_distances(round.logits, round.head[0], nearness)
    predicted = round.logits.argmax(1, keepdim=True)
    return distances.scatter_(1, predicted, distances.amin(1, keepdim=True))
