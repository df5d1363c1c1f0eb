"""The strategies' wishes in one round, each asked for once and only when somebody wants to know."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alenv.clock import Clock
from alenv.round import Round
from alenv.strategy import ScoreStrategy, Strategy, check_positions


class Ballot:
    """What every candidate strategy would buy. A strategy nobody asks about never runs.

    Args:
        round: the round they look at.
        strategies: S strategies by name; the order is the order of actions.
        budget: B, the default number of wishes.
        clock: notes the seconds spent in each strategy, as "select/<name>".
    """

    def __init__(self, round: Round, strategies: Mapping[str, Strategy], budget: int, clock: Clock | None = None) -> None:
        self.round, self.strategies, self.budget = round, dict(strategies), budget
        self._clock = clock or Clock()
        self._wishes: dict[tuple[str, int], Tensor] = {}
        self._scores: dict[str, Tensor] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the S strategies."""
        return tuple(self.strategies)

    @property
    def asked(self) -> tuple[str, ...]:
        """Names of the strategies that somebody has asked so far."""
        known = {name for name, _ in self._wishes} | self._scores.keys()
        return tuple(name for name in self.strategies if name in known)

    def wish(self, strategy: int | str, n: int | None = None) -> Int[Tensor, " n"]:
        """Return the positions that one strategy (number or name) would buy with a budget of `n` (default B), best first."""
        name = self._name(strategy)
        n = min(self.budget if n is None else n, len(self.round))
        if (name, n) not in self._wishes:
            with self._clock(f"select/{name}"):
                chosen = self.strategies[name]
                found = chosen.select(self.round, n)
                checked = isinstance(chosen, Strategy)  # what it selects, by its class
                self._wishes[name, n] = found if checked else check_positions(found, n, len(self.round), name)
        return self._wishes[name, n]

    def votes(self, m: int | None = None) -> Bool[Tensor, "S U"]:
        """Return which candidates are among the first `m` (default B) wishes of each strategy."""
        votes = torch.zeros(len(self.strategies), len(self.round), dtype=torch.bool, device=self.round.device)
        for s in range(len(self.strategies)):
            votes[s, self.wish(s, m)] = True
        return votes

    def score(self, strategy: int | str) -> Float[Tensor, " U"]:
        """Return one strategy's scores scaled to [0, 1]; 1 - rank/n for a strategy that only selects."""
        name = self._name(strategy)
        if name not in self._scores:
            chosen = self.strategies[name]
            with self._clock(f"select/{name}"):
                scores = chosen.scores(self.round) if isinstance(chosen, ScoreStrategy) else None
                self._scores[name] = _unit(scores) if scores is not None else self._rank_scores(name)
        return self._scores[name]

    def law(self, strategy: int | str, taken: Int[Tensor, " t"]) -> Float[Tensor, " U"] | None:
        """Return `Strategy.law` of one strategy."""
        return self.strategies[self._name(strategy)].law(self.round, taken)

    def on(self, round: Round, budget: int) -> "Ballot":
        """Return a ballot of the same strategies on another round."""
        return Ballot(round, self.strategies, budget, self._clock)

    def _rank_scores(self, name: str) -> Tensor:
        order = self.wish(name, self.budget)
        scores = torch.zeros(len(self.round), device=self.round.device)
        scores[order] = 1 - torch.arange(len(order), device=self.round.device) / max(1, len(order))
        return scores

    def _name(self, strategy: int | str) -> str:
        return strategy if isinstance(strategy, str) else self.names[strategy]


def _unit(scores: Tensor) -> Tensor:
    finite = scores[scores.isfinite()]  # infinite scores share the extremes
    low, high = (finite.min(), finite.max()) if len(finite) else (scores.new_zeros(()), scores.new_ones(()))
    scores = scores.clamp(low, high)
    return torch.where(
        high > low, (scores - low) / (high - low).clamp(min=torch.finfo(scores.dtype).tiny), torch.zeros_like(scores)
    )
