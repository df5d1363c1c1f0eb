"""BASE, balanced selection (Emam et al., "Active Learning at the ImageNet Scale", arXiv 2111.12880, 2021)."""

import torch
from jaxtyping import Int
from torch import Tensor

from alenv.coverage import boundary_distances
from alenv.round import Round
from alenv.strategy import Strategy, best_first


class BASE(Strategy):
    """Buy, for each class, the B / C candidates nearest its decision boundary in the last layer's input space.

    The distance of x to class c is (l_y - l_c) / |W_y - W_c|, with y the predicted class, l logits and W the layer's weights; to
    its own class y it is the smallest of the others, as in MASE. Classes choose one after the other among what is left, in an
    order drawn by lot, and a remainder of B falls to the first ones (the authors go by the number of the class); a batch
    holds the nearest of every class first. O(U C + C^2 D). Classes of equal weights have no boundary between them.
    """

    family = "imbalance"
    needs = frozenset({"logits", "head"})

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return the best of each class, then their second ones, and so on."""
        generator, classes = round.generator("base"), round.num_classes
        distances = torch.cat([_distances(block) for block in round.blocks("logits")])
        left = torch.ones(len(round), dtype=torch.bool, device=round.device)
        picks, ranks = [], []
        for turn, c in enumerate(torch.randperm(classes, generator=generator, device=round.device).tolist()):
            free = torch.nonzero(left).flatten()
            quota = budget // classes + (turn < budget % classes)
            chosen = free[best_first(-distances[free, c], generator, quota)]
            left[chosen] = False
            picks.append(chosen)
            ranks.append(torch.arange(len(chosen), device=round.device))
        return torch.cat(picks)[torch.sort(torch.cat(ranks), stable=True).indices]


def _distances(round: Round) -> Tensor:
    """Return (U, C) distances to the boundary of each class, that of the predicted one included."""
    distances = boundary_distances(round.logits, round.head[0])
    predicted = round.logits.argmax(1, keepdim=True)
    return distances.scatter_(1, predicted, distances.amin(1, keepdim=True))
