"""Ballots: who is asked, how often, and what becomes of wishes and scores."""

import pytest
import torch
from torch import Tensor

from alenv.ballot import Ballot
from alenv.clock import Clock
from alenv.round import Round
from alenv.strategies.uniform import Uniform
from alenv.strategy import ScoreStrategy, Strategy


class Ordered(Strategy):
    """Buys in a given order, and notes every budget it was asked with."""

    def __init__(self, *order: int) -> None:
        self.order, self.asked = order, []

    def select(self, round: Round, budget: int) -> Tensor:
        self.asked.append(budget)
        return torch.tensor(self.order[:budget])


class Scored(ScoreStrategy):
    """Has the given scores, and counts how often they are computed."""

    def __init__(self, *values: float) -> None:
        self.values, self.asked = values, 0

    def score(self, round: Round) -> Tensor:
        self.asked += 1
        return torch.tensor(self.values)


class Refuses(Strategy):
    """Must not run."""

    def select(self, round: Round, budget: int) -> Tensor:
        raise AssertionError("a strategy nobody asked about was run")


def candidates(count: int, seed: int = 0) -> Round:
    return Round.from_arrays(embeddings=torch.zeros(count, 1), seed=seed)


def test_making_a_ballot_runs_nobody() -> None:
    ballot = Ballot(candidates(4), {"a": Refuses(), "b": Ordered(1, 0, 3, 2)}, 2)
    assert ballot.names == ("a", "b")
    assert ballot.wish("b").tolist() == [1, 0]
    with pytest.raises(AssertionError, match="nobody asked about"):
        ballot.wish("a")


def test_a_wish_is_asked_once_by_number_or_name_and_in_votes_and_scores() -> None:
    strategy = Ordered(3, 1, 0, 2)
    ballot = Ballot(candidates(4), {"a": strategy}, 2)
    for _ in range(2):
        assert ballot.wish(0).tolist() == ballot.wish("a").tolist() == ballot.wish("a", 2).tolist() == [3, 1]
        ballot.votes()
        ballot.score(0)
    assert strategy.asked == [2]


def test_a_wish_of_another_length_is_asked_anew_and_clamped_to_the_candidates() -> None:
    strategy = Ordered(3, 1, 0, 2)
    ballot = Ballot(candidates(4), {"a": strategy}, 2)
    assert ballot.wish("a", 3).tolist() == [3, 1, 0]
    assert ballot.wish("a", 100).tolist() == ballot.wish("a", 4).tolist() == [3, 1, 0, 2]
    assert ballot.wish("a", 0).tolist() == []
    assert strategy.asked == [3, 4]


def test_votes_mark_the_first_wishes_of_every_strategy() -> None:
    ballot = Ballot(candidates(5), {"a": Ordered(4, 0, 1, 2, 3), "b": Ordered(0, 2, 4, 1, 3)}, 2)
    assert ballot.votes().int().tolist() == [[1, 0, 0, 0, 1], [1, 0, 1, 0, 0]]
    assert ballot.votes(3).int().tolist() == [[1, 1, 0, 0, 1], [1, 0, 1, 0, 1]]
    assert bool(ballot.votes(50).all())
    assert ballot.votes().dtype == torch.bool


def test_scores_are_scaled_to_the_unit_interval_and_computed_once() -> None:
    strategy = Scored(2.0, 6.0, 3.0)
    ballot = Ballot(candidates(3), {"a": strategy}, 2)
    for _ in range(2):
        assert ballot.score("a").tolist() == [0.0, 1.0, 0.25]
        assert ballot.score(0).tolist() == [0.0, 1.0, 0.25]
    assert strategy.asked == 1


def test_negative_and_constant_scores_scale_too() -> None:
    ballot = Ballot(candidates(3), {"negative": Scored(-8.0, -4.0, -6.0), "flat": Scored(7.0, 7.0, 7.0)}, 2)
    assert ballot.score("negative").tolist() == [0.0, 1.0, 0.5]
    assert ballot.score("flat").tolist() == [0.0, 0.0, 0.0]


def test_a_strategy_without_scores_gets_one_minus_rank_over_n() -> None:
    ballot = Ballot(candidates(6), {"a": Ordered(3, 1, 5, 0, 2, 4)}, 4)
    assert ballot.score("a").tolist() == [0.25, 0.75, 0.0, 1.0, 0.0, 0.5]


def test_the_same_strategies_can_be_asked_about_another_round() -> None:
    strategy = Ordered(1, 0)
    ballot = Ballot(candidates(4), {"a": strategy, "b": Refuses()}, 2)
    ballot.wish("a")
    other = ballot.on(candidates(2), 1)
    assert (len(other.round), other.budget, other.names) == (2, 1, ("a", "b"))
    assert other.wish("a").tolist() == [1]
    assert strategy.asked == [2, 1]
    assert len(ballot.round) == 4
    assert ballot.wish("a").tolist() == [1, 0]


def test_a_law_is_passed_on_and_deterministic_strategies_have_none() -> None:
    ballot = Ballot(candidates(4), {"a": Uniform(), "b": Ordered(0, 1)}, 2)
    torch.testing.assert_close(ballot.law("a", torch.tensor([2])), torch.tensor([1 / 3, 1 / 3, 0, 1 / 3]))
    assert ballot.law(1, torch.tensor([2])) is None


def test_seconds_are_noted_per_strategy_that_ran() -> None:
    clock = Clock()
    ballot = Ballot(candidates(3), {"a": Ordered(0, 1, 2), "b": Refuses(), "c": Scored(1.0, 2.0, 3.0)}, 2, clock)
    ballot.wish("a")
    ballot.score("c")
    ballot.on(candidates(3), 1).wish("a")
    assert set(clock.take()) == {"select/a", "select/c"}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.tensor([0]), "mine: expected 2 positions"),
        (torch.tensor([0, 0]), "mine: positions repeat"),
        (torch.tensor([0, 3]), r"mine: expected positions in 0\.\.2, got 0\.\.3"),
        (torch.tensor([-1, 0]), r"mine: expected positions in 0\.\.2, got -1\.\.0"),
        (torch.tensor([0.0, 1.0]), "mine: expected a 1-axis integer tensor"),
        (torch.tensor([True, False]), "mine: expected a 1-axis integer tensor"),
        (torch.tensor([[0, 1]]), "mine: expected a 1-axis integer tensor"),
        ([0, 1], "mine: expected a 1-axis integer tensor of positions, got list"),
    ],
)
def test_a_wish_that_breaks_the_rules_is_refused_under_the_strategys_name(answer: object, message: str) -> None:
    class Anything:
        """Not even a `Strategy`: nothing but the ballot checks it."""

        def select(self, round: Round, budget: int) -> object:
            return answer

    with pytest.raises(ValueError, match=message):
        Ballot(candidates(3), {"mine": Anything()}, 2).wish("mine")


@pytest.mark.parametrize(
    ("values", "message"),
    [([1.0, float("nan"), 2.0], "Scored: 1 scores are NaN"), ([1.0, 2.0], r"expected one score per candidate \(3,\)")],
)
def test_scores_that_are_no_numbers_or_too_few_are_refused(values: list[float], message: str) -> None:
    ballot = Ballot(candidates(3), {"a": Scored(*values)}, 2)
    with pytest.raises(ValueError, match=message):
        ballot.score("a")
    with pytest.raises(ValueError, match=message):
        ballot.wish("a")
