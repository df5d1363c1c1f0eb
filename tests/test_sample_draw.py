"""Masses on samples become a batch drawn by lot: the law against enumeration, propensities, and the action that says it."""

import itertools
from collections import Counter

import pytest
import torch

from alenv.ballot import Ballot
from alenv.campaign import Plan, action_weights, weights_action
from alenv.env import ActiveLearningEnv
from alenv.mixing import NOBODY, sample_draw
from alenv.problem import assemble
from alenv.round import Round
from alenv.strategy import ScoreStrategy
from alenv.streams import Streams


class Refuses(ScoreStrategy):
    def score(self, round):
        raise AssertionError("no strategy needs to run: the masses say everything")


def drawn(mass, budget, seed=0):
    mass = torch.tensor(mass)
    ballot = Ballot(Round.from_arrays(embeddings=torch.zeros(len(mass), 1)), {"a": Refuses(), "b": Refuses()}, budget)
    return sample_draw(mass, ballot, budget, Streams(seed)("lot"))


def test_batches_follow_the_law_of_drawing_one_by_one():
    mass = [[0.5, 0.0], [0.1, 0.2], [0.0, 0.2], [0.0, 0.0]]
    p = [0.5, 0.3, 0.2]
    expected = {(i, j): p[i] * p[j] / (1 - p[i]) for i, j in itertools.permutations(range(3), 2)}
    counts = Counter(tuple(drawn(mass, 2, seed).positions.tolist()) for seed in range(4000))
    assert set(counts) == set(expected)
    for pair, probability in expected.items():
        assert counts[pair] / 4000 == pytest.approx(probability, abs=0.03)


def test_propensity_and_advice_are_those_given_the_earlier_draws():
    mass = [[0.5, 0.0], [0.1, 0.2], [0.0, 0.2], [0.0, 0.0]]
    batch = drawn(mass, 4)
    left, held = 1.0, [0.6, 0.4]
    for slot, position in enumerate(batch.positions.tolist()[:3]):
        assert float(batch.propensity[slot]) == pytest.approx(sum(mass[position]) / left, rel=1e-5)
        assert batch.advice[:, slot].tolist() == pytest.approx(
            [m / h if h > 1e-9 else 0.0 for m, h in zip(mass[position], held, strict=True)], rel=1e-5
        )
        left -= sum(mass[position])
        held = [h - m for h, m in zip(held, mass[position], strict=True)]
    assert batch.positions[3] == 3
    assert float(batch.propensity[3]) == 1.0  # the only one left
    assert batch.chosen_by[3] == NOBODY
    assert batch.weights.tolist() == pytest.approx([0.6, 0.4])
    by = {0: "a", 1: "b", 2: "b"}
    assert batch.chosen_by[:3] == tuple(by[position] for position in batch.positions.tolist()[:3])


def test_without_any_mass_everything_is_uniform():
    batches = [drawn([[0.0, 0.0]] * 4, 2, seed) for seed in range(400)]
    assert batches[0].propensity.tolist() == pytest.approx([1 / 4, 1 / 3])
    counts = Counter(int(batch.positions[0]) for batch in batches)
    assert min(counts[i] for i in range(4)) > 60
    assert batches[0].weights.tolist() == [0.5, 0.5]


def test_masses_survive_the_action_and_minus_one_means_never():
    mass = torch.tensor([[0.2, 0.0], [1e-7, 0.5], [0.0, 0.3]])
    action = weights_action(mass.flatten()).reshape(mass.shape)
    back = action_weights("sample_draw", action, 2, 3)
    torch.testing.assert_close(back / back.sum(), mass / mass.sum(), rtol=1e-5, atol=1e-9)
    assert (back[mass == 0] == 0).all()
    assert (action_weights("sample_draw", -torch.ones(3, 2), 2, 3) == 0).all()


def test_an_action_can_name_the_samples_to_buy():
    env = ActiveLearningEnv(action="sample_draw", strategies=["margin"], rounds=1, batch=3)
    env.reset(seed=0)
    wanted = env.campaign.round.candidates[[7, 1, 30]]
    action = torch.full(env.action_space.shape, -1.0)
    action[wanted] = 0.3
    env.step(action.numpy())
    assert sorted(env.query.indices.tolist()) == sorted(wanted.tolist())


def test_supposing_buys_nothing_and_says_what_would_be_bought():
    plan = Plan(initial=20, batch=5, rounds=2, action="sample_draw")
    problem = assemble(strategies=["margin", "uniform"], plan=plan, device="cpu")
    env = ActiveLearningEnv(problem=problem)
    env.reset(seed=0)
    action = torch.rand(env.action_space.shape, generator=Streams(0)("action")) * 2 - 1
    supposed, fewer = env.campaign.suppose(action), env.campaign.suppose(action, 2)
    assert env.campaign.pool.bought == 20
    chosen = env.campaign.choose(action)
    assert torch.equal(chosen.indices, supposed.indices)
    assert torch.equal(chosen.propensity, supposed.propensity)
    assert torch.equal(fewer.indices, chosen.indices[:2])


def test_supposing_before_the_first_purchase_is_refused():
    problem = assemble(strategies=["margin"], device="cpu")
    with pytest.raises(ValueError, match=r"suppose\(\) was called on a campaign that is over or has not begun"):
        problem.campaign(0).suppose(0)
