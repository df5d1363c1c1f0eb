"""The greedy strategy oracle: what choosing a strategy could win if the next step were known; one batch per strategy of BoSS."""

import torch

from alenv.ballot import Ballot
from alenv.bandits import highest
from alenv.selector import Observation, Selector, merit


class StrategyOracle(Selector):
    """Buy, train and test with every strategy, take it all back, then do the best: an upper line, in simulation only.

    It reads hidden labels and the test split by design and is no method. S more trainings a round. A trial has the training
    randomness of what then happens, so the best one comes true. Ties fall by lot.

    Args:
        metric: on the test split; "nll" and "ece" count downwards.
    """

    action_kind = "pick"
    oracle = True

    def __init__(self, metric: str = "accuracy") -> None:
        self.metric = metric

    def act(self, observation: Observation, ballot: Ballot) -> int:
        """Return the strategy whose batch leads to the best model."""
        assert self.context.simulate is not None
        values = [merit(self.context.simulate(k), self.metric) for k in range(len(ballot.names))]
        generator = self.context.streams.on("cpu")("selector/strategy_oracle", ballot.round.index)
        return highest(torch.tensor(values, dtype=torch.float64), generator)
