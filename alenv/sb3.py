"""Campaigns for Stable-Baselines3: `VecEnv` over `ActiveLearningVectorEnv`."""

from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv

from alenv.vector_env import ActiveLearningVectorEnv

Indices = int | Iterable[int] | None


class ActiveLearningVecEnv(VecEnv):
    """E campaigns as Stable-Baselines3 takes them: a campaign that ends is replaced at once.

    Observations are dicts of (E, ...) arrays; `infos[i]` holds what the single environment says, `TimeLimit.truncated`, and
    after the last step `terminal_observation`. `env_method("action_masks")` serves MaskablePPO.

    Args:
        venv: its `autoreset_mode` must be SAME_STEP; see `vec_env`.
    """

    def __init__(self, venv: ActiveLearningVectorEnv) -> None:
        if venv.metadata["autoreset_mode"] != AutoresetMode.SAME_STEP:
            mode = venv.metadata["autoreset_mode"].value
            raise ValueError(f"Stable-Baselines3 wants autoreset_mode=SameStep, got {mode}; use alenv.sb3.vec_env")
        self.venv = venv
        self._actions: Any = None
        super().__init__(venv.num_envs, venv.single_observation_space, venv.single_action_space)

    def reset(self) -> dict[str, npt.NDArray[Any]]:
        """Begin all campaigns, with the seeds of `seed()` if it was called."""
        observations, infos = self.venv.reset(seed=self._seeds)
        self.reset_infos = _per_env(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Remember the actions."""
        self._actions = actions

    def step_wait(self) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[Any], npt.NDArray[Any], list[dict[str, Any]]]:
        """Step all campaigns."""
        observations, rewards, terminated, truncated, found = self.venv.step(self._actions)
        last, last_info = found.pop("final_obs", None), found.pop("final_info", {})
        infos = _per_env(found, self.num_envs)
        done = terminated | truncated
        for lane, final in zip(np.flatnonzero(done), _per_env(last_info, self.num_envs, done), strict=True):
            self.reset_infos[lane] = infos[lane]
            infos[lane] = final | {"terminal_observation": last[lane]}
        for info, cut, end in zip(infos, truncated, terminated, strict=True):
            info["TimeLimit.truncated"] = bool(cut and not end)
        return observations, rewards.astype(np.float32), done, infos

    def close(self) -> None:
        """Close the environments."""
        self.venv.close()

    def get_images(self) -> Sequence[npt.NDArray[np.uint8] | None]:
        """Return the learning curves."""
        return self.venv.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """Return an attribute of single environments."""
        return [env.get_wrapper_attr(attr_name) for env in self._chosen(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute of single environments."""
        for env in self._chosen(indices):
            setattr(env, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any) -> list[Any]:
        """Call a method of single environments; `action_masks` is as wide as the action space."""
        if method_name == "action_masks":
            masks = self.venv.action_masks()
            return [masks[lane] for lane in self._get_indices(indices)]
        return [env.get_wrapper_attr(method_name)(*method_args, **method_kwargs) for env in self._chosen(indices)]

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: Indices = None) -> list[bool]:
        """Return False for each: campaigns are stepped together, so nothing wraps a single one."""
        del wrapper_class
        return [False for _ in self._get_indices(indices)]

    def _chosen(self, indices: Indices) -> list[Any]:
        return [self.venv.envs[lane] for lane in self._get_indices(indices)]


def vec_env(num_envs: int, **arguments: Any) -> ActiveLearningVecEnv:
    """Return `num_envs` campaigns for Stable-Baselines3; `arguments` as of `ActiveLearningVectorEnv`."""
    return ActiveLearningVecEnv(ActiveLearningVectorEnv(num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **arguments))


def _per_env(infos: dict[str, Any], count: int, mask: npt.NDArray[np.bool_] | None = None) -> list[dict[str, Any]]:
    """Return one dict of plain values per campaign (per chosen one)."""
    lanes = range(count) if mask is None else np.flatnonzero(mask)
    keys = [key for key in infos if not key.startswith("_")]
    return [
        {key: value.item() if np.ndim(value := infos[key][lane]) == 0 else value for key in keys if infos[f"_{key}"][lane]}
        for lane in lanes
    ]
