"""Oracle selectors: they do what turns out best, and trying leaves no trace."""

import copy

import pytest
import torch

from alenv.campaign import Plan
from alenv.env import ActiveLearningEnv
from alenv.oracle import Oracle
from alenv.problem import assemble
from alenv.runner import Runner
from alenv.selector import merit
from alenv.selectors.sample_oracle import SampleOracle
from alenv.selectors.strategy_oracle import StrategyOracle
from alenv.strategy import Strategy

NAMES = ["margin", "kmeans", "uniform"]


def config(selector, **changes):
    budget = {"initial": 20, "batch": 5, "rounds": 3}
    return {"selector": selector, "strategies": NAMES, "budget": budget, "device": "cpu", "seed": 0} | changes


class Learner(Strategy):
    """Buys what comes after what it bought last: its choice is part of its state."""

    def __init__(self):
        self.calls = torch.zeros((), dtype=torch.int64)

    def select(self, round, budget):
        self.calls += 1
        return (torch.arange(budget) + 7 * int(self.calls)) % len(round)

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"].clone()


def flat(value):
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: flat(item) for key, item in value.items() if key != "seconds"}
    return [flat(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("action", ["pick", "mix", "sample_mix", "sample_draw"])
def test_trying_an_action_leaves_the_campaign_bit_by_bit_as_it_was(action):
    plan = Plan(initial=20, batch=5, rounds=3, action=action)

    def campaign_after(tries):
        problem = assemble(strategies={"a": "margin", "b": Learner()}, plan=plan, device="cpu")
        env = ActiveLearningEnv(problem=problem)
        env.reset(seed=0)
        env.action_space.seed(0)
        history = []
        for _ in range(2):
            act = env.action_space.sample()
            before = copy.deepcopy(flat(env.campaign.state_dict()))
            tried = [env.simulate(act) for _ in range(tries)]
            assert flat(env.campaign.state_dict()) == before
            env.step(act)
            metrics = env.campaign.records[-1].metrics
            assert all(t == pytest.approx(metrics, abs=1e-4) for t in tried)
            history.append((flat(env.campaign.state_dict()), flat(dict(env.campaign.model.state_dict()))))
        return history

    assert campaign_after(0) == campaign_after(2)


def test_a_part_of_an_action_can_be_tried():
    env = ActiveLearningEnv(strategies=["margin"], rounds=1)
    env.reset(seed=0)
    nothing, known = env.simulate(0, 0), env.campaign.records[0].metrics
    assert nothing == pytest.approx(known, abs=1e-4)
    assert env.simulate(0, 1) != nothing


def test_the_strategy_oracle_takes_the_strategy_that_turns_out_best():
    runner = Runner.of(config("strategy_oracle"))
    tried, act = [], runner.selector.act

    def watch(observation, ballot):
        tried.append([runner.env.simulate(k)["accuracy"] for k in range(len(NAMES))])
        return act(observation, ballot)

    runner.selector.act = watch
    run = runner.run()
    for values, record in zip(tried, run.rounds[1:], strict=True):
        assert values[record.action.index(1.0)] == max(values)
        assert record.metrics["accuracy"] == pytest.approx(max(values), abs=1e-4)


def test_one_step_ahead_the_strategy_oracle_is_at_least_as_good_as_every_strategy():
    budget = {"initial": 20, "batch": 5, "rounds": 1}
    oracle = Runner.of(config("strategy_oracle", budget=budget)).run().rounds[-1].metrics["accuracy"]
    for name in NAMES:
        alone = Runner.of(config({"name": "fixed", "strategy": name}, budget=budget)).run().rounds[-1].metrics["accuracy"]
        assert oracle >= alone - 1e-6


def test_the_strategy_oracle_breaks_ties_by_lot():
    selector = StrategyOracle()
    runner = Runner.of(config("strategy_oracle"))
    env = runner.env
    picks = set()
    for seed in range(12):
        env.reset(seed=seed)
        runner.selector.begin(runner._context(env.campaign))
        selector.context = copy.copy(runner.selector.context)
        object.__setattr__(selector.context, "simulate", lambda action: {"accuracy": 0.5})
        picks.add(selector.act({}, env.ballot))
    assert picks == {0, 1, 2}


def test_losses_count_downwards_and_unknown_metrics_are_named():
    metrics = {"accuracy": 0.75, "nll": 0.5}
    assert merit(metrics, "accuracy") == 0.75
    assert merit(metrics, "nll") == -0.5
    with pytest.raises(ValueError, match="unknown metric 'loss'; there are: accuracy, nll"):
        merit(metrics, "loss")


def started(selector, simulate, batch=1, seed=0):
    """A sample oracle before its first action, told what to think of each pool index."""
    runner = Runner.of(config(selector, budget={"initial": 20, "batch": batch, "rounds": 2}))
    runner.env.reset(seed=seed)
    context = runner._context(runner.env.campaign)

    def judged(action, budget):
        return simulate(runner.env.campaign.suppose(action, budget).indices.tolist())

    object.__setattr__(context, "simulate", judged)
    runner.selector.begin(context)
    return runner


def margins(round):
    top = round.probs.topk(2, dim=1).values
    return dict(zip(round.candidates.tolist(), (top[:, 0] - top[:, 1]).tolist(), strict=True))


def test_the_sample_oracle_tries_tau_candidates_and_buys_the_best_of_them():
    tried = []

    def simulate(indices):
        assert len(indices) <= 1
        tried.extend(indices)
        return {"accuracy": 0.1 if not indices else 0.2 + 1e-4 * indices[0]}  # the highest pool index is best

    runner = started({"name": "sample_oracle", "tau": 12}, simulate)
    runner.env.step(runner.selector.act({}, runner.env.ballot))
    assert len(set(tried)) == len(tried) == 12
    assert runner.env.query.indices.tolist() == [max(tried)]


def test_a_batch_of_the_sample_oracle_takes_the_largest_gains_then_the_smallest_margins():
    tried = []

    def simulate(indices):
        tried.extend(indices)
        return {"accuracy": 0.5 + sum(1e-4 * i for i in indices if i % 5 == 0)}

    runner = started({"name": "sample_oracle", "tau": 12}, simulate, batch=6)
    unsure = margins(runner.env.campaign.round)
    runner.env.step(runner.selector.act({}, runner.env.ballot))
    gaining = sorted((i for i in tried if i % 5 == 0), reverse=True)
    rest = sorted((i for i in tried if i % 5), key=unsure.__getitem__)
    assert 0 < len(gaining) < 6
    assert sorted(runner.env.query.indices.tolist()) == sorted((gaining + rest)[:6])


def test_the_sample_oracle_without_any_gain_is_margin_among_the_tau():
    tried = []

    def simulate(indices):
        tried.extend(indices)
        return {"accuracy": 0.5 - 0.01 * len(indices)}

    runner = started({"name": "sample_oracle", "tau": 15}, simulate)
    unsure = margins(runner.env.campaign.round)
    runner.env.step(runner.selector.act({}, runner.env.ballot))
    assert runner.env.query.indices.tolist() == [min(tried, key=unsure.__getitem__)]


def test_the_sample_oracle_beats_random_sampling_on_the_metric_it_reads():
    budget = {"initial": 12, "batch": 1, "rounds": 4}

    def final(selector, seed):
        return Runner.of(config(selector, budget=budget, dataset="wine", seed=seed)).run().rounds[-1].metrics["accuracy"]

    oracle = [final({"name": "sample_oracle", "tau": 10}, seed) for seed in range(3)]
    chance = [final({"name": "fixed", "strategy": "uniform"}, seed) for seed in range(3)]
    assert sum(oracle) > sum(chance)


def test_people_are_not_asked_hypothetical_questions():
    class Person(Oracle):
        def label(self, indices):
            return [0] * len(indices)

    problem = assemble(strategies=["margin"], oracle=Person(), device="cpu")
    for selector in (StrategyOracle(), SampleOracle()):
        with pytest.raises(ValueError, match="oracle=simulated"):
            Runner(problem, selector)
    env = ActiveLearningEnv(problem=problem)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="hypothetical"):
        env.simulate(0)


def test_tau_must_be_positive():
    with pytest.raises(ValueError, match="tau"):
        SampleOracle(tau=0)
