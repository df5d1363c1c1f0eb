"""What an action was worth: each reward by hand-worked numbers, and which one stands in for which."""

import itertools
import math

import pytest
import torch

from alenv import library
from alenv.env import ActiveLearningEnv
from alenv.rewards import (
    ClassBalance,
    EntropyGain,
    Gain,
    ImportanceWeightedAccuracy,
    Level,
    MinusOneUntilTarget,
    NormalizedGain,
    Reward,
    TerminalArea,
    Trace,
    fallback,
)
from alenv.runner import Runner

ON_VALIDATION = [Gain(), Level(), NormalizedGain(), TerminalArea(), MinusOneUntilTarget()]


def named(reward: Reward) -> str:
    return type(reward).__name__


def curve(*validation: float, done: bool = False) -> Trace:
    """Purchases of 10, 20, 40, 80, ..."""
    return Trace(validation=list(validation), bought=[10 * 2**i for i in range(len(validation))], done=done)


def predicted(new: list[int], old: list[int], num_classes: int = 2) -> Trace:
    now, before = (torch.tensor(classes, dtype=torch.int64) for classes in (new, old))
    return Trace(predictions=lambda: now, previous_predictions=lambda: before, num_classes=num_classes)


def test_gain_is_the_last_difference_and_may_be_negative() -> None:
    assert Gain()(curve(0.2, 0.5, 0.75)) == 0.25
    assert Gain()(curve(0.2, 0.75, 0.5)) == -0.25


def test_level_is_the_last_value() -> None:
    assert Level()(curve(0.2, 0.75, 0.5)) == 0.5


@pytest.mark.parametrize(
    ("validation", "reward"),
    [
        ((0.2, 0.4, 0.5, 0.9), 1.0),  # gains .2 .1 .4: the largest
        ((0.2, 0.6, 0.8, 0.9), 0.0),  # .4 .2 .1: the smallest
        ((0.2, 0.6, 0.6, 0.7), 0.25),  # .4 0 .1: a quarter of the way
        ((0.5, 0.75, 0.5, 0.5), 0.5),  # .25 -.25 0
        ((0.2, 0.4), 0.5),  # nothing to compare with
        ((0.25, 0.5, 0.75), 0.5),  # equal gains
    ],
)
def test_normalized_gain_stands_between_the_extremes_so_far(validation: tuple[float, ...], reward: float) -> None:
    assert NormalizedGain()(curve(*validation)) == pytest.approx(reward)


def test_terminal_area_is_zero_until_the_end() -> None:
    assert TerminalArea()(curve(0.2, 0.4, 0.8)) == 0.0
    # (10 x .3 + 20 x .6) / 30
    assert TerminalArea()(curve(0.2, 0.4, 0.8, done=True)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("new", "old", "reward"),
    [
        ([0, 1, 0, 1], [0, 0, 0, 0], 1.0),  # H from 0 to 1: (e - 1 - 1 + e) / (2e - 2)
        ([1, 1, 1], [0, 1], 0.0),
        ([0, 0, 1, 1], [1, 0], 0.5),  # no change, however many are left
        ([0, 0, 0], [1, 1, 1], 0.5),
        ([0, 0, 0, 1], [0, 0], 0.8639633),  # H = .8112781 bits: (2.2507828 - 1 - 1 + e) / (2e - 2)
    ],
)
def test_entropy_gain_is_the_scaled_growth_of_the_entropy_of_predictions(new: list[int], old: list[int], reward: float) -> None:
    assert EntropyGain()(predicted(new, old)) == pytest.approx(reward)


def test_entropy_is_measured_in_units_of_log_c() -> None:
    assert EntropyGain()(predicted([0, 1, 2, 3], [2, 2], num_classes=4)) == pytest.approx(1.0)
    half = (math.exp(0.5) - 1 - 1 + math.e) / (2 * math.e - 2)  # two of four classes
    assert EntropyGain()(predicted([0, 1], [2, 2], num_classes=4)) == pytest.approx(half)


def test_entropy_gain_of_an_exhausted_pool_is_defined() -> None:
    assert 0 <= EntropyGain()(predicted([], [0, 1])) <= 1


def test_importance_weighted_accuracy_weighs_hits_by_inverse_propensity() -> None:
    trace = Trace(
        correct=lambda: torch.tensor([True, False, True]), propensity=torch.tensor([0.5, 0.25, 1.0]), pool_size=10, horizon=4
    )
    assert ImportanceWeightedAccuracy()(trace) == pytest.approx((1 / 0.5 + 1 / 1.0) / (10 * 4))


def test_importance_weighted_accuracy_without_lots_is_a_count() -> None:
    trace = Trace(correct=lambda: torch.tensor([True, False, True, True]), propensity=torch.ones(4), pool_size=5, horizon=6)
    assert ImportanceWeightedAccuracy()(trace) == pytest.approx(3 / 30)


@pytest.mark.parametrize("reward", ON_VALIDATION, ids=named)
@pytest.mark.parametrize("validation", [(0.0, 1.0), (1.0, 0.0), (0.3, 0.3, 0.9, 0.1), (1.0, 1.0, 0.0)])
@pytest.mark.parametrize("done", [False, True])
def test_rewards_stay_in_their_declared_range(reward: Reward, validation: tuple[float, ...], done: bool) -> None:
    assert reward.low <= reward(curve(*validation, done=done)) <= reward.high


@pytest.mark.parametrize("reward", [*ON_VALIDATION, EntropyGain(), ImportanceWeightedAccuracy()], ids=named)
@pytest.mark.parametrize("stochastic", [False, True])
def test_with_a_validation_split_the_reward_asked_for_is_used(reward: Reward, stochastic: bool) -> None:
    assert fallback(reward, True, stochastic) == (reward, "")


@pytest.mark.parametrize("reward", [EntropyGain(), ImportanceWeightedAccuracy()], ids=named)
def test_rewards_that_need_no_validation_do_without(reward: Reward) -> None:
    assert fallback(reward, False, False) == (reward, "")


@pytest.mark.parametrize("reward", ON_VALIDATION, ids=named)
@pytest.mark.parametrize(("stochastic", "other"), [(False, EntropyGain), (True, ImportanceWeightedAccuracy)])
def test_without_validation_another_reward_stands_in_and_says_so(reward: Reward, stochastic: bool, other: type[Reward]) -> None:
    used, sentence = fallback(reward, False, stochastic)
    assert type(used) is other
    assert sentence == f"no validation split: the reward is {other.__name__} instead of {named(reward)}"


def test_every_reward_declares_what_it_reads_and_has_a_name() -> None:
    access = {name: library.build("reward", name).access for name in library.names("reward")}
    on_validation = dict.fromkeys(["gain", "level", "normalized_gain", "terminal_area"], "validation")
    on_purchases = dict.fromkeys(["iw_accuracy", "class_balance"], "purchases")
    on_validation["minus_one_until_target"] = "validation"
    assert access == {**on_validation, **on_purchases, "entropy_gain": "pool", "oracle_gain": "test"}


def bought(labels: list[int], counts: list[int], batch: int | None = None) -> Trace:
    return Trace(labels=torch.tensor(labels, dtype=torch.int64), class_counts=torch.tensor(counts), batch=batch or len(labels))


@pytest.mark.parametrize(
    ("labels", "counts", "reward"),
    [
        ([0, 1, 1, 2], [5, 4, 1], (1 / 5 + 1 / 4 + 1 / 4 + 1) / 4),
        ([2, 2], [3, 3, 0], 1.0),  # a class without labels counts as one with a single label
        ([0, 1], [6, 2, 2], (-1 / 6 + 1 / 2) / 2),  # six of ten is more than half
        ([0, 1], [5, 3, 2], (1 / 5 + 1 / 3) / 2),  # half is not
    ],
)
def test_class_balance_pays_for_rare_classes_and_charges_for_the_majority(
    labels: list[int], counts: list[int], reward: float
) -> None:
    assert ClassBalance()(bought(labels, counts)) == pytest.approx(reward)


def test_class_balance_gives_nothing_for_purchases_without_a_label() -> None:
    assert ClassBalance()(bought([1], [1, 1, 4], batch=4)) == pytest.approx(1 / 4)
    assert ClassBalance()(bought([], [1, 1, 4], batch=4)) == 0


def test_every_round_begun_below_the_target_costs_one() -> None:
    values = [0.5, 0.7, 0.9, 0.85, 0.95]
    costs = [MinusOneUntilTarget(0.9)(curve(*values[: t + 1])) for t in range(1, len(values))]
    assert costs == [-1, -1, 0, 0]
    assert MinusOneUntilTarget(0.4)(curve(*values)) == 0


@pytest.mark.parametrize("target", [0.0, 1.5])
def test_a_target_outside_the_range_of_accuracy_is_refused(target: float) -> None:
    with pytest.raises(ValueError, match="minus_one_until_target"):
        MinusOneUntilTarget(target)


SMALL = {"selector": "random_pick", "strategies": ["margin", "uniform"], "budget": {"rounds": 2}, "device": "cpu"}


def test_minus_one_sums_to_minus_the_length_of_a_campaign_that_stops_at_the_target() -> None:
    target = {"name": "minus_one_until_target", "target": 0.75}
    run = Runner.of(SMALL | {"reward": target, "budget": {"rounds": 15}, "stop": {"accuracy": 0.75}}).run()
    assert 0 < len(run.rounds) - 1 < 15
    assert sum(r.reward or 0 for r in run.rounds) == -(len(run.rounds) - 1)


def test_class_balance_of_a_campaign_is_that_of_its_labels() -> None:
    runner = Runner.of(SMALL | {"reward": "class_balance"})
    run = runner.run()
    labels = [runner.env.campaign.pool.labels[i].item() for i in runner.env.campaign.pool.order]
    counts = [labels[:20].count(c) for c in range(10)]
    expected = sum(1 / max(1, counts[y]) for y in labels[20:40]) / 20
    assert run.rounds[1].reward == pytest.approx(expected)


def test_a_reward_that_reads_test_labels_is_refused_to_whoever_is_no_oracle() -> None:
    with pytest.raises(ValueError, match="OracleGain reads test labels"):
        Runner.of(SMALL | {"reward": "oracle_gain"})
    with pytest.raises(ValueError, match="OracleGain reads test labels"):
        ActiveLearningEnv(reward="oracle_gain")


def test_an_oracle_is_paid_in_test_accuracy() -> None:
    run = Runner.of(SMALL | {"selector": "strategy_oracle", "reward": "oracle_gain"}).run()
    levels = [r.metrics["accuracy"] or 0 for r in run.rounds]
    assert [r.reward for r in run.rounds[1:]] == [b - a for a, b in itertools.pairwise(levels)]


def test_no_other_reward_is_shown_test_metrics() -> None:
    seen: list[Trace] = []

    class Curious(Gain):
        def __call__(self, trace: Trace) -> float:
            seen.append(trace)
            return 0.0

    Runner.of(SMALL | {"reward": Curious()}).run()
    assert [trace.test for trace in seen] == [[], []]
