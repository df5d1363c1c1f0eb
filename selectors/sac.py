"""A policy over mixtures trained by soft actor-critic (Haarnoja et al., ICML 2018) over many campaigns, and frozen."""

import numpy as np
import numpy.typing as npt

from alenv import agents
from alenv.ballot import Ballot
from alenv.selector import Observation


class SAC(agents.AgentSelector):
    """Mix strategies by the mean of the learned policy, tanh(mean): weights are softmax(10 x action).

    The net treats all strategies alike, so it runs on any data set with any candidates; `python -m alenv.train_agent
    algorithm=sac` makes one. It runs frozen.

    Args:
        path: folder or .safetensors file of an agent; none comes with alenv.
    """

    action_kind = "mix"
    algorithms = ("sac",)

    def act(self, observation: Observation, ballot: Ballot) -> npt.NDArray[np.float32]:
        """Return the policy's mean action."""
        action = self.scores(observation, len(ballot.names))[:, 0].tanh()
        self._weights = (10 * action).softmax(0)
        return action.numpy()
