"""Weights become a batch: quotas, slots, blends and mixtures per sample, against enumeration and by hand."""

import itertools
import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alenv.ballot import Ballot
from alenv.mixing import NOBODY, allot, draw_seats, mix, sample_mix, sample_shares
from alenv.round import Round
from alenv.strategies.uniform import Uniform
from alenv.strategy import ScoreStrategy, Strategy
from alenv.streams import Streams

KINDS = ["quota", "slots", "blend"]


class Ordered(Strategy):
    """Buys in a given order, and notes every budget it was asked with."""

    def __init__(self, *order: int) -> None:
        self.order, self.asked = order, []

    def select(self, round: Round, budget: int) -> Tensor:
        self.asked.append(budget)
        return torch.tensor(self.order[:budget])


class Scored(ScoreStrategy):
    def __init__(self, *values: float) -> None:
        self.values = values

    def score(self, round: Round) -> Tensor:
        return torch.tensor(self.values)


class Refuses(ScoreStrategy):
    """Must not run, neither for wishes nor for scores."""

    def score(self, round: Round) -> Tensor:
        raise AssertionError("a strategy of weight 0 was run")

    def law(self, round: Round, taken: Tensor) -> Tensor:
        raise AssertionError("a strategy of weight 0 was asked for its law")


def a_ballot(count: int, budget: int, *strategies: Strategy) -> Ballot:
    return Ballot(Round.from_arrays(embeddings=torch.zeros(count, 1)), dict(zip("abcdefg", strategies, strict=False)), budget)


def lots(seed: int = 0) -> torch.Generator:
    return Streams(seed)("mixing")


def shuffled(count: int, seed: int) -> Ordered:
    return Ordered(*torch.randperm(count, generator=Streams(seed)("order")).tolist())


weights_lists = st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda w: sum(w) > 0.01)


# All kinds


@pytest.mark.parametrize("kind", KINDS)
def test_a_strategy_of_weight_zero_never_runs(kind: str) -> None:
    ballot = a_ballot(6, 3, Refuses(), Ordered(5, 4, 3, 2, 1, 0), Refuses())
    batch = mix(kind, torch.tensor([0.0, 1.0, 0.0]), ballot, 3, lots())
    assert batch.positions.tolist() == [5, 4, 3]
    assert batch.chosen_by == ("b", "b", "b")
    assert batch.propensity.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_each_wish_is_asked_once_whatever_the_slots(kind: str) -> None:
    first, second = Ordered(*range(8)), Ordered(*reversed(range(8)))
    ballot = a_ballot(8, 5, first, second)
    mix(kind, torch.tensor([0.5, 0.5]), ballot, 5, lots())
    mix(kind, torch.tensor([0.3, 0.7]), ballot, 5, lots(1))
    assert first.asked == second.asked == [5]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(weights=weights_lists, count=st.integers(1, 9), budget=st.integers(0, 12), seed=st.integers(0, 99))
def test_a_batch_is_distinct_and_exactly_as_large_as_asked(
    kind: str, weights: list[float], count: int, budget: int, seed: int
) -> None:
    ballot = a_ballot(count, budget, shuffled(count, seed), shuffled(count, seed), Uniform())
    batch = mix(kind, torch.tensor(weights), ballot, budget, lots(seed))
    size = min(budget, count)
    assert len(batch.positions) == len(set(batch.positions.tolist())) == len(batch.chosen_by) == len(batch.propensity) == size
    assert all(0 <= p < count for p in batch.positions.tolist())
    assert {name for name, weight in zip("abc", weights, strict=True) if weight > 0} >= set(batch.chosen_by)
    assert batch.advice.shape == (3, size)
    torch.testing.assert_close(batch.weights, torch.tensor(weights) / sum(weights))
    assert bool((batch.propensity > 0).all())
    assert bool((batch.propensity <= 1 + 1e-6).all())


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_lots_give_the_same_batch(kind: str) -> None:
    def once(seed: int) -> list[int]:
        ballot = a_ballot(40, 12, shuffled(40, 1), Uniform(), Scored(*[0.0] * 40))
        return mix(kind, torch.tensor([0.2, 0.4, 0.4]), ballot, 12, lots(seed)).positions.tolist()

    assert once(0) == once(0)


# Quota


@pytest.mark.parametrize(
    ("weights", "budget", "seats"),
    [
        ([0.5, 0.3, 0.2], 7, [4, 2, 1]),  # 3.5 2.1 1.4: one seat left, to the remainder of .5
        ([0.45, 0.35, 0.2], 3, [1, 1, 1]),  # 1.35 1.05 .6: to .6
        ([0.0, 1.0], 5, [0, 5]),
        ([0.9, 0.1], 0, [0, 0]),
    ],
)
def test_seats_go_by_largest_remainder(weights: list[float], budget: int, seats: list[int]) -> None:
    assert allot(torch.tensor(weights, dtype=torch.float64), budget, lots()) == seats


@pytest.mark.parametrize("divide", [allot, draw_seats])
def test_equal_shares_of_an_uneven_budget_fall_by_lot(divide: Callable[..., list[int]]) -> None:
    generator, counts = lots(), Counter()
    for _ in range(400):
        seats = divide(torch.full((4,), 0.25), 6, generator)
        assert sorted(seats) == [1, 1, 2, 2]
        counts.update(s for s in range(4) if seats[s] == 2)
    assert all(150 < counts[s] < 250 for s in range(4))


def test_drawn_seats_have_the_shares_as_their_expectation() -> None:
    generator, weights = lots(), torch.tensor([0.5, 0.3, 0.13, 0.07])
    drawn = torch.tensor([draw_seats(weights, 4, generator) for _ in range(3000)]).double()
    assert (drawn.sum(1) == 4).all()
    assert ((drawn - 4 * weights).abs() < 1).all()
    torch.testing.assert_close(drawn.mean(0), 4 * weights.double(), atol=0.04, rtol=0)


@settings(max_examples=200, deadline=None)
@given(weights=st.lists(st.floats(0, 1), min_size=1, max_size=9).filter(lambda w: sum(w) > 0.01), budget=st.integers(0, 500))
def test_seats_add_up_and_differ_from_the_share_by_less_than_one(weights: list[float], budget: int) -> None:
    shares = torch.tensor(weights) / torch.tensor(weights).sum()
    seats = allot(shares, budget, lots())
    assert sum(seats) == budget
    assert all(abs(seat - budget * share) < 1 + 1e-3 for seat, share in zip(seats, shares.tolist(), strict=True))
    assert all(seat == 0 for seat, weight in zip(seats, weights, strict=True) if weight == 0)


def test_a_quota_gives_each_strategy_its_first_wishes_the_heaviest_first() -> None:
    ballot = a_ballot(9, 5, Ordered(0, 1, 2, 3, 4), Ordered(5, 6, 7, 8, 0))
    batch = mix("quota", torch.tensor([0.4, 0.6]), ballot, 5, lots())
    assert batch.positions.tolist() == [5, 6, 7, 0, 1]
    assert batch.chosen_by == ("b", "b", "b", "a", "a")
    assert batch.propensity.tolist() == [1.0] * 5
    assert not bool(batch.advice.any())


def test_a_strategy_whose_wishes_are_taken_gets_its_next_ones() -> None:
    ballot = a_ballot(9, 4, Ordered(0, 1, 2, 3), Ordered(0, 1, 8, 2), Ordered(1, 0, 8, 5))
    batch = mix("quota", torch.tensor([0.5, 0.25, 0.25]), ballot, 4, lots())
    assert batch.positions.tolist() == [0, 1, 8, 5]
    assert batch.chosen_by == ("a", "a", "b", "c")


def test_a_strategy_without_a_seat_is_not_asked() -> None:
    heavy, light = Ordered(0, 1), Ordered(2, 3)
    mix("quota", torch.tensor([0.9, 0.1]), a_ballot(4, 2, heavy, light), 2, lots())
    assert (heavy.asked, light.asked) == ([2], [])


# Slots


def next_free(order: tuple[int, ...], taken: list[int]) -> int:
    return next(p for p in order if p not in taken)


ORDERS = ((0, 1, 2), (0, 2, 1), (3, 0, 1))
WEIGHTS = (0.5, 0.3, 0.2)


def slot_laws() -> dict[tuple[int, ...], float]:
    """Probability of every batch of three, by running through all 27 draws of strategies."""
    law: Counter[tuple[int, ...]] = Counter()
    for drawn in itertools.product(range(3), repeat=3):
        taken: list[int] = []
        for s in drawn:
            taken.append(next_free(ORDERS[s], taken))
        law[tuple(taken)] += math.prod(WEIGHTS[s] for s in drawn)
    return law


def test_propensities_multiply_to_the_probability_of_the_batch() -> None:
    expected, seen = slot_laws(), Counter[tuple[int, ...]]()
    runs = 3000
    ballot = a_ballot(5, 3, *(Ordered(*order) for order in ORDERS))
    generator = lots()
    for _ in range(runs):
        batch = mix("slots", torch.tensor(WEIGHTS), ballot, 3, generator)
        key = tuple(batch.positions.tolist())
        assert math.prod(batch.propensity.tolist()) == pytest.approx(expected[key], abs=1e-6)
        seen[key] += 1
    assert set(seen) == set(expected)
    for key, probability in expected.items():
        assert seen[key] / runs == pytest.approx(probability, abs=5 * math.sqrt(probability / runs))


def test_each_propensity_is_the_weight_of_all_strategies_that_would_have_bought_it() -> None:
    ballot = a_ballot(5, 3, *(Ordered(*order) for order in ORDERS))
    generator = lots()
    for _ in range(50):
        batch = mix("slots", torch.tensor(WEIGHTS), ballot, 3, generator)
        positions = batch.positions.tolist()
        for slot, position in enumerate(positions):
            agree = [float(next_free(order, positions[:slot]) == position) for order in ORDERS]
            assert batch.advice[:, slot].tolist() == agree
            assert float(batch.propensity[slot]) == pytest.approx(sum(w * a for w, a in zip(WEIGHTS, agree, strict=True)))
            assert agree["abc".index(batch.chosen_by[slot])] == 1


def test_a_stochastic_strategy_enters_propensities_by_its_law() -> None:
    weights = torch.tensor([0.6, 0.4])
    ballot, generator = a_ballot(3, 2, Ordered(2, 0, 1), Uniform()), lots()
    runs, seen, product = 3000, Counter[tuple[int, ...]](), {}
    for _ in range(runs):
        batch = mix("slots", weights, ballot, 2, generator)
        first, second = batch.positions.tolist()
        expected = [0.6 * (first == 2) + 0.4 / 3, 0.6 * (second == next_free((2, 0, 1), [first])) + 0.4 / 2]
        assert batch.propensity.tolist() == pytest.approx(expected)
        assert batch.advice[1].tolist() == pytest.approx([1 / 3, 1 / 2])
        seen[first, second] += 1
        product[first, second] = math.prod(expected)
    assert sum(product.values()) == pytest.approx(1)  # all six ordered pairs were seen
    for key, probability in product.items():
        assert seen[key] / runs == pytest.approx(probability, abs=5 * math.sqrt(probability / runs))


@settings(max_examples=40, deadline=None)
@given(weights=weights_lists, seed=st.integers(0, 99))
def test_weighted_advice_is_the_propensity(weights: list[float], seed: int) -> None:
    ballot = a_ballot(7, 4, shuffled(7, seed), Uniform(), shuffled(7, seed + 1))
    batch = mix("slots", torch.tensor(weights), ballot, 4, lots(seed))
    torch.testing.assert_close(batch.weights @ batch.advice, batch.propensity)


def test_a_uniform_strategy_alone_in_the_slots_buys_uniformly() -> None:
    ballot, generator, counts = a_ballot(4, 2, Uniform()), lots(), torch.zeros(4)
    for _ in range(1000):
        batch = mix("slots", torch.ones(1), ballot, 2, generator)
        counts[batch.positions] += 1
        assert batch.propensity.tolist() == pytest.approx([1 / 4, 1 / 3])
    assert bool(((counts - 500).abs() < 5 * math.sqrt(500)).all())


# Blend


def test_a_blend_buys_the_highest_weighted_sums_of_unit_scores() -> None:
    # unit scores a: 0 .5 1 .25; ranks b of (3, 0): .5 0 0 1; sums at .6, .4: .2 .3 .6 .55
    ballot = a_ballot(4, 2, Scored(2.0, 4.0, 6.0, 3.0), Ordered(3, 0, 1, 2))
    batch = mix("blend", torch.tensor([0.6, 0.4]), ballot, 3, lots())
    assert batch.positions.tolist() == [2, 3, 1]
    assert batch.chosen_by == ("a", "b", "a")
    assert batch.propensity.tolist() == [1.0] * 3


def test_ties_in_a_blend_fall_by_lot() -> None:
    def bought(seed: int) -> list[int]:
        return mix("blend", torch.ones(1), a_ballot(30, 5, Scored(*[1.0] * 30)), 5, lots(seed)).positions.tolist()

    assert bought(0) == bought(0) != bought(1)


# Mixtures per sample


def per_sample(count: int, *row: float) -> Tensor:
    return torch.tensor(row).expand(count, -1)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 12), budget=st.integers(0, 12), seed=st.integers(0, 99))
def test_one_strategy_with_as_many_votes_as_purchases_buys_its_own_set(count: int, budget: int, seed: int) -> None:
    strategy = shuffled(count, seed)
    batch = sample_mix(torch.ones(count, 1), a_ballot(count, budget, strategy), budget, 1.0, lots(seed))
    assert set(batch.positions.tolist()) == set(strategy.order[:budget])
    assert len(batch.positions) == min(count, budget)
    assert set(batch.chosen_by) <= {"a"}


@pytest.mark.parametrize(
    ("votes", "budget", "marks"),
    [(1.0, 3, 3), (1.5, 3, 5), (2.0, 3, 6), (1.01, 4, 5), (9.0, 4, 20), (2.5, 2, 5), (1.1, 10, 11)],
)
def test_every_strategy_marks_votes_times_budget_rounded_up(votes: float, budget: int, marks: int) -> None:
    strategy = Ordered(*range(20))
    sample_mix(torch.ones(20, 1), a_ballot(20, budget, strategy), budget, votes, lots())
    assert strategy.asked == [marks]


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.floats(0.01, 1), min_size=2, max_size=2), budget=st.integers(1, 10), votes=st.floats(1, 3),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_purchases_come_from_the_union_of_marks(weights: list[float], budget: int, votes: float, seed: int) -> None:
    ballot = a_ballot(10, budget, shuffled(10, seed), shuffled(10, seed + 1))
    batch = sample_mix(per_sample(10, *weights), ballot, budget, votes, lots(seed))
    union = ballot.votes(min(10, math.ceil(votes * budget - 1e-9))).any(0)
    assert bool(union[batch.positions].all())
    assert len(batch.positions) == len(set(batch.positions.tolist())) == budget
    assert NOBODY not in batch.chosen_by
    assert batch.propensity.tolist() == [1.0] * budget


def test_a_sample_with_more_weighted_votes_is_bought_first() -> None:
    ballot = a_ballot(6, 3, Ordered(0, 1, 2), Ordered(1, 3, 4), Ordered(5, 1, 3))
    batch = sample_mix(per_sample(6, 0.4, 0.35, 0.25), ballot, 3, 1.0, lots())
    assert batch.positions.tolist()[:2] == [1, 3]  # 1 has all votes, 3 has .35 + .25, then 0 or 2 with .4
    assert batch.positions.tolist()[2] in (0, 2)
    assert batch.chosen_by == ("a", "b", "a")
    torch.testing.assert_close(batch.weights, torch.tensor([0.4, 0.35, 0.25]))


def test_weights_per_sample_decide_which_marks_count() -> None:
    ballot = a_ballot(6, 3, Ordered(0, 1, 2), Ordered(3, 4, 5))
    weights = per_sample(6, 0.5, 0.5).clone()
    weights[[1, 4]] = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    weights[5] = torch.tensor([0.3, 0.7])
    batch = sample_mix(weights, ballot, 3, 1.0, lots())
    assert batch.positions.tolist() == [1, 4, 5]
    assert batch.chosen_by == ("a", "b", "b")
    torch.testing.assert_close(batch.weights, weights[[1, 4, 5]].mean(0))


def test_what_no_weighted_vote_marks_is_filled_uniformly_and_named_so() -> None:
    ballot = a_ballot(30, 4, Ordered(0, 1, 2, 3), Ordered(0, 1, 2, 3))
    weights = per_sample(30, 0.0, 0.0).clone()  # nobody's vote counts, but for one sample
    weights[2] = torch.tensor([0.0, 1.0])
    first, second = (sample_mix(weights, ballot, 4, 1.0, lots(seed)) for seed in range(2))
    assert first.chosen_by == second.chosen_by == ("b", NOBODY, NOBODY, NOBODY)
    assert first.positions[0] == second.positions[0] == 2
    assert first.positions.tolist() != second.positions.tolist()
    assert len(set(first.positions.tolist())) == 4


@pytest.mark.parametrize("budget", [4, 5, 100])
def test_a_budget_beyond_the_candidates_buys_them_all(budget: int) -> None:
    ballot = a_ballot(4, budget, Ordered(0, 1, 2, 3), Ordered(3, 2, 1, 0))
    batch = sample_mix(per_sample(4, 0.5, 0.5), ballot, budget, 2.0, lots())
    assert sorted(batch.positions.tolist()) == [0, 1, 2, 3]


# shares


@pytest.mark.parametrize("votes", [1.0, 3.0])
def test_shares_of_equal_weights_are_a_quota(votes: float) -> None:
    ballot = a_ballot(30, 8, *(shuffled(30, seed) for seed in range(4)))
    weights = torch.full((4,), 0.25)
    expected = mix("quota", weights, ballot, 8, lots())
    batch = sample_shares(weights.expand(30, 4), ballot, 8, votes, lots())
    assert batch.positions.tolist() == expected.positions.tolist()
    assert batch.chosen_by == expected.chosen_by


def test_a_share_is_the_mean_weight_of_the_marked_samples() -> None:
    """Of a's marks 0..3 the weights are .9, of b's 4..7 they are .7 for b; what others weigh does not count."""
    ballot = a_ballot(10, 4, Ordered(*range(10)), Ordered(4, 5, 6, 7, 0, 1, 2, 3, 8, 9))
    weights = torch.tensor([[0.9, 0.1]] * 4 + [[0.3, 0.7]] * 4 + [[0.0, 1.0]] * 2)
    batch = sample_shares(weights, ballot, 4, 1.0, lots())
    torch.testing.assert_close(batch.weights, torch.tensor([0.9, 0.7]) / 1.6)
    assert batch.chosen_by in (("a", "a", "b", "b"), ("a", "a", "a", "b"))  # 2.25 and 1.75 seats
    assert batch.positions.tolist() in ([0, 1, 4, 5], [0, 1, 2, 4])


def test_within_a_share_the_sample_weighs_against_the_strategys_own_order() -> None:
    """Grades are 1, .75, .5, .25: .8 in second place (.6) comes before .5 in the first; .9 in the last (.225) is not bought."""
    ballot = a_ballot(4, 2, Ordered(0, 1, 2, 3))
    weights = torch.tensor([[0.5], [0.8], [0.5], [0.9]])
    assert sample_shares(weights, ballot, 2, 2.0, lots()).positions.tolist() == [1, 0]


def test_the_heaviest_strategy_does_not_take_all_where_marks_do_not_coincide() -> None:
    ballot = a_ballot(40, 10, Ordered(*range(20)), Ordered(*range(20, 40)))
    weights = torch.tensor([0.51, 0.49]).expand(40, 2)
    assert Counter(sample_mix(weights, ballot, 10, 1.0, lots()).chosen_by) == {"a": 10}
    assert Counter(sample_shares(weights, ballot, 10, 1.0, lots()).chosen_by) == {"a": 5, "b": 5}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), st.integers(1, 12), st.floats(1, 4), st.integers(0, 99))
def test_shares_fill_every_batch_with_distinct_marked_samples(values: list[float], budget: int, votes: float, seed: int) -> None:
    ballot = a_ballot(12, budget, *(shuffled(12, seed + s) for s in range(3)))
    rows = torch.rand(12, 3, generator=lots(seed)) * torch.tensor(values) + 1e-3
    batch = sample_shares(rows / rows.sum(1, keepdim=True), ballot, budget, votes, lots())
    positions = batch.positions.tolist()
    assert len(set(positions)) == len(positions) == budget
    count = min(12, max(budget, math.ceil(votes * budget - 1e-9)))
    for position, name in zip(positions, batch.chosen_by, strict=True):
        assert position in ballot.wish(name, count).tolist()
