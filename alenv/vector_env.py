"""Many active-learning campaigns stepped together: one training and one evaluation a step for all of them."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from alenv.env import ActiveLearningEnv, Info, Observation
from alenv.inference import Scores
from alenv.job import Job
from alenv.model import TaskModel
from alenv.observation import observe
from alenv.problem import Problem
from alenv.scoring import Scorer
from alenv.trainer import Trainer

Seeds = int | Sequence[int | None] | None
Step = tuple[float, bool, Info]  # reward, whether the campaign is over, info


class ActiveLearningVectorEnv(VectorEnv[Observation, Any, npt.NDArray[Any]]):
    """E copies of `ActiveLearningEnv` that share their trainings and evaluations.

    Campaign by campaign, observations, rewards and infos are those of E single environments with the same seeds, bit by bit on
    CPU. Campaigns may differ in seed (and so in initial set and splits) and, given `problems`, in everything but the action kind.

    `reset(seed=s)` gives campaign i the seed s + i; a list gives each its own. `metadata["autoreset_mode"]` says what follows the
    end of a campaign (Gymnasium's modes): NEXT_STEP (default) ignores the next action and returns the new campaign's first
    observation with reward 0; SAME_STEP returns that observation at once, the last one being `infos["final_obs"]`; DISABLED waits
    for `reset(options={"reset_mask": ...})`.

    Args:
        num_envs: E.
        problems: ready problems, one per campaign or one for all, instead of all that describes one. Those with fewer
            strategies than the largest get masks (`infos["action_mask"]`, observation `mask`): "pick" must respect them, "mix"
            ignores what exceeds.
        autoreset_mode: see above.
        render_mode: of the single environments.
        max_strategies: S_max of the observations.
        arguments: of `ActiveLearningEnv`.

    Attributes:
        envs: the single environments; `envs[i].ballot` and `envs[i].campaign` hold what infos do not.
    """

    def __init__(
        self, num_envs: int = 1, *, problems: Problem | Sequence[Problem] | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP, render_mode: str | None = None, max_strategies: int = 64,
        **arguments: Any,
    ) -> None:  # fmt: skip
        if num_envs < 1:
            raise ValueError(f"expected num_envs >= 1, got {num_envs}")
        first = ActiveLearningEnv(**arguments).problem if problems is None else None
        given = (
            [first or problems] * num_envs
            if isinstance(first or problems, Problem)
            else list(cast("Sequence[Problem]", problems))
        )
        if len(given) != num_envs:
            raise ValueError(f"expected one problem, or one per campaign ({num_envs}), got {len(given)}")
        self.num_envs, self.render_mode = num_envs, render_mode
        peek = bool(arguments.get("peek", False))
        self.envs = [
            ActiveLearningEnv(problem=_own(problem), render_mode=render_mode, max_strategies=max_strategies, peek=peek)
            for problem in cast("list[Problem]", given)
        ]
        self.metadata = ActiveLearningEnv.metadata | {"autoreset_mode": AutoresetMode(autoreset_mode)}
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = _widest(self.envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._over = np.zeros(num_envs, dtype=np.bool_)
        self._scorer = Scorer()

    @property
    def num_strategies(self) -> int:
        """S, of the problem with the most strategies."""
        return max(len(env.problem.strategies) for env in self.envs)

    def reset(self, *, seed: Seeds = None, options: dict[str, Any] | None = None) -> tuple[Observation, Info]:
        """Begin all campaigns, or those of `options["reset_mask"]` (bool, (E,)); the others then stay as they are."""
        options = dict(options or {})
        mask = _checked(options.pop("reset_mask", np.ones(self.num_envs, dtype=np.bool_)), self.num_envs)
        seeds = _seeds(seed, self.num_envs)
        lanes = np.flatnonzero(mask).tolist()
        infos = self._begin(lanes, [seeds[lane] for lane in lanes], options)
        self._over[lanes] = False
        return self._observed(range(self.num_envs)), self._infos(lanes, infos)

    def step(
        self, actions: Any
    ) -> tuple[Observation, npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], Info]:
        """Buy one batch in every campaign, train all of them together, and return what single environments would."""
        if len(actions) != self.num_envs:
            raise ValueError(f"expected one action per campaign ({self.num_envs}), got {len(actions)}")
        mode = self.metadata["autoreset_mode"]
        if mode == AutoresetMode.DISABLED and self._over.any():
            raise ValueError(
                f"campaigns {np.flatnonzero(self._over).tolist()} are over; reset them first (options['reset_mask'])"
            )
        over = np.flatnonzero(self._over).tolist()
        going = np.flatnonzero(~self._over).tolist()
        steps: dict[int, Step] = dict(zip(going, self._advance(going, [actions[lane] for lane in going]), strict=True))
        steps |= {lane: (0.0, False, info) for lane, info in self._restarted(over)}
        ended = [lane for lane in going if steps[lane][1]]
        self._over[:] = False
        final: Info = {}
        if mode == AutoresetMode.SAME_STEP:
            final = self._final({lane: steps[lane] for lane in ended})
            for lane, info in self._restarted(ended):
                steps[lane] = (*steps[lane][:2], info)
        else:
            self._over[ended] = True
        rewards, terminated, infos = zip(*(steps[lane] for lane in range(self.num_envs)), strict=True)
        return (
            self._observed(range(self.num_envs)), np.array(rewards, dtype=np.float64), np.array(terminated, dtype=np.bool_),
            np.zeros(self.num_envs, dtype=np.bool_), self._infos(range(self.num_envs), infos) | final,
        )  # fmt: skip

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Return (E, S): which strategies may be picked in each campaign."""
        size = self.num_strategies
        return np.stack([_padded(env.action_masks(), size) for env in self.envs])

    def render(self) -> tuple[Any, ...] | None:
        """Return what every single environment renders."""
        return None if self.render_mode is None else tuple(env.render() for env in self.envs)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return the attribute `name` of every single environment, or what its method returns."""
        found = [env.get_wrapper_attr(name) for env in self.envs]
        return tuple(value(*args, **kwargs) if callable(value) else value for value in found)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return the attribute `name` of every single environment."""
        return self.call(name)

    def close_extras(self, **kwargs: Any) -> None:
        """Close the single environments."""
        del kwargs
        for env in self.envs:
            env.close()

    def _begin(self, lanes: Sequence[int], seeds: Iterable[int | None], options: dict[str, Any]) -> list[Info]:
        asked = [self.envs[lane].begin(seed=seed, options=options) for lane, seed in zip(lanes, seeds, strict=True)]
        fresh = [(lane, job) for lane, (job, model) in zip(lanes, asked, strict=True) if model is None]
        fitted = dict(zip([lane for lane, _ in fresh], self._fit(fresh), strict=True))
        models = [fitted[lane] if model is None else model for lane, (_, model) in zip(lanes, asked, strict=True)]
        scores = self._score(lanes, models)
        return [self.envs[lane].begun(model, score) for lane, model, score in zip(lanes, models, scores, strict=True)]

    def _observed(self, lanes: Sequence[int]) -> Observation:
        """Return the observations of some campaigns, one row each."""
        return observe([self.envs[lane].campaign for lane in lanes], self.envs[0].max_strategies)

    def _restarted(self, lanes: Sequence[int]) -> list[tuple[int, Info]]:
        return list(zip(lanes, self._begin(lanes, [None] * len(lanes), {}), strict=True))

    def _advance(self, lanes: Sequence[int], actions: Sequence[Any]) -> list[Step]:
        jobs = [(lane, self.envs[lane].ask(self._own_action(lane, action))) for lane, action in zip(lanes, actions, strict=True)]
        models = self._fit(jobs)
        scores = self._score(lanes, models)
        return [self.envs[lane].answered(model, score) for lane, model, score in zip(lanes, models, scores, strict=True)]

    def _fit(self, jobs: Sequence[tuple[int, Job]]) -> list[Any]:
        """Train the models of some campaigns, those of one trainer at once."""
        trainers: dict[int, tuple[Trainer, list[int]]] = {}
        for at, (lane, _) in enumerate(jobs):
            trainer = self.envs[lane].problem.trainer
            trainers.setdefault(id(trainer), (trainer, []))[1].append(at)
        models: list[Any] = [None] * len(jobs)
        for trainer, places in trainers.values():
            for at, model in zip(places, trainer.fit_many([jobs[at][1] for at in places]), strict=True):
                models[at] = model
        return models

    def _score(self, lanes: Sequence[int], models: Sequence[TaskModel]) -> list[Scores | None]:
        envs = [self.envs[lane] for lane in lanes]
        return self._scorer(models, [env.campaign for env in envs], [env.problem for env in envs])

    def _own_action(self, lane: int, action: Any) -> Any:
        space = self.envs[lane].action_space
        return action[: space.shape[0]] if isinstance(space, spaces.Box) and space.shape else action

    def _infos(self, lanes: Iterable[int], infos: Sequence[Info]) -> Info:
        """Return one array per key, and under "_key" which campaigns it holds for."""
        lanes, size = list(lanes), self.num_strategies
        made: Info = {}
        for key in infos[0] if infos else ():
            values = np.array([_padded(info[key], size) if key == "action_mask" else info[key] for info in infos])
            whole = np.zeros((self.num_envs, *values.shape[1:]), dtype=values.dtype)
            whole[lanes] = values
            present = np.zeros(self.num_envs, dtype=np.bool_)
            present[lanes] = True
            made |= {key: whole, f"_{key}": present}
        return made

    def _final(self, steps: dict[int, Step]) -> Info:
        """Return the last observations and infos of campaigns that have just ended, in Gymnasium's form."""
        if not steps:
            return {}
        lanes = list(steps)
        last = np.full(self.num_envs, None, dtype=object)
        observed = self._observed(lanes)
        for place, lane in enumerate(lanes):
            last[lane] = {name: values[place] for name, values in observed.items()}
        present = np.zeros(self.num_envs, dtype=np.bool_)
        present[lanes] = True
        infos = self._infos(lanes, [info for *_, info in steps.values()])
        return {"final_obs": last, "_final_obs": present, "final_info": infos, "_final_info": present.copy()}


def _own(problem: Problem) -> Problem:
    """Return `problem` with an oracle and strategies of its own: these have state."""
    return replace(problem, oracle=copy.deepcopy(problem.oracle), strategies=copy.deepcopy(dict(problem.strategies)))


def _widest(envs: Sequence[ActiveLearningEnv]) -> gymnasium.Space[Any]:
    kinds = {env.problem.plan.action for env in envs}
    if len(kinds) > 1 or not kinds <= {"pick", "mix"}:
        raise ValueError(f"expected problems of one action kind, pick or mix, got {', '.join(sorted(kinds))}")
    return max(envs, key=lambda env: len(env.problem.strategies)).action_space


def _seeds(seed: Seeds, count: int) -> list[int | None]:
    if seed is None or isinstance(seed, int):
        return [None if seed is None else seed + i for i in range(count)]
    if len(seed) != count:
        raise ValueError(f"expected one seed per campaign ({count}), got {len(seed)}")
    return list(seed)


def _padded(mask: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    return np.pad(mask, (0, size - len(mask))) if len(mask) < size else mask


def _checked(mask: Any, count: int) -> npt.NDArray[np.bool_]:
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (count,) or not mask.any():
        raise ValueError(f"expected options['reset_mask'] to be a bool array of shape ({count},) with a True, got {mask!r}")
    return mask
