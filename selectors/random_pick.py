"""A strategy drawn uniformly in every round."""

import torch

from alenv.ballot import Ballot
from alenv.selector import Observation, Selector


class RandomPick(Selector):
    """Pick one of the candidates at random, all equally likely: the baseline of every learned pick."""

    action_kind = "pick"

    def act(self, observation: Observation, ballot: Ballot) -> int:
        """Return a uniformly drawn strategy."""
        generator = self.context.streams.on("cpu")("selector/random_pick", ballot.round.index)
        return int(torch.randint(len(ballot.names), (), generator=generator))
