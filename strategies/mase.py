"""MASE, margin selection (Emam et al., "Active Learning at the ImageNet Scale", arXiv 2111.12880, 2021)."""

import torch
from jaxtyping import Float
from torch import Tensor

from alenv.coverage import boundary_distances, class_nearness
from alenv.round import Round
from alenv.strategy import ScoreStrategy


class MASE(ScoreStrategy):
    """Score -min_c (l_y - l_c) / |W_y - W_c|: buy what lies nearest a decision boundary in the last layer's input space.

    y is the predicted class, l are logits, W the layer's weights. O(U C + C^2 D). Classes of equal weights have no boundary.
    """

    family = "uncertainty"
    needs = frozenset({"logits", "head"})

    def score(self, round: Round) -> Float[Tensor, " U"]:
        """Return negative distances, in the units of the embeddings."""
        weight = round.head[0]
        nearness = class_nearness(weight)
        blocks = round.blocks("logits")
        return -torch.cat([boundary_distances(block.logits, weight, nearness).amin(1) for block in blocks])
