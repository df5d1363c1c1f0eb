"""Stable-Baselines3 on many campaigns: the `VecEnv` contract, against its own `DummyVecEnv`, and its agents."""

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from alenv.env import ActiveLearningEnv
from alenv.sb3 import ActiveLearningVecEnv, vec_env
from alenv.streams import Streams
from alenv.vector_env import ActiveLearningVectorEnv

SHORT = {"rounds": 2, "strategies": ["margin", "uniform"]}


def plain(value):
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else np.asarray(value).tolist()


def test_every_number_equals_that_of_their_own_loop_over_environments():
    ours, theirs = vec_env(2, **SHORT), DummyVecEnv([lambda: ActiveLearningEnv(**SHORT) for _ in range(2)])
    ours.seed(3)
    theirs.seed(3)
    assert plain(ours.reset()) == plain(theirs.reset())
    assert plain(ours.reset_infos) == plain(theirs.reset_infos)
    for actions in ([0, 1], [1, 1], [0, 0]):
        mine, twin = ours.step(np.array(actions)), theirs.step(np.array(actions))
        assert plain(list(mine)) == plain(list(twin))
        assert mine[1].dtype == twin[1].dtype
        assert plain(ours.reset_infos) == plain(theirs.reset_infos)


def test_the_last_observation_of_a_campaign_travels_in_its_info():
    env = vec_env(2, **SHORT)
    env.seed(0)
    env.reset()
    env.step(np.array([0, 0]))
    observations, _, done, infos = env.step(np.array([0, 0]))
    assert done.all()
    for lane, info in enumerate(infos):
        assert info["terminal_observation"]["campaign"][0] == 1
        assert observations["campaign"][lane, 0] == 0
        assert info["labels"] == 60
        assert info["TimeLimit.truncated"] is False


def test_attributes_and_methods_of_single_campaigns_can_be_reached():
    env = vec_env(3, **SHORT)
    env.reset()
    assert [mask.tolist() for mask in env.env_method("action_masks", indices=[0, 2])] == [[True, True]] * 2
    assert env.has_attr("action_masks")
    assert not env.has_attr("no_such_thing")
    env.set_attr("note", 4, indices=1)
    assert env.get_attr("note", indices=[1]) == [4]
    assert env.env_is_wrapped(VecMonitor) == [False] * 3
    env.close()


def test_a_vector_environment_that_resets_later_is_refused():
    with pytest.raises(ValueError, match="wants autoreset_mode=SameStep, got NextStep"):
        ActiveLearningVecEnv(ActiveLearningVectorEnv(1, **SHORT))


def test_their_agents_learn_on_it():
    from stable_baselines3 import PPO

    with Streams(0).scoped("test"):
        agent = PPO("MultiInputPolicy", VecMonitor(vec_env(2, **SHORT)), n_steps=4, batch_size=8, n_epochs=1, device="cpu")
        agent.learn(8)
    assert len(agent.ep_info_buffer) == 4
    assert all(parameter.isfinite().all() for parameter in agent.policy.parameters())


def test_masks_reach_agents_that_respect_them():
    contrib = pytest.importorskip("sb3_contrib")
    from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported

    env = vec_env(2, **SHORT)
    assert is_masking_supported(env)
    assert get_action_masks(env).tolist() == [[True, True]] * 2
    with Streams(0).scoped("test"), torch.no_grad():
        contrib.MaskablePPO("MultiInputPolicy", env, n_steps=4, batch_size=8, device="cpu")
