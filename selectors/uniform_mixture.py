"""Equal shares for all candidates: the baseline of every learned mixture."""

import numpy as np
import numpy.typing as npt

from alenv.ballot import Ballot
from alenv.mixing import Mixing
from alenv.selector import Observation, Selector


class UniformMixture(Selector):
    """Give every candidate the same weight in every round.

    Args:
        mixing: "quota" splits the batch, "slots" draws a strategy per slot, "blend" averages scaled scores.
    """

    action_kind = "mix"

    def __init__(self, mixing: Mixing = "quota") -> None:
        self.mixing = mixing

    def act(self, observation: Observation, ballot: Ballot) -> npt.NDArray[np.float32]:
        """Return equal logits."""
        return np.zeros(len(ballot.names), np.float32)
