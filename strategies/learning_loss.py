"""Learning loss (Yoo & Kweon, "Learning Loss for Active Learning", CVPR 2019, arXiv 1905.03677)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from alenv.heads import Head, HeadBatch, StageHead, ranking_loss
from alenv.round import Round
from alenv.strategy import ScoreStrategy, best_first


class LearningLoss(ScoreStrategy):
    """Score the loss that an extra head predicts: buy where the task model is expected to be most wrong. O(U) beside the pass.

    The head sees every stage of the model and learns, beside it, to rank the losses of pairs of examples. As a mere candidate
    it learns on detached features; trained jointly, it shapes them in the first 60 % of the epochs, as in the paper.

    Args:
        margin: by which predicted losses of a pair should differ.
        weight: of the ranking loss beside the model's own.
        width: units per stage.
        joint_until: share of the epochs after which a joint head sees detached features.
        subpool: candidates, drawn by lot, among which the batch is sought; the paper takes 10,000 for diversity. None: all.
    """

    needs = frozenset({"aux:loss"})
    pointwise = True
    family = "uncertainty"

    def __init__(
        self, margin: float = 1.0, weight: float = 1.0, width: int = 128, joint_until: float = 0.6, subpool: int | None = None
    ) -> None:
        self.margin, self.weight, self.width, self.joint_until, self.subpool = margin, weight, width, joint_until, subpool

    def heads(self) -> tuple[Head, ...]:
        """Return the loss-prediction head."""
        numbers = (self.margin, self.weight, self.width)
        return (Head("loss", lambda shapes, *_: StageHead(shapes, 1, self.width), self._loss, False, self.joint_until, numbers),)

    def _loss(self, batch: HeadBatch) -> Float[Tensor, ""]:
        true = F.cross_entropy(batch.logits, batch.targets, reduction="none")
        return self.weight * ranking_loss(batch.outputs.flatten(), true, self.margin)

    def score(self, round: Round) -> Float[Tensor, " U"]:
        """Return predicted losses; only their order means anything."""
        return round.aux["loss"].flatten()

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return the positions of the highest predicted losses within the sub-pool."""
        lot = torch.randperm(len(round), generator=round.generator("learning_loss/subpool"), device=round.device)
        lot = lot[: max(budget, self.subpool or len(round))]
        return lot[best_first(self.scores(round)[lot], round.generator("learning_loss/ties"), budget)]
