"""Imitation of the one-step oracle: ALIL's learner (Liu, Buntine & Haffari, ACL 2018), over strategies."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.vector import AutoresetMode
from jaxtyping import Float
from torch import Tensor

from alenv.agents import StrategyNet, seen
from alenv.env import ActiveLearningEnv
from alenv.families import Family
from alenv.vector_env import ActiveLearningVectorEnv

KEPT = ("campaign", "strategies", "mask", "targets")


class Imitator:
    """Learns which strategy's batch would lead to the best model now.

    In every state the oracle buys, trains and tests with each strategy and takes it back: targets are softmax(accuracy /
    temperature). A coin decides who acts, the oracle or the policy, so that states of both are seen (DAgger: Ross, Gordon &
    Bagnell 2011); all states so far are learned from. S + 1 trainings a step. Reads hidden labels and the test split of the
    training tasks, as simulations may.

    Deviation: ALIL's targets are the best choice alone; these are graded, so that near ties cost little.

    Args:
        problems: one per campaign.
        hidden: width of the net.
        coin: probability that the oracle acts.
        temperature: of the targets, in units of accuracy.
        epochs: passes over all states after each chapter.
        batch_size: states a step.
        learning_rate: of Adam.
    """

    def __init__(
        self, problems: Sequence[Family], hidden: int = 64, coin: float = 0.5, temperature: float = 0.01, epochs: int = 20,
        batch_size: int = 128, learning_rate: float = 1e-3,
    ) -> None:  # fmt: skip
        if not 0 <= coin <= 1 or temperature <= 0:
            raise ValueError(f"imitation: expected coin in [0, 1], temperature > 0, got coin={coin}, temperature={temperature}")
        self.count = max(len(problem.strategies) for problem in problems)
        self.env = ActiveLearningVectorEnv(
            len(problems), problems=problems, autoreset_mode=AutoresetMode.SAME_STEP, max_strategies=self.count
        )
        self.net = StrategyNet(outputs=1, hidden=hidden)
        self.coin, self.temperature, self.epochs, self.batch_size = coin, temperature, epochs, batch_size
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=learning_rate)
        self.states: dict[str, list[Tensor]] = {name: [] for name in KEPT}

    def chapter(self, steps: int, seed: int) -> None:
        """Gather states of campaigns that begin now, then learn from all."""
        observations, _ = self.env.reset(seed=seed)
        for _ in range(steps // self.env.num_envs):
            given = seen(observations, self.count)
            accuracy = torch.stack([looked_ahead(env, self.count) for env in self.env.envs])
            targets = (accuracy / self.temperature).softmax(1)
            for name, value in zip(KEPT, (*given, targets), strict=True):
                self.states[name].append(value)
            with torch.inference_mode():
                policy = self.net(*given)[0][:, :, 0].masked_fill(given.mask == 0, -torch.inf).softmax(1)
            oracle = torch.rand(len(policy), 1) < self.coin
            picks = torch.multinomial(torch.where(oracle, targets, policy), 1)[:, 0]
            observations = self.env.step(picks.numpy().astype(np.int64))[0]
        self._learn()

    def _learn(self) -> None:
        kept = [torch.cat(self.states[name]) for name in KEPT]
        for _ in range(self.epochs):
            for rows in torch.randperm(len(kept[0])).split(self.batch_size):
                campaign, strategies, mask, targets = (values[rows] for values in kept)
                logits = self.net(campaign, strategies, mask)[0][:, :, 0].masked_fill(mask == 0, -1e8)
                loss = F.cross_entropy(logits, targets)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return weights, optimiser and the states seen."""
        states = {name: torch.cat(values) for name, values in self.states.items() if values}
        return {"net": dict(self.net.state_dict()), "optimizer": self.optimizer.state_dict(), "states": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.net.load_state_dict(state["net"])
        moments = {int(key): value for key, value in state["optimizer"]["state"].items()}
        self.optimizer.load_state_dict({**state["optimizer"], "state": moments})
        self.states = {name: [state["states"][name]] if name in state["states"] else [] for name in KEPT}


def looked_ahead(env: ActiveLearningEnv, count: int) -> Float[Tensor, " count"]:
    """Return the test accuracy that each strategy's batch would lead to; minus infinity beyond the last strategy."""
    campaign, problem = env.campaign, env.problem
    jobs = []
    for s in range(len(campaign.strategies)):
        query = campaign.suppose(s)
        jobs.append(campaign.rehearse(query, problem.oracle.label(query.indices)))
    models = problem.trainer.fit_many(jobs)
    found = [problem.trainer.evaluate(model, campaign.task.test)[campaign.task.primary] for model in models]
    return torch.tensor(found + [-torch.inf] * (count - len(found)))
