"""COMB: Baram, El-Yaniv & Luz, "Online choice of active learning algorithms", JMLR 5, 2004."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from alenv import bandits
from alenv.ballot import Ballot
from alenv.selector import Context


class Comb(bandits.ExpertBandit):
    """EXP4 over an effective pool, rewarded by the entropy of the classes the model predicts on the pool; no label is spared.

    Advice is a_k(i) proportional to exp(-beta (1 - score_k(i))), scores scaled to [0, 1]; otherwise `alenv.bandits.ExpertBandit`.
    gamma = sqrt(n ln K / ((e - 1) g_max)) is found by doubling: in stage s = 0, 1, ... the gain to come is guessed as g_max =
    4^s n ln K / (e - 1), so gamma = 2^-s, and a stage ends when some expert's estimated gain exceeds g_max - n / gamma. A new
    stage starts from equal weights, as EXP3.1 (Auer et al. 2002) does, from which the device is taken.

    Deviations: the effective pool holds at least a batch. The reward (`entropy_gain`) measures entropies in units of log C, for
    any number of classes; it misleads by construction where classes are unbalanced.

    Args:
        beta: of the advice.
        alpha: advice that makes a candidate part of the effective pool.
    """

    reward = "entropy_gain"
    learned = ("log_weights", "gains", "stage")

    def __init__(self, beta: float = 100.0, alpha: float = 0.05) -> None:
        if beta <= 0 or not 0 < alpha <= 1:
            raise ValueError(f"comb: expected beta > 0 and alpha in (0, 1], got beta={beta}, alpha={alpha}")
        self.beta, self.alpha = beta, alpha

    def begin(self, context: Context) -> None:
        """Start from equal weights in stage 0."""
        super().begin(context)
        self.gains = torch.zeros(self.experts, dtype=torch.float64)
        self.stage = torch.zeros((), dtype=torch.int64)

    def advise(self, ballot: Ballot) -> Float[Tensor, "K U"]:
        """Return the laws of the scores."""
        return bandits.score_advice(ballot, self.beta)

    def explore(self, arms: int) -> float:
        """Return gamma of the current stage, after closing those whose guess is exceeded; 0 for a single expert."""
        if self.experts == 1:
            return 0.0
        while float(self.gains.max()) > arms * (
            4.0 ** int(self.stage) * math.log(self.experts) / (math.e - 1) - 2.0 ** int(self.stage)
        ):
            self.stage = self.stage + 1
            self.log_weights = torch.zeros_like(self.log_weights)
        return 0.5 ** int(self.stage)

    def learn(self, gains: Float[Tensor, " K"], rate: float, round: int) -> None:
        """Update, and count the estimated gains."""
        super().learn(gains, rate, round)
        self.gains = self.gains + gains
