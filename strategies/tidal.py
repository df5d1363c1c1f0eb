"""TiDAL (Kye, Choi, Byun & Chang, "TiDAL: Learning Training Dynamics for Active Learning", ICCV 2023, arXiv 2210.06788)."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from alenv import ops
from alenv.heads import Head, HeadBatch, StageHead
from alenv.round import Round
from alenv.strategy import ScoreStrategy


class TiDAL(ScoreStrategy):
    """Score the uncertainty of predicted training dynamics q(x), an extra head's guess of p(x) averaged over training. O(U C).

    While the model trains, its probabilities of each labelled example are averaged over the epochs; the head, with C outputs,
    learns those averages by KL divergence and is asked about the candidates. State O(L C), dropped after training.

    A model fitted to its optimum in one go (net=linear) has no dynamics: the head then learns its final probabilities.

    Args:
        mode: "entropy" scores H(q(x)); "aum" scores the negative margin max_{c != y} q_c - q_y at the task model's own
            prediction y (area under the margin).
        weight: of the head's loss beside the model's own.
        width: units per stage.
    """

    pointwise = True
    family = "uncertainty"

    def __init__(self, mode: Literal["entropy", "aum"] = "entropy", weight: float = 1.0, width: int = 128) -> None:
        if mode not in ("entropy", "aum"):
            raise ValueError(f"tidal: expected mode=entropy or mode=aum, got '{mode}'")
        self.mode, self.weight, self.width = mode, weight, width
        self.needs = frozenset({"aux:dynamics"} | ({"logits"} if mode == "aum" else set()))

    def heads(self) -> tuple[Head, ...]:
        """Return the head that learns the averages."""
        return (Head("dynamics", self._build, self._loss, parameters=(self.weight, self.width)),)

    def _build(self, shapes: Sequence[Sequence[int]], classes: int, examples: int) -> "DynamicsHead":
        return DynamicsHead(shapes, classes, examples, self.width)

    def _loss(self, batch: HeadBatch) -> Float[Tensor, ""]:
        assert isinstance(batch.module, DynamicsHead)
        kept = batch.module.average
        average = kept[batch.rows].lerp(batch.logits.softmax(1), 1 / (batch.epoch + 1))
        kept[batch.rows] = average
        return self.weight * F.kl_div(batch.outputs.log_softmax(1), average, reduction="batchmean")

    def score(self, round: Round) -> Float[Tensor, " U"]:
        """Return entropies in nats, in [0, log C], or negative margins, in [-1, 1]."""
        dynamics = round.aux["dynamics"].softmax(1)
        if self.mode == "entropy":
            return ops.entropy(dynamics)
        own = round.logits.argmax(1, keepdim=True)
        other = dynamics.scatter(1, own, -torch.inf).max(1).values
        return other - dynamics.gather(1, own).squeeze(1)


class DynamicsHead(StageHead):
    """A head of C outputs that remembers the average probabilities of each training example."""

    average: Tensor

    def __init__(self, shapes: Sequence[Sequence[int]], classes: int, examples: int, width: int) -> None:
        super().__init__(shapes, classes, width)
        self.register_buffer("average", torch.zeros(examples, classes), persistent=False)
