"""The greedy sample oracle of CDALBench: Werner, Burchert, Stubbemann & Schmidt-Thieme, NeurIPS 2024 (Datasets & Benchmarks)."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from alenv.ballot import Ballot
from alenv.selector import Observation, Selector, merit
from alenv.strategy import best_first


class SampleOracle(Selector):
    """Try each of tau random candidates with its true label and buy what improves the test metric most: simulation only.

    It reads hidden labels and the test split by design: a reference line, no method. tau + 1 trainings a round. All trials share
    one training randomness, and gains are measured against a training without any of them. Where fewer than B candidates gain,
    the smallest margins among the tau fill the batch.

    The paper buys one sample a step; a batch takes the B largest gains, each tried alone. Deviation from its code for batches:
    positions among the tau are mapped back to the pool.

    Args:
        tau: candidates tried; at least B are.
        metric: on the test split; "nll" and "ece" count downwards.
    """

    action_kind = "sample_draw"
    oracle = True

    def __init__(self, tau: int = 20, metric: str = "accuracy") -> None:
        if tau < 1:
            raise ValueError(f"sample_oracle: expected tau >= 1, got {tau}")
        self.tau, self.metric = tau, metric
        self.candidates = ["margin"]

    def act(self, observation: Observation, ballot: Ballot) -> Any:
        """Return all mass on the batch."""
        round, simulate = ballot.round, self.context.simulate
        assert simulate is not None
        generator = round.generator("selector/sample_oracle")
        tried = torch.randperm(len(round), generator=generator, device=round.device)[: max(self.tau, ballot.budget)]
        now = merit(simulate(self._only(ballot, tried[:0]), 0), self.metric)
        values = [merit(simulate(self._only(ballot, one), 1), self.metric) for one in tried.split(1)]
        gains = torch.tensor(values, dtype=torch.float64, device=round.device) - now
        unsure = ballot.score("margin")[tried].double()  # in [0, 1]
        order = best_first(torch.where(gains > 0, 2 + gains / gains.abs().max().clamp(min=1e-300), unsure), generator)
        return self._only(ballot, tried[order[: ballot.budget]])

    def _only(self, ballot: Ballot, positions: Int[Tensor, " k"]) -> Any:
        """Return the action that buys `positions`."""
        action = torch.full((self.context.pool_size, len(ballot.names)), -1.0)
        action[ballot.round.candidates[positions].to(action.device)] = 1.0
        return action.numpy()
