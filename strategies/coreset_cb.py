"""CoresetCB (Bengar, van de Weijer, Fuentes & Raducanu, "Class-Balanced Active Learning for Image Classification", WACV 2022)."""

import functools

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alenv import geometry, ops
from alenv.round import Round
from alenv.strategy import Strategy

PENDING = 128  # picks after which everybody's is


class CoresetCB(Strategy):
    """Buy greedily what is farthest from all labelled and bought, less weight / C times what the expected classes then miss.

    Each step takes the largest m(x) - (weight / C) |s - sum_bought p(z) - p(x)|_1: m is the Euclidean distance to the nearest
    labelled or bought embedding, s_c = max(0, floor((L + B) / C) - labels of class c).
    O((L + B) U D + B U C) at most, memory U beside the round's arrays.

    The picks are those of the plain greedy rule with less work: distances only shrink, so stale ones are upper bounds and only
    leaders are brought up to date. The paper writes its own initial size (2 B) into the share; here it is the labels there are.
    Without any, the first pick falls by lot.

    Args:
        weight: lambda, units of distance; the paper takes 5 for CIFAR-10, 50 for CIFAR-100.
    """

    family = "imbalance"
    needs = frozenset({"probs", "embeddings", "labels", "labeled_embeddings"})

    def __init__(self, weight: float = 20.0) -> None:
        if weight < 0:
            raise ValueError(f"coreset_cb: expected weight >= 0, got {weight}")
        self.weight = weight

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return positions in the order of the greedy steps."""
        x, probs, labeled = round.embeddings, round.probs, round.labeled_embeddings
        lot = torch.randperm(len(round), generator=round.generator("coreset_cb"), device=round.device)
        rest = ops.class_shortfall(round.labels, round.num_classes, budget).to(probs)
        distance = geometry.nearest(x, labeled)[0].sqrt() if len(labeled) else x.new_zeros(len(x))
        picks = torch.zeros(0, dtype=torch.int64, device=round.device)
        settled = 0  # picks that all distances know of
        while len(picks) < budget:
            # |R_c - p_c| moves all candidates alike while R_c is outside [0, 1]: the clamped sum ranks the same, and keeps digits
            missed = torch.cdist(probs, rest.clamp(0, 1).unsqueeze(0), p=1).squeeze(1)
            price = missed * (self.weight / round.num_classes)
            values = functools.partial(_true, x, x[picks[settled:]], distance, price)
            pick = ops.lazy_argmax(distance - price, values, lot)
            rest = rest - probs[pick]
            picks = torch.cat([picks, pick.view(1)])
            first = len(picks) == 1 and not len(labeled)
            if first or len(picks) - settled == PENDING:
                near = geometry.nearest(x, x[picks[settled:]])[0].sqrt()
                distance, settled = near if first else torch.minimum(distance, near), len(picks)
            distance = distance.index_fill(0, picks if first else pick.view(1), -torch.inf)
        return picks


def _true(
    x: Tensor, pending: Float[Tensor, "q D"], distance: Float[Tensor, " U"], price: Float[Tensor, " U"], rows: Tensor
) -> Tensor:
    """Return distance - price of some rows, whose distances are first brought up to date with `pending`."""
    if len(pending):
        distance[rows] = torch.minimum(distance[rows], geometry.nearest(x[rows], pending)[0].sqrt())
    return distance[rows] - price[rows]
