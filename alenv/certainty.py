"""How certain models are of the candidates: of one campaign, or of many with as many candidates in one pass."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alenv.ops import NARROW, class_masses, entropy, largest, over_classes

LINE = 16  # examples are looked at in whole vectors: what is left over would take another path, with other bits


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

    def some(self, lanes: Sequence[int], examples: Sequence[Int[Tensor, " u"]]) -> "Beliefs":
        """Return what some of the models believe of as many examples each."""
        given = self if len(lanes) == len(self.entropies) else Beliefs(*(part[list(lanes)] for part in self))
        rows = torch.stack(list(examples))
        two = given.top_two.gather(2, rows.unsqueeze(1).expand(-1, 2, -1))
        return Beliefs(two, given.entropies.gather(1, rows), given.predictions.gather(1, rows))

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


def believed(probs: Float[Tensor, "U C"], top_two: Float[Tensor, "2 U"]) -> Beliefs:
    """Return the beliefs of one model, given its probabilities."""
    return Beliefs(top_two.unsqueeze(0), entropy(probs).unsqueeze(0), likeliest(probs.T.unsqueeze(0))[1])


def believed_by_many(columns: Float[Tensor, "M C n"]) -> Beliefs:
    """Return the beliefs of models of few classes, given finite logits z; an example's depend on no other, so pieces will do.

    With s_c = z_c - max z and S = sum_c e^(s_c), the likeliest class has probability 1 / S, and the entropy in nats is
    log S - sum_c e^(s_c) s_c / S.
    """
    shifted, mass, total = class_masses(columns)
    is_first = torch.eq(shifted, 0, out=torch.empty_like(shifted))  # as float, which takes a third of what bool takes
    spread = over_classes(torch.mul(shifted, mass, out=shifted))
    runner_up = torch.sub(mass, is_first, alpha=2, out=shifted).amax(1)
    two = torch.stack([torch.ones_like(runner_up), torch.where(is_first.sum(1) > 1, 1.0, runner_up)], 1) / total
    found = Beliefs(two, total.squeeze(1).log() - spread / total.squeeze(1), _place(is_first))
    return Beliefs(*(part[..., : columns.shape[2]] for part in found))


def likeliest(columns: Float[Tensor, "M C n"]) -> tuple[Float[Tensor, "M n"], Int[Tensor, "M n"]]:
    """Return the largest value over classes and the first class that has it; the last one where values are NaN."""
    if columns.shape[1] >= NARROW:
        highest, which = largest(columns)
        return highest, which.clamp_(max=columns.shape[1] - 1)  # NaN is nowhere the largest
    highest = columns.amax(1, keepdim=True)
    return highest.squeeze(1), _place(torch.eq(columns, highest, out=torch.empty_like(columns)))


def _place(is_first: Float[Tensor, "M C n"]) -> Int[Tensor, "M n"]:
    """Return the first class that is marked, of marks that are not needed any more."""
    classes = is_first.shape[1]
    left = torch.arange(classes, 0, -1, dtype=is_first.dtype, device=is_first.device).unsqueeze(1)  # C for the first class
    return (classes - is_first.mul_(left).amax(1)).long().clamp_(max=classes - 1)
