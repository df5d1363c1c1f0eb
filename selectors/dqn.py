"""A deep Q-network (Mnih et al., Nature 2015) trained over many campaigns, and frozen; LAL-RL's learner, over strategies."""

from alenv import agents


class DQN(agents.PickingSelector):
    """Pick the strategy of the highest learned value.

    The net treats all strategies alike, so it runs on any data set with any candidates; `python -m alenv.train_agent
    algorithm=dqn` makes one. It runs frozen.

    Args:
        path: folder or .safetensors file of an agent; none comes with alenv.
    """

    algorithms = ("dqn",)
