"""The environments: both checkers with warnings as errors, determinism, budget, masks, rendering, vector and SB3 use."""

import copy
import json
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit

import alenv
from alenv.env import ActiveLearningEnv
from alenv.observation import CAMPAIGN_FEATURES, STRATEGY_FEATURES
from alenv.strategy import Strategy

IDS = ["alenv/Pick-v0", "alenv/Mix-v0", "alenv/SampleMix-v0", "alenv/SampleDraw-v0"]
SHORT = {"rounds": 3}


def played(env, seed, action_seed=0):
    """Everything a seeded episode of random actions gives."""
    env.action_space.seed(action_seed)
    observation, info = env.reset(seed=seed)
    history = [(observation, info)]
    done = False
    while not done:
        observation, reward, done, truncated, info = env.step(env.action_space.sample())
        history.append((observation, reward, done, truncated, info))
    return history


def flat(value):
    if isinstance(value, dict):
        return {key: flat(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [flat(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("name", IDS)
def test_gymnasium_checker_passes_with_warnings_as_errors(name, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(name).unwrapped)


@pytest.mark.parametrize("name", IDS)
def test_stable_baselines_checker_passes_with_warnings_as_errors(name):
    from stable_baselines3.common.env_checker import check_env as check

    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("error")
        check(gym.make(name, **SHORT).unwrapped)


@pytest.mark.parametrize("name", IDS)
def test_whole_episodes_repeat_bit_by_bit(name):
    env = gym.make(name, **SHORT)
    assert flat(played(env, 5)) == flat(played(env, 5))
    assert flat(played(gym.make(name, **SHORT), 5)) == flat(played(env, 5))
    assert flat(played(env, 6)) != flat(played(env, 5))


def test_unseeded_resets_repeat_after_one_seeded_reset():
    env = gym.make(IDS[0], **SHORT)

    def starts():
        env.reset(seed=9)
        return [flat(env.reset()) for _ in range(2)]

    first = starts()
    assert first == starts()
    assert first[0] != first[1]


@pytest.mark.parametrize("name", IDS)
def test_round_zero_is_the_same_for_every_action_kind(name):
    env, pick = gym.make(name, **SHORT).unwrapped, gym.make(IDS[0], **SHORT).unwrapped
    env.reset(seed=2)
    pick.reset(seed=2)
    assert env.campaign.records[0].queried == pick.campaign.records[0].queried
    assert env.campaign.records[0].metrics == pick.campaign.records[0].metrics


def test_the_defaults_are_those_of_the_documentation():
    env = gym.make(IDS[0]).unwrapped
    assert env.action_space.n == 7
    assert len(env.problem.strategies) == 7
    assert (env.problem.plan.initial, env.problem.plan.batch, env.problem.plan.rounds) == (20, 20, 15)
    assert 1300 <= env.problem.pool_size <= 1500
    assert gym.make(IDS[2]).action_space.shape == (env.problem.pool_size, 7)


def test_the_budget_is_spent_exactly_and_the_episode_ends_there():
    env = gym.make(IDS[0], initial=10, batch=7, rounds=4)
    history = played(env, 0)
    assert [step[-1]["bought"] for step in history] == [10, 17, 24, 31, 38]
    assert [step[2] for step in history[1:]] == [False, False, False, True]
    with pytest.raises(ValueError, match="over"):
        env.step(0)


def test_rewards_sum_to_the_gain_on_validation():
    history = played(gym.make(IDS[0], **SHORT), 3)
    values = [step[-1]["validation"] for step in history]
    assert sum(step[1] for step in history[1:]) == pytest.approx(values[-1] - values[0])


@pytest.mark.parametrize("name", IDS)
def test_observations_are_fresh_float32_boxes_of_declared_size(name):
    env = gym.make(name, **SHORT, max_strategies=9)
    first, _ = env.reset(seed=0)
    second = env.step(env.action_space.sample() * 0)[0]
    for part, space in env.observation_space.spaces.items():
        assert first[part].dtype == np.float32
        assert space.contains(first[part])
        assert space.contains(second[part])
        assert not np.shares_memory(first[part], second[part])
    assert first["campaign"].shape == (len(CAMPAIGN_FEATURES),)
    assert first["strategies"].shape == (9 * len(STRATEGY_FEATURES),)
    assert first["mask"].tolist() == [1] * 7 + [0, 0]


def test_observations_run_no_strategy():
    class Alarm(Strategy):
        def select(self, round, budget):
            raise AssertionError("a strategy ran")

    env = ActiveLearningEnv(strategies=[Alarm()], **SHORT)
    env.reset(seed=0)
    with pytest.raises(AssertionError, match="a strategy ran"):
        env.step(0)


def test_observation_features_describe_what_happened():
    env = ActiveLearningEnv(**SHORT)
    env.reset(seed=0)
    env.step(2)
    observation, reward, *_ = env.step(2)
    rows = observation["strategies"].reshape(-1, len(STRATEGY_FEATURES))
    assert rows[2, 5] == rows[2, 6] == 1
    assert rows[2, 8] == pytest.approx(reward, abs=1e-6)
    assert rows[2, 9] == 0
    assert rows[1, 5] == rows[1, 6] == 0
    assert rows[1, 9] == 1
    assert observation["campaign"][0] == pytest.approx(2 / 3)


def test_info_keys_never_change_and_hold_plain_things():
    history = played(gym.make(IDS[0], **SHORT, validation=0, reward="entropy_gain"), 0)
    infos = [step[-1] for step in history]
    assert all(set(info) == set(infos[0]) for info in infos)
    assert not {"episode", "final_obs", "final_info"} & set(infos[0])
    for info in infos:
        assert info["validation"] == -1
        assert info["action_mask"].dtype == np.int8
        for value in info.values():
            assert isinstance(value, int | float | str | np.ndarray)
            assert not np.isnan(np.asarray(value, dtype=float)).any()


def test_masks_serve_both_conventions():
    env = gym.make(IDS[0], **SHORT)
    _, info = env.reset(seed=0)
    assert env.get_wrapper_attr("action_masks")().dtype == np.bool_
    assert env.action_space.sample(mask=info["action_mask"]) in env.action_space


def test_mix_takes_extreme_actions_as_almost_pure_weights():
    env = ActiveLearningEnv(action="mix", **SHORT)
    env.reset(seed=0)
    action = -np.ones(7, np.float32)
    action[1] = 1
    env.step(action)
    assert set(env.query.chosen_by) == {"margin"}
    assert env.campaign.records[-1].action[1] == pytest.approx(1)


def test_a_pure_mixture_equals_the_pick_and_the_strategy_outside():
    picked, mixed = ActiveLearningEnv(**SHORT), ActiveLearningEnv(action="mix", **SHORT)
    picked.reset(seed=4)
    mixed.reset(seed=4)
    outside = picked.ballot.round.candidates[picked.campaign.strategies["margin"].select(picked.ballot.round, 20)]
    action = -np.ones(7, np.float32)
    action[1] = 1
    picked.step(1)
    mixed.step(action)
    assert picked.query.ids == mixed.query.ids
    assert torch.equal(picked.query.indices, outside)


@pytest.mark.parametrize("bad", [np.full(7, np.nan, np.float32), np.full(7, 3, np.float32), np.zeros(6, np.float32)])
def test_bad_mixtures_are_refused_and_cost_nothing(bad):
    env = ActiveLearningEnv(action="mix", **SHORT)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="expected"):
        env.step(bad)
    assert env.campaign.pool.bought == 20
    env.step(np.zeros(7, np.float32))
    assert env.campaign.pool.bought == 40


def test_render_modes_need_no_display(capsys):
    text = ActiveLearningEnv(render_mode="ansi", **SHORT)
    picture = ActiveLearningEnv(render_mode="rgb_array", **SHORT)
    human = ActiveLearningEnv(render_mode="human", **SHORT)
    for env in (text, picture, human):
        env.reset(seed=0)
        env.step(0)
    assert "least_confidence" in text.render()
    image = picture.render()
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.std() > 0
    assert human.render() is None
    assert "least_confidence" in capsys.readouterr().out
    with pytest.raises(ValueError, match="render_mode"):
        ActiveLearningEnv(render_mode="hologram")


def test_spec_survives_json_and_rebuilds_the_same_environment():
    env = gym.make(IDS[1], strategies=["margin", "uniform"], rounds=2)
    spec = gym.envs.registration.EnvSpec.from_json(env.spec.to_json())
    json.loads(env.spec.to_json())
    assert flat(played(gym.make(spec), 1)) == flat(played(env, 1))


def test_an_unknown_argument_is_refused():
    with pytest.raises(TypeError, match="budgett"):
        gym.make(IDS[0], budgett=3)


def test_ids_are_registered_by_import_alone():
    assert alenv.__version__
    assert set(IDS) <= set(gym.registry)


def test_standard_wrappers_and_vectors_work():
    env = RecordEpisodeStatistics(TimeLimit(gym.make(IDS[0], **SHORT), 2))
    env.reset(seed=0)
    env.step(0)
    *_, truncated, info = env.step(0)
    assert truncated
    assert info["episode"]["l"] == 2
    vector = gym.make_vec(IDS[0], num_envs=2, vectorization_mode="sync", vector_kwargs={}, **SHORT)
    observations, _ = vector.reset(seed=[0, 1])
    assert observations["campaign"].shape == (2, len(CAMPAIGN_FEATURES))
    vector.step(np.array([0, 1]))
    vector.close()
    env.close()
    env.close()


def test_it_can_be_copied_before_the_first_reset():
    env = copy.deepcopy(ActiveLearningEnv(**SHORT))
    assert flat(played(env, 1)) == flat(played(ActiveLearningEnv(**SHORT), 1))


def test_round_zero_models_are_trained_once_per_seed():
    env = ActiveLearningEnv(**SHORT)
    fits = []
    original = env.problem.trainer.fit
    env.problem.trainer.fit = lambda job: fits.append(job) or original(job)
    for _ in range(4):
        env.reset(seed=0)
    assert len(fits) == 1
    env.reset(seed=1)
    assert len(fits) == 2


def test_one_pass_over_the_candidates_serves_all_strategies_and_the_observation():
    env = ActiveLearningEnv(action="mix", **SHORT)
    env.reset(seed=0)
    calls = []
    original = env.problem.trainer.outputs
    env.problem.trainer.outputs = lambda model, inputs: calls.append(len(inputs)) or original(model, inputs)
    env.step(np.zeros(7, np.float32))
    over_the_pool = [size for size in calls if size > 297]  # the others: training, test and validation examples
    assert over_the_pool == [env.problem.pool_size - 40]


@pytest.mark.slow
def test_ppo_and_sac_learn_without_complaint():
    from stable_baselines3 import PPO, SAC

    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pick = gym.make(IDS[0], rounds=3)
        PPO("MultiInputPolicy", pick, n_steps=6, batch_size=6, seed=0, device="cpu").learn(12)
        mix = gym.make(IDS[1], rounds=3)
        SAC("MultiInputPolicy", mix, learning_starts=4, seed=0, device="cpu").learn(8)


def test_an_episode_whose_target_is_met_at_once_ends_with_its_first_step() -> None:
    env = ActiveLearningEnv(stop_accuracy=0.01)
    env.reset(seed=0)
    assert env.step(0)[2]
