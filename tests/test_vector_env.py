"""The vector environment against single environments, bit by bit, and against Gymnasium's own."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from alenv import library, toy
from alenv.campaign import Plan
from alenv.env import ActiveLearningEnv
from alenv.nets.mlp import mlp
from alenv.rewards import Gain
from alenv.selectors.fixed import Fixed
from alenv.vector_env import ActiveLearningVectorEnv

IDS = ["alenv/Pick-v0", "alenv/Mix-v0"]
SHORT = {"rounds": 2, "strategies": ["margin", "uniform", "bald"]}


def sampled(env, steps, seed=0):
    """A few steps of random actions for every campaign."""
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(steps)]


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray) and a.dtype == object:
        return all((x is None and y is None) or equal(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and np.asarray(a).dtype == np.asarray(b).dtype and np.array_equal(a, b)


def history(env, actions, **reset):
    return [env.reset(**reset), *(env.step(action) for action in actions)]


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_every_number_equals_that_of_gymnasiums_vector_of_single_environments(name, mode):
    env = gym.make_vec(name, num_envs=3, vectorization_mode="vector_entry_point", autoreset_mode=mode, **SHORT)
    action = env.unwrapped.envs[0].problem.plan.action
    twin = SyncVectorEnv([lambda: ActiveLearningEnv(action=action, **SHORT)] * 3, autoreset_mode=mode)
    actions = sampled(env, 6)
    for ours, theirs in zip(history(env, actions, seed=5), history(twin, actions, seed=5), strict=True):
        assert len(ours) == len(theirs)
        assert all(equal(a, b) for a, b in zip(ours, theirs, strict=True))


def toy_problem(strategies=("margin", "uniform"), action="pick", pool=60, **plan):
    """A problem on overlapping blobs that trains in milliseconds."""
    problem = toy.problem(Fixed("margin"), 1)
    given = {"initial": 12, "batch": 6, "rounds": 2, "action": action} | plan
    return replace(
        problem, source=toy.blobs(pool, size=pool + 100), plan=Plan(**given), reward=Gain(),
        strategies={name: library.build("strategy", name) for name in strategies},
    )  # fmt: skip


@pytest.mark.parametrize("action", ["pick", "mix"])
def test_campaigns_on_different_data_and_strategies_are_what_they_are_alone(action):
    problems = [toy_problem(action=action), toy_problem(("margin", "bald", "entropy"), action=action, pool=90, rounds=3)]
    env = ActiveLearningVectorEnv(2, problems=problems)
    actions = sampled(env, 2)
    actions = [np.minimum(a, [1, 2]) if action == "pick" else a for a in actions]
    steps = history(env, actions, seed=[3, 8])
    for lane, (problem, size) in enumerate(zip(problems, (2, 3), strict=True)):
        alone = ActiveLearningEnv(problem=problem)
        mine = [a[lane] if action == "pick" else a[lane, :size] for a in actions]
        for ours, theirs in zip(steps, history(alone, mine, seed=[3, 8][lane]), strict=True):
            assert equal({key: value[lane] for key, value in ours[0].items()}, theirs[0])
            assert [value[lane].item() for value in ours[1:-1]] == list(theirs[1:-1])
            assert {key: ours[-1][key][lane].tolist() for key in theirs[-1] if key != "action_mask"} == {
                key: value for key, value in theirs[-1].items() if key != "action_mask"
            }
    assert env.action_masks().tolist() == [[True, True, False], [True] * 3]
    assert steps[0][1]["action_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_the_space_is_that_of_the_problem_with_the_most_strategies():
    env = ActiveLearningVectorEnv(2, problems=[toy_problem(), toy_problem(("margin", "bald", "entropy"))])
    assert env.single_action_space == gym.spaces.Discrete(3)
    assert env.action_space.shape == (2,)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"expected the number of a strategy, 0\.\.1, got 2"):
        env.step(np.array([2, 2]))


def test_a_mask_begins_some_campaigns_and_leaves_the_others():
    env = ActiveLearningVectorEnv(3, problems=toy_problem(), autoreset_mode="Disabled")
    env.reset(seed=0)
    before = env.step(np.array([0, 1, 0]))[0]
    observations, infos = env.reset(seed=7, options={"reset_mask": np.array([False, True, False])})
    assert infos["_round"].tolist() == [False, True, False]
    assert [lane.campaign.index for lane in env.envs] == [2, 1, 2]
    assert equal(observations["campaign"][[0, 2]], before["campaign"][[0, 2]])
    alone, _ = ActiveLearningEnv(problem=toy_problem()).reset(seed=8)
    assert equal(observations["campaign"][1], alone["campaign"])


def test_without_autoreset_a_campaign_that_is_over_must_be_reset_first():
    env = ActiveLearningVectorEnv(2, problems=toy_problem(rounds=1), autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0)
    assert env.step(np.array([0, 1]))[2].all()
    with pytest.raises(ValueError, match=r"campaigns \[0, 1\] are over; reset them first"):
        env.step(np.array([0, 1]))
    env.reset(options={"reset_mask": np.array([True, True])})
    env.step(np.array([0, 1]))


@pytest.mark.parametrize("mask", [np.array([False, False]), np.array([True]), [True, False], np.array([1, 0])])
def test_a_mask_of_the_wrong_form_is_refused(mask):
    env = ActiveLearningVectorEnv(2, problems=toy_problem())
    with pytest.raises(ValueError, match="reset_mask"):
        env.reset(seed=0, options={"reset_mask": mask})


def test_campaigns_have_oracles_and_strategies_of_their_own():
    env = ActiveLearningVectorEnv(3, problems=toy_problem())
    assert len({id(lane.problem.oracle) for lane in env.envs}) == 3
    assert len({id(s) for lane in env.envs for s in lane.problem.strategies.values()}) == 6
    assert len({id(lane.problem.source) for lane in env.envs}) == 1
    assert len({id(lane.problem.trainer) for lane in env.envs}) == 1


def test_one_training_serves_all_campaigns(monkeypatch):
    env = ActiveLearningVectorEnv(4, problems=toy_problem())
    sizes, fit_many = [], env.envs[0].problem.trainer.fit_many
    monkeypatch.setattr(env.envs[0].problem.trainer, "fit_many", lambda jobs: sizes.append(len(jobs)) or fit_many(jobs))
    history(env, sampled(env, 2), seed=0)
    assert sizes == [4, 4, 4]


def test_shared_data_are_scored_with_one_product_and_others_one_by_one():
    env = ActiveLearningVectorEnv(3, problems=toy_problem())
    env.reset(seed=0)
    models, campaigns = [lane.campaign.model for lane in env.envs], [lane.campaign for lane in env.envs]
    for scores, model, campaign in zip(env._score([0, 1, 2], models), models, campaigns, strict=True):
        outputs = campaign.trainer.outputs(model, campaign.task.inputs)
        assert torch.equal(scores.logits(torch.arange(len(outputs.logits))), outputs.logits)
        assert scores.test == campaign.trainer.evaluate(model, campaign.task.test)
        assert scores.validation == campaign.trainer.evaluate(model, campaign.task.validation)
    other = ActiveLearningVectorEnv(2, problems=replace(toy_problem(), net=lambda *_: mlp((toy.DIM,), toy.CLASSES, width=16)))
    other.reset(seed=0)
    assert other._score([0, 1], [lane.campaign.model for lane in other.envs]) == [None, None]


def test_seeds_count_up_from_one_number_and_their_number_is_checked():
    env = ActiveLearningVectorEnv(2, problems=toy_problem())
    env.reset(seed=4)
    assert [lane.campaign.streams.seed for lane in env.envs] == [4, 5]
    with pytest.raises(ValueError, match="expected one seed per campaign"):
        env.reset(seed=[1, 2, 3])
    with pytest.raises(ValueError, match="expected one action per campaign"):
        env.step(np.array([0]))


def test_wrong_arguments_say_what_was_expected():
    with pytest.raises(ValueError, match="expected num_envs >= 1, got 0"):
        ActiveLearningVectorEnv(0, problems=toy_problem())
    with pytest.raises(ValueError, match="one per campaign"):
        ActiveLearningVectorEnv(3, problems=[toy_problem()] * 2)
    with pytest.raises(ValueError, match="pick or mix, got sample_mix"):
        ActiveLearningVectorEnv(1, problems=toy_problem(action="sample_mix"))
    with pytest.raises(gym.error.Error, match="vector entry point"):
        gym.make_vec("alenv/SampleMix-v0", num_envs=2, vectorization_mode="vector_entry_point")


def test_gymnasiums_wrappers_and_rendering_work():
    env = ActiveLearningVectorEnv(2, problems=toy_problem(rounds=1), render_mode="rgb_array", autoreset_mode="SameStep")
    wrapped = RecordEpisodeStatistics(env)
    wrapped.reset(seed=0)
    *_, infos = wrapped.step(np.array([0, 1]))
    assert infos["final_info"]["labels"].tolist() == [18, 18]
    assert infos["labels"].tolist() == [12, 12]
    assert [picture.shape for picture in env.render()] == [(320, 480, 3)] * 2
    assert [campaign.index for campaign in env.get_attr("campaign")] == [1, 1]
    assert [mask.tolist() for mask in env.call("action_masks")] == [[True, True]] * 2
    wrapped.close()


def test_random_batches_of_actions_lie_in_the_space():
    env = ActiveLearningVectorEnv(3, problems=toy_problem(action="mix"))
    observations, _ = env.reset(seed=0)
    assert env.observation_space.contains(observations)
    observations, rewards, terminated, truncated, _ = env.step(env.action_space.sample())
    assert env.observation_space.contains(observations)
    assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float64, np.bool_, np.bool_)
    assert not truncated.any()
