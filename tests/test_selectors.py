"""Bandits and baselines by numbers worked out by hand, planted arms and negative controls."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from alenv.ballot import Ballot
from alenv.campaign import Plan, action_weights
from alenv.mixing import mix
from alenv.rewards import ImportanceWeightedAccuracy, Trace
from alenv.round import Round
from alenv.runner import Runner
from alenv.selector import Context
from alenv.selectors.albl import ALBL
from alenv.selectors.fixed import Fixed
from alenv.selectors.random_pick import RandomPick
from alenv.selectors.uniform_mixture import UniformMixture
from alenv.strategies.uniform import Uniform
from alenv.strategy import Strategy
from alenv.streams import Streams


def context(strategies=4, batch=1, rounds=100):
    plan = Plan(initial=1, batch=batch, rounds=rounds, action="mix", mixing="slots")
    return Context(tuple(f"s{i}" for i in range(strategies)), 3, 1000, plan, Streams(0), None, None)


def began(selector, **sizes):
    selector.begin(context(**sizes))
    return selector


def transition(reward, advice, propensity):
    query = SimpleNamespace(advice=torch.tensor(advice), propensity=torch.tensor(propensity))
    return SimpleNamespace(query=query, reward=reward)


def test_albl_starts_uniform_and_its_floor_is_the_papers():
    albl = began(ALBL(), strategies=4, rounds=100)
    assert albl.probabilities.tolist() == [0.25] * 4
    assert albl._floor == pytest.approx(math.sqrt(math.log(4) / (4 * 100)))


def test_albl_update_is_exp4p_worked_out_by_hand():
    albl = began(ALBL(delta=0.1), strategies=2, rounds=50)
    floor = math.sqrt(math.log(2) / (2 * 50))
    advice, q, reward = [[1.0], [0.25]], [0.625], 0.8
    logged = albl.update(transition(reward, advice, q))
    bonus = math.sqrt(math.log(2 / 0.1) / (2 * 50)) / 0.5
    weights = [math.exp(floor / 2 * (reward * a[0] / q[0] + bonus)) for a in advice]
    expected = [(1 - 2 * floor) * w / sum(weights) + floor for w in weights]
    assert albl.probabilities.tolist() == pytest.approx(expected, rel=1e-9)
    assert list(logged.values()) == pytest.approx(expected, rel=1e-9)


def test_albl_floor_is_clipped_where_the_papers_would_make_probabilities_negative():
    albl = began(ALBL(), strategies=8, rounds=12)
    assert math.sqrt(math.log(8) / (8 * 12)) > 1 / 8
    for _ in range(5):
        albl.update(transition(1.0, [[1.0]] + [[0.0]] * 7, [0.125]))
        assert (albl.probabilities >= 0).all()
        assert float(albl.probabilities.sum()) == pytest.approx(1)


def test_albl_probabilities_stay_above_the_floor_and_sum_to_one():
    albl = began(ALBL(), strategies=5, rounds=200)
    for _ in range(200):
        albl.update(transition(5.0, [[1.0]] + [[0.0]] * 4, [0.2]))
    assert (albl.probabilities >= albl._floor - 1e-12).all()
    assert float(albl.probabilities.sum()) == pytest.approx(1)


def bandit_run(gains, rounds, seed):
    """Probabilities of the arms after each of so many rounds of planted rewards."""
    albl = began(ALBL(), strategies=len(gains), rounds=rounds)
    draw, path = np.random.default_rng(seed), []
    for _ in range(rounds):
        p = albl.probabilities.numpy()
        arm = draw.choice(len(gains), p=p / p.sum())
        advice = [[float(k == arm)] for k in range(len(gains))]
        albl.update(transition(float(draw.random() < gains[arm]), advice, [float(p[arm])]))
        path.append(albl.probabilities.numpy())
    return np.array(path)


def test_albl_finds_the_better_of_planted_arms_and_nothing_where_there_is_none():
    planted = np.mean([bandit_run([1.0, 0.0, 0.0], 300, seed) for seed in range(20)], axis=0)
    control = np.mean([bandit_run([0.5, 0.5, 0.5], 300, seed) for seed in range(20)], axis=0)
    assert planted[-1, 0] > 0.6
    assert (np.diff(planted[::25, 0]) > 0).all(), "it rises all along"
    assert np.abs(control[-1] - 1 / 3).max() < 0.1


def test_albl_acts_with_exactly_its_probabilities():
    albl = began(ALBL(), strategies=3, rounds=60)
    albl.update(transition(1.0, [[1.0], [0.0], [0.5]], [0.5]))
    weights = action_weights("mix", albl.act({}, None), 3, 10)
    assert weights.tolist() == pytest.approx(albl.probabilities.tolist(), abs=1e-5)


@pytest.mark.parametrize("bad", [0.0, 1.0, -1.0])
def test_albl_refuses_a_delta_that_is_no_probability(bad):
    with pytest.raises(ValueError, match="delta"):
        ALBL(delta=bad)


@pytest.mark.parametrize("reward", ["iw_accuracy", "normalized_gain"])
def test_albl_runs_with_either_reward_and_includes_the_uniform_sampler(reward):
    config = {"selector": {"name": "albl", "reward": reward}, "budget": {"rounds": 3}, "device": "cpu"}
    run = Runner.of(config).run()
    assert run.rounds[0].strategies[-1] == "uniform"
    assert all(0 < p <= 1 for r in run.rounds[1:] for p in r.propensity)
    assert all(math.isfinite(r.reward) for r in run.rounds[1:])
    if reward == "normalized_gain":
        assert all(0 <= r.reward <= 1 for r in run.rounds[1:])


def test_importance_weights_of_albl_estimate_pool_accuracy():
    """Summed over a campaign that could have bought anything, the weights average to the pool they stand for."""
    totals = []
    for seed in range(6):
        config = {"selector": {"name": "albl"}, "strategies": ["margin"], "budget": {"initial": 20, "batch": 10, "rounds": 6}}
        run = Runner.of({**config, "seed": seed, "device": "cpu"}).run()
        weights = [1 / p for r in run.rounds[1:] for p in r.propensity]
        totals.append(np.mean(weights))
    assert 600 < np.mean(totals) < 2100  # about the 1,330 candidates; one in two purchases comes from the uniform sampler


class OnlyEver(Strategy):
    """Wishes for the second candidate."""

    def select(self, round, budget):
        return torch.arange(1, budget + 1)


def test_importance_weighted_accuracy_is_unbiased_where_the_uniform_sampler_is_present():
    """A purchase at a time from forty candidates, three in four of them right; hits alone would count .6 + .4 x .75 = .9."""
    right, horizon, estimates = torch.arange(40) % 4 != 0, 4, []
    ballot = Ballot(Round.from_arrays(embeddings=torch.zeros(40, 1)), {"one": OnlyEver(), "uniform": Uniform()}, 1)
    for seed in range(800):
        generator = Streams(seed)("draws")
        bought = [mix("slots", torch.tensor([0.6, 0.4]), ballot, 1, generator) for _ in range(horizon)]
        hits = right[torch.cat([batch.positions for batch in bought])]
        propensity = torch.cat([batch.propensity for batch in bought])
        trace = Trace(correct=lambda hits=hits: hits, propensity=propensity, pool_size=40, horizon=horizon)
        estimates.append(ImportanceWeightedAccuracy()(trace))
    assert np.mean(estimates) == pytest.approx(0.75, abs=4 * np.std(estimates) / math.sqrt(800))
    assert np.std(estimates) / math.sqrt(800) < 0.03


def test_fixed_has_exactly_its_one_strategy():
    run = Runner.of(
        {"selector": {"name": "fixed", "strategy": {"name": "kmeans", "iterations": 3}}, "budget": {"rounds": 2}}
    ).run()
    assert run.rounds[1].strategies == ("kmeans",)
    assert run.rounds[1].action == (1.0,)
    assert Fixed("entropy").candidates == ["entropy"]


def test_random_pick_is_uniform_and_repeats_by_seed():
    selector = began(RandomPick(), strategies=4)
    ballots = [SimpleNamespace(names="abcd", round=SimpleNamespace(index=i)) for i in range(400)]
    picks = [selector.act({}, ballot) for ballot in ballots]
    assert picks == [selector.act({}, ballot) for ballot in ballots]
    assert np.bincount(picks, minlength=4).min() > 70


def test_uniform_mixture_gives_equal_weights():
    selector = began(UniformMixture(), strategies=5)
    weights = action_weights("mix", selector.act({}, SimpleNamespace(names="abcde")), 5, 10)
    assert weights.tolist() == pytest.approx([0.2] * 5)
