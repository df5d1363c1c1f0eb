"""EPIG (Bickford Smith et al., "Prediction-Oriented Bayesian Active Learning", AISTATS 2023, arXiv 2304.08151)."""

import torch
from jaxtyping import Float
from torch import Tensor

from alenv import ops
from alenv.round import Round
from alenv.strategy import ScoreStrategy


class EPIG(ScoreStrategy):
    """Score the mean over target inputs x* of I(y; y* | x, x*), what a label tells about labels elsewhere.

    Targets are candidates drawn uniformly: the pool stands for the inputs that will be asked about. The paper sums over all C^2
    pairs of labels; here a candidate's least likely labels count as one outcome, so a score is low by at most
    (1 - coverage) log T nats. O(K U T E C), K <= C labels a candidate and E targets; memory T E C, and T U C of one block.

    Args:
        targets: E.
        coverage: probability a candidate's own outcomes hold; 1 is the paper's sum.
    """

    family = "bayesian"
    needs = frozenset({"mc_probs"})

    def __init__(self, targets: int = 100, coverage: float = 0.99) -> None:
        self.targets, self.coverage = targets, coverage

    def score(self, round: Round) -> Float[Tensor, " U"]:
        """Return expected information gains in nats, in [0, log C]."""
        lot = torch.randperm(len(round), generator=round.generator("epig"), device=round.device)
        targets = round.subset(lot[: self.targets]).mc_probs
        changes = [
            ops.predictive_change(block.mc_probs, targets, coverage=self.coverage).mean(1) for block in round.blocks("mc_probs")
        ]
        return torch.cat(changes)
