"""Trains policies over strategies on many campaigns: chapters of steps, each a function of the seed and of what came before.

A chapter begins with fresh campaigns and fresh randomness and ends with an evaluation and a checkpoint; so a training that was
killed repeats the chapter it was in and goes on as if nothing had happened, bit by bit on CPU.
"""

import json
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from alenv.agents import OUTPUTS, Agent, StrategyNet, save_agent, seen
from alenv.campaign import Plan
from alenv.checkpoint import load_state, save_state
from alenv.durable import append_lines, rewrite_lines, write_atomically
from alenv.families import Family, families
from alenv.imitation import Imitator
from alenv.record import area_under_curve
from alenv.rundir import RunDirectory, config_hash
from alenv.runner import versions
from alenv.sb3 import vec_env
from alenv.sb3_policies import MixPolicy, PickPolicy, ValuePolicy, masked_pick_policy
from alenv.streams import Streams
from alenv.vector_env import ActiveLearningVectorEnv

LEFT = ("agent.safetensors", "agent.json", "best.safetensors", "best.json", "evaluations.jsonl")


class Listener:
    """Hears what happens in a training."""

    def begin(self, total: int, done: int) -> None:
        """A training of `total` steps goes on after `done` of them."""

    def step(self, done: int) -> None:
        """So many steps are done."""

    def chapter(self, row: Mapping[str, float]) -> None:
        """A chapter is finished and on disk."""

    def close(self) -> None:
        """The training stops here."""


class Learner(Protocol):
    """What a chapter trains."""

    @property
    def net(self) -> StrategyNet:
        """What a selector needs of the policy."""

    def chapter(self, steps: int, seed: int) -> None:
        """Learn for so many steps, on campaigns that begin now; global generators are seeded already."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""


class AgentTrainer:
    """One training, in a run directory of its own.

    Args:
        config: the keys of `configs/train_agent.yaml`.
        directory: the run directory: `agent.*` and `best.*` (by evaluation), `evaluations.jsonl`, `checkpoint/`, `summary.json`,
            TensorBoard.
        listeners: who hears of it.
        command: what to note as the command that made the agent.
    """

    def __init__(
        self, config: Mapping[str, Any], directory: str | Path, listeners: Sequence[Listener] = (), command: str = ""
    ) -> None:
        self.config, self.listeners, self.command = dict(config), tuple(listeners), command
        self.algorithm = str(config["algorithm"])
        if self.algorithm not in OUTPUTS:
            raise ValueError(f"expected algorithm to be one of {', '.join(OUTPUTS)}, got '{self.algorithm}'")
        for name in ("steps", "envs", "chapter"):
            if not isinstance(config[name], int) or config[name] < 1:
                raise ValueError(f"expected {name} to be a whole number >= 1, got {config[name]!r}")
        self.streams = Streams(config["seed"])
        self.plan = Plan(**config["budget"], action="mix" if self.algorithm == "sac" else "pick")
        self.problems = self._problems(config["tasks"], config["envs"])
        held = config["evaluation"]
        self.trials = self._problems(held["tasks"] or config["tasks"], held["campaigns"]) if held["campaigns"] else []
        self.writer = Scalars()
        with self.streams.scoped("agent/init"):
            self.learner = self._learner()
        self.directory = RunDirectory(directory, self.config, bool(config.get("fresh")))

    def run(self) -> dict[str, Any]:
        """Train to the end, or from where an earlier process stopped; return the summary."""
        with self.directory.locked():
            if self.config.get("fresh"):
                for name in LEFT:
                    (self.directory.path / name).unlink(missing_ok=True)
            self.directory.prepare()
            if self.directory.summary.exists():
                return json.loads(self.directory.summary.read_text(encoding="utf-8"))
            try:
                return self._run()
            finally:
                for listener in self.listeners:
                    listener.close()

    def _run(self) -> dict[str, Any]:
        state: dict[str, Any] = {"chapter": 0, "steps": 0, "rows": [], "seconds": 0.0, "random_area": None}
        if self.directory.checkpoint.exists():
            state = load_state(self.directory.checkpoint)
            self.learner.load_state_dict(state["learner"])
        rewrite_lines(self._evaluations, state["rows"])
        self.writer.open(self.directory.path, state["steps"])
        if state["random_area"] is None:
            state["random_area"] = self._evaluate(None) if self.trials else 0.0
        for listener in self.listeners:
            listener.begin(self.config["steps"], state["steps"])
        with closing(self.writer):
            while state["steps"] < self.config["steps"]:
                self._chapter(state)
        summary = {key: state[key] for key in ("steps", "seconds", "random_area")} | {
            "final": state["rows"][-1], "best": self._best(state["rows"]), "config_hash": config_hash(self.config),
            "versions": versions(),
        }  # fmt: skip
        write_atomically(self.directory.summary, json.dumps(summary, indent=2, allow_nan=False) + "\n")
        return summary

    def _chapter(self, state: dict[str, Any]) -> None:
        start = time.perf_counter()
        steps = min(self.config["chapter"], self.config["steps"] - state["steps"])
        steps = -(-steps // self._rollout) * self._rollout
        with self.streams.scoped("agent/chapter", state["chapter"]):
            self.learner.chapter(steps, self.streams.key("agent/campaigns", state["chapter"]) % 2**31)
        state["chapter"] += 1
        state["steps"] += steps
        row = {"steps": state["steps"]}
        if self.trials:
            area = self._evaluate(self.learner.net)
            row |= {"area": area, "over_random": area - state["random_area"]}
        state["seconds"] += time.perf_counter() - start
        row["seconds"] = round(state["seconds"], 1)
        state["rows"].append(row)
        self.writer.scalars({f"evaluation/{key}": value for key, value in row.items() if key != "steps"}, state["steps"])
        agent = Agent(self.learner.net, self.algorithm, self._made(state, row))
        save_agent(self.directory.path / "agent.safetensors", agent)
        if self._best(state["rows"]) is row:
            save_agent(self.directory.path / "best.safetensors", agent)
        append_lines(self._evaluations, [row])
        save_state(self.directory.checkpoint, {**state, "learner": self.learner.state_dict()})
        for listener in self.listeners:
            listener.chapter(row)

    @property
    def _evaluations(self) -> Path:
        return self.directory.path / "evaluations.jsonl"

    @property
    def _rollout(self) -> int:
        """Steps of all campaigns from beginning to end: chapters are multiples of it."""
        return self.config["envs"] * self.plan.rounds * (ROLLOUT if self.algorithm in ("ppo", "maskable_ppo") else 1)

    def _problems(self, specs: Any, count: int) -> list[Family]:
        given = {key: self.config[key] for key in ("validation", "reward", "net", "trainer", "device", "setting")}
        return families(specs, self.config["strategies"], count, self.plan, self.config["seed"], self.config["subset"], **given)

    def _learner(self) -> Learner:
        if self.algorithm == "imitation":
            return Imitator(self.problems, self.config["hidden"], **(self.config["learner"] or {}))
        env = VecMonitor(vec_env(len(self.problems), problems=self.problems, max_strategies=self._width(self.problems)))
        return Sb3Learner(self.algorithm, env, self.plan, self.config, self.writer, self._told)

    def _told(self, done: int) -> None:
        for listener in self.listeners:
            listener.step(done)

    @staticmethod
    def _width(problems: Sequence[Family]) -> int:
        return max(len(problem.strategies) for problem in problems)

    def _evaluate(self, net: StrategyNet | None) -> float:
        """Return the mean area under the validation curve of campaigns that never train the policy; None acts at random."""
        envs = ActiveLearningVectorEnv(
            len(self.trials), problems=self.trials, autoreset_mode=AutoresetMode.DISABLED,
            max_strategies=self._width(self.trials),
        )  # fmt: skip
        draw = np.random.default_rng(self.streams.key("agent/evaluation/random"))
        observations, _ = envs.reset(seed=[self.streams.key("agent/evaluation", lane) % 2**31 for lane in range(envs.num_envs)])
        for _ in range(self.plan.rounds):
            observations = envs.step(greedy(net, observations, envs.num_strategies, self.plan.action, draw))[0]
        areas = [
            area_under_curve([r.bought for r in env.campaign.records], [r.validation or 0.0 for r in env.campaign.records])
            for env in envs.envs
        ]
        return float(np.mean(areas))

    def _made(self, state: Mapping[str, Any], row: Mapping[str, float]) -> dict[str, Any]:
        return {
            "command": self.command, "config": self.directory.config, "steps": state["steps"], "seconds": row["seconds"],
            "evaluation": {**row, "random_area": state["random_area"]}, "versions": versions(),
        }  # fmt: skip

    @staticmethod
    def _best(rows: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
        return max(rows, key=lambda row: row.get("area", row["steps"]))


def greedy(
    net: StrategyNet | None, observations: Mapping[str, Any], count: int, action: str, draw: np.random.Generator
) -> npt.NDArray[Any]:
    """Return what a policy does in many campaigns: its likeliest picks, or its mean mixtures; at random without a net."""
    given = seen(observations, count)
    scores = torch.zeros_like(given.mask)
    if net is not None:
        with torch.inference_mode():
            scores = net(*given)[0][:, :, 0]
    if action == "mix":
        return scores.tanh().numpy()
    scores = scores.masked_fill(given.mask == 0, -torch.inf)
    lots = torch.from_numpy(draw.random(scores.shape))
    return torch.where(scores == scores.amax(1, keepdim=True), lots, -1.0).argmax(1).numpy()


ROLLOUT = 2  # campaigns per lane in PPO's rollouts


def defaults(algorithm: str, plan: Plan, envs: int, steps: int) -> dict[str, Any]:
    """Return parameters of a Stable-Baselines3 class that suit campaigns: short, with small rewards, all of one length."""
    if algorithm in ("ppo", "maskable_ppo"):
        size = envs * plan.rounds * ROLLOUT
        return {
            "n_steps": plan.rounds * ROLLOUT, "batch_size": max(2, size // 2 if size % 2 == 0 else size), "n_epochs": 8,
            "learning_rate": 1e-3, "gamma": 0.9, "gae_lambda": 0.9, "ent_coef": 0.002,
        }  # fmt: skip
    common = {"buffer_size": max(steps, 1000), "learning_starts": min(1000, steps // 5), "gamma": 0.9, "batch_size": 64}
    if algorithm == "dqn":
        return common | {
            "learning_rate": 1e-3, "train_freq": 1, "gradient_steps": max(1, envs // 4), "target_update_interval": max(500, envs),
            "exploration_fraction": 0.5, "exploration_final_eps": 0.05,
        }  # fmt: skip
    return common | {"learning_rate": 1e-3, "train_freq": 1, "gradient_steps": max(1, envs // 4), "ent_coef": 0.01}


class Sb3Learner:
    """An algorithm of Stable-Baselines3 whose every chapter can be repeated."""

    def __init__(self, algorithm: str, env: VecEnv, plan: Plan, config: Mapping[str, Any], writer: "Scalars", told: Any) -> None:
        parameters = defaults(algorithm, plan, env.num_envs, config["steps"]) | dict(config["learner"] or {})
        made, policy = classes(algorithm)
        try:
            self.model: BaseAlgorithm = made(
                policy, env, policy_kwargs={"hidden": config["hidden"]}, device="cpu", seed=config["seed"], **parameters
            )
        except TypeError as error:
            raise ValueError(f"learner: {error}") from error
        self.model.set_logger(Logger(None, [writer]))
        self.total, self.told = config["steps"], told
        if isinstance(self.model, DQN):
            schedule = self.model.exploration_schedule
            self.model.exploration_schedule = lambda _: schedule(max(0.0, 1 - self.model.num_timesteps / self.total))

    @property
    def net(self) -> StrategyNet:
        """What a selector needs."""
        return self.model.policy.agent

    def chapter(self, steps: int, seed: int) -> None:
        """Learn on campaigns that begin now."""
        self.model.set_random_seed(seed)
        self.model._last_obs = None
        self.model.ep_info_buffer, self.model.ep_success_buffer = deque(maxlen=100), deque(maxlen=100)
        self.model.learn(steps, callback=_Steps(self.told), reset_num_timesteps=False)

    def state_dict(self) -> dict[str, Any]:
        """Return weights, optimisers, counters and the replay buffer."""
        modules, tensors = self.model._get_torch_save_params()
        state: dict[str, Any] = {name: dict(_reached(self.model, name).state_dict()) for name in modules}
        state |= {name: _reached(self.model, name).data for name in tensors}
        state["counters"] = {name: getattr(self.model, name) for name in COUNTERS if hasattr(self.model, name)}
        if isinstance(self.model, OffPolicyAlgorithm):
            state["replay"] = _replay(self.model.replay_buffer)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        modules, tensors = self.model._get_torch_save_params()
        for name in modules:
            _reached(self.model, name).load_state_dict(_numbered(state[name]))
        for name in tensors:
            _reached(self.model, name).data.copy_(state[name])
        for name, value in state["counters"].items():
            setattr(self.model, name, value)
        if isinstance(self.model, OffPolicyAlgorithm):
            _refill(self.model.replay_buffer, state["replay"])


COUNTERS = ("num_timesteps", "_n_updates", "_n_calls", "_episode_num")
ARRAYS = ("actions", "rewards", "dones", "timeouts")


def classes(algorithm: str) -> tuple[Any, Any]:
    """Return an algorithm's class and its policy's.

    Raises:
        ValueError: what holds it is not installed.
    """
    if algorithm == "maskable_ppo":
        try:
            from sb3_contrib import MaskablePPO
        except ImportError as error:
            raise ValueError('algorithm=maskable_ppo needs sb3-contrib; pip install "alenv[rl]"') from error
        return MaskablePPO, masked_pick_policy()
    return {"ppo": (PPO, PickPolicy), "dqn": (DQN, ValuePolicy), "sac": (SAC, MixPolicy)}[algorithm]


class Scalars(KVWriter):
    """Stable-Baselines3's logs in TensorBoard; a training that goes on purges what came after its checkpoint."""

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None

    def open(self, directory: Path, steps: int) -> None:
        """Write into `directory`, from `steps` on."""
        self._writer = SummaryWriter(str(directory), purge_step=steps + 1 if steps else None)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        """Write numbers of Stable-Baselines3, times apart."""
        numbers = {k: float(v) for k, v in key_values.items() if isinstance(v, int | float | np.number) and k[:5] != "time/"}
        self.scalars(numbers, step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers by name."""
        assert self._writer is not None
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


class _Steps(BaseCallback):
    """Tells how far a chapter is."""

    def __init__(self, told: Any) -> None:
        super().__init__()
        self.told = told

    def _on_step(self) -> bool:
        self.told(self.num_timesteps)
        return True


def _reached(model: Any, name: str) -> Any:
    for part in name.split("."):
        model = getattr(model, part)
    return model


def _numbered(state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimiser's state with numbers for keys again, as they were before they were saved."""
    if "param_groups" not in state:
        return state
    return {**state, "state": {int(key): value for key, value in state["state"].items()}}


def _replay(buffer: Any) -> dict[str, Any]:
    filled = buffer.buffer_size if buffer.full else buffer.pos
    kept: dict[str, Any] = {name: torch.from_numpy(getattr(buffer, name)[:filled]) for name in ARRAYS}
    kept |= {f"{which}/{key}": torch.from_numpy(values[:filled]) for which, key, values in _observed(buffer)}
    return {"arrays": kept, "pos": buffer.pos, "full": buffer.full}


def _refill(buffer: Any, state: dict[str, Any]) -> None:
    arrays: dict[str, Tensor] = state["arrays"]
    for name in ARRAYS:
        getattr(buffer, name)[: len(arrays[name])] = arrays[name].numpy()
    for which, key, values in _observed(buffer):
        values[: len(arrays[f"{which}/{key}"])] = arrays[f"{which}/{key}"].numpy()
    buffer.pos, buffer.full = state["pos"], state["full"]


def _observed(buffer: Any) -> Iterator[tuple[str, str, npt.NDArray[Any]]]:
    for which in ("observations", "next_observations"):
        for key, values in getattr(buffer, which).items():
            yield which, key, values
