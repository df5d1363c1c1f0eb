"""How certain models are of the candidates: of one campaign, or of many with as many candidates in one pass."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from alenv.ops import NARROW, entropy, largest

IMPOSSIBLE = -1e4  # logits this far below the largest have probability 0 in every precision
PIECE_ELEMENTS = 2**18  # probabilities looked at together: 1 MB, which stays in the cache


class Certainty(NamedTuple):
    """What observations say of all candidates.

    Attributes:
        confidence: mean probability of the likeliest class.
        spread: standard deviation of that.
        margin: mean difference to the second likeliest.
        entropy: mean entropy over log C.
        balance: entropy of the predicted class proportions over log C.
    """

    confidence: float = 1.0
    spread: float = 0.0
    margin: float = 1.0
    entropy: float = 0.0
    balance: float = 0.0


class Beliefs(NamedTuple):
    """What M models believe of U candidates each.

    Attributes:
        top_two: probabilities of the likeliest class and of the second likeliest.
        entropies: nats.
        predictions: the likeliest class.
    """

    top_two: Float[Tensor, "M 2 U"]
    entropies: Float[Tensor, "M U"]
    predictions: Int[Tensor, "M U"]

    def certainties(self, num_classes: int) -> list[Certainty]:
        """Return what they come to, for each model."""
        first, second = self.top_two.unbind(1)
        # no sum has one result alone: that one would be divided among threads, and have other bits for one model than for many
        means = torch.stack([first, first - second, self.entropies], 1).mean(2)
        spread = (self.top_two - means[:, :1, None]).square().mean(2)[:, 0].sqrt()
        lanes = torch.arange(len(first), device=first.device).unsqueeze(1) * num_classes
        counts = torch.bincount((self.predictions + lanes).flatten(), minlength=len(first) * num_classes)
        shares = counts.view(-1, num_classes).double() / first.shape[1]
        unit = math.log(max(2, num_classes))
        rows = torch.stack([means[:, 0], spread, means[:, 1], means[:, 2] / unit], 1).double()
        balance = torch.special.entr(shares).cumsum(1)[:, -1:] / unit
        return [Certainty(*row) for row in torch.cat([rows, balance], 1).tolist()]


def believed(logits: Float[Tensor, "U C"], probs: Float[Tensor, "U C"], top_two: Float[Tensor, "2 U"]) -> Beliefs:
    """Return the beliefs of one model, given its probabilities."""
    if probs.shape[1] < NARROW:
        z, p = (part.T.contiguous().unsqueeze(0) for part in (logits, probs))
        return Beliefs(top_two.unsqueeze(0), _entropies(z, p, top_two[:1]), _first_two(p)[1])
    return Beliefs(top_two.unsqueeze(0), entropy(probs).unsqueeze(0), largest(probs.T)[1].unsqueeze(0))


def believed_by_many(
    logits: Sequence[Float[Tensor, "N C"]], candidates: Sequence[Int[Tensor, " U"]]
) -> Iterator[tuple[Float[Tensor, "2 U"], Certainty]]:
    """Return the likeliest two classes' probabilities and the certainty of models with as many candidates and few classes.

    The bits are those that `believed` has of each. Logits lie in memory class by class.
    """
    (size, classes), pad = (len(candidates[0]), logits[0].shape[1]), -len(candidates[0]) % 16
    lanes = max(1, PIECE_ELEMENTS // (max(1, size) * classes))
    columns = logits[0].new_empty(min(lanes, len(logits)), classes, size + pad)
    for start in range(0, len(logits), lanes):
        chosen = range(start, min(start + lanes, len(logits)))
        for into, place in zip(columns, chosen, strict=False):
            torch.index_select(logits[place].T, 1, F.pad(candidates[place], (0, pad)), out=into)
        probs = columns[: len(chosen)].softmax(1)
        top_two, predictions = _first_two(probs)
        entropies = _entropies(columns[: len(chosen)], probs, top_two[:, 0])
        beliefs = Beliefs(top_two[..., :size], entropies[:, :size], predictions[:, :size])
        yield from zip(beliefs.top_two, beliefs.certainties(classes), strict=True)


def _first_two(columns: Float[Tensor, "M C U"]) -> tuple[Float[Tensor, "M 2 U"], Int[Tensor, "M U"]]:
    """Return the two largest values, and the first class of the largest."""
    first, *rest = columns.unbind(1)
    first, second, which = first.clone(), torch.full_like(first, -torch.inf), torch.zeros_like(first)
    above, low = torch.empty_like(first), torch.empty_like(first)
    for place, column in enumerate(rest, 1):
        torch.gt(column, first, out=above)  # as float: two thirds faster than as bool
        torch.maximum(which, above.mul_(place), out=which)
        torch.maximum(second, torch.minimum(first, column, out=low), out=second)
        torch.maximum(first, column, out=first)
    return torch.stack([first, second], 1), which.long()


def _entropies(
    logits: Float[Tensor, "M C U"], probs: Float[Tensor, "M C U"], first: Float[Tensor, "M U"]
) -> Float[Tensor, "M U"]:
    """Return entropies in nats, -log p_1 - sum_c p_c (z_c - z_1): one logarithm a candidate.

    Summed class by class: a candidate's bits do not depend on its place. What is 0 is 0 log 0, of infinite logits too.
    """
    total = first.log()
    for term in (logits - logits.amax(1, keepdim=True)).clamp_(min=IMPOSSIBLE).mul_(probs).unbind(1):
        total += term
    return total.neg_()
