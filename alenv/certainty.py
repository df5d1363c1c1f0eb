"""How certain models are of the candidates: of one campaign, or of many with as many candidates in one pass."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, eq=False)
class Beliefs:
    """What M models believe of U candidates each.

    Attributes:
        table: probabilities of the likeliest class and of the second likeliest, entropies in nats, and the likeliest class.
    """

    table: Float[Tensor, "M 4 U"]

    @property
    def top_two(self) -> Float[Tensor, "M 2 U"]:
        """Probabilities of the likeliest class and of the second likeliest."""
        return self.table[:, :2]

    def some(self, lanes: Sequence[int], examples: Sequence[Int[Tensor, " u"]]) -> "Beliefs":
        """Return what some of the models believe of as many examples each."""
        given = self.table if len(lanes) == len(self.table) else self.table[list(lanes)]
        return Beliefs(given.gather(2, torch.stack(list(examples)).unsqueeze(1).expand(-1, 4, -1)))

    def certainties(self, num_classes: int) -> list[Certainty]:
        """Return what they come to, for each model."""
        many, _, count = self.table.shape
        # no sum has one result alone: that one would be divided among threads, and have other bits for one model than for many
        first, second, spread = self.table[:, :3].mean(2).unbind(1)
        deviation = (self.top_two - first[:, None, None]).square_().mean(2)[:, 0].sqrt()
        lanes = torch.arange(many, device=first.device).unsqueeze(1) * num_classes
        cells = self.table[:, 3].long().add_(lanes).flatten()
        shares = torch.bincount(cells, minlength=many * num_classes).view(many, num_classes).double() / count
        unit = math.log(max(2, num_classes))
        rows = torch.stack([first, deviation, first - second, spread / unit], 1).double()
        balance = torch.special.entr(shares).cumsum(1)[:, -1:] / unit
        return [Certainty(*row) for row in torch.cat([rows, balance], 1).tolist()]


def wide_beliefs(probs: Float[Tensor, "U C"], top_two: Float[Tensor, "2 U"]) -> Float[Tensor, "1 4 U"]:
    """Return the beliefs of one model, of many classes as a rule, given its probabilities."""
    which = likeliest(probs.T.unsqueeze(0))[1].to(probs.dtype)
    return torch.cat([top_two, entropy(probs).unsqueeze(0), which]).unsqueeze(0)


def narrow_beliefs(columns: Float[Tensor, "M C n"], out: Float[Tensor, "M 4 n"] | None = None) -> Float[Tensor, "M 4 n"]:
    """Return the beliefs of models of few classes, given finite logits z; an example's depend on no other, so pieces will do.

    With s_c = z_c - max z and S = sum_c e^(s_c), the likeliest class has probability 1 / S, and the entropy in nats is
    log S - sum_c e^(s_c) s_c / S.
    """
    many, _, count = columns.shape
    out = columns.new_empty(many, 4, count) if out is None else out
    shifted, mass, total = class_masses(columns)
    is_first = torch.eq(shifted, 0, out=torch.empty_like(shifted))  # as float, which takes a third of what bool takes
    spread = over_classes(torch.mul(shifted, mass, out=shifted))
    runner_up = torch.sub(mass, is_first, alpha=2, out=shifted).amax(1)
    tied = is_first.sum(1) > 1
    parts = 1 / total, torch.where(tied, 1.0, runner_up).div_(total), total.log() - spread.div_(total), _place(is_first)
    for row, part in zip(out.unbind(1), parts, strict=True):
        row.copy_(part[:, :count])
    return out


def likeliest(columns: Float[Tensor, "M C n"]) -> tuple[Float[Tensor, "M n"], Int[Tensor, "M n"]]:
    """Return the largest value over classes and the first class that has it; the last one where values are NaN."""
    if columns.shape[1] >= NARROW:
        highest, which = largest(columns)
        return highest, which.clamp_(max=columns.shape[1] - 1)  # NaN is nowhere the largest
    highest = columns.amax(1, keepdim=True)
    return highest.squeeze(1), _place(torch.eq(columns, highest, out=torch.empty_like(columns))).long()


def _place(is_first: Float[Tensor, "M C n"]) -> Float[Tensor, "M n"]:
    """Return the first class that is marked, of marks that are not needed any more; the last one where none is."""
    classes = is_first.shape[1]
    left = torch.arange(classes, 0, -1, dtype=is_first.dtype, device=is_first.device).unsqueeze(1)  # C for the first class
    return (classes - is_first.mul_(left).amax(1)).clamp_(max=classes - 1)
