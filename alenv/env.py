"""One active-learning campaign as a Gymnasium environment."""

import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from alenv.ballot import Ballot
from alenv.campaign import ActionKind, Campaign, Plan, Query
from alenv.inference import Scores
from alenv.job import Job
from alenv.mixing import Mixing
from alenv.model import TaskModel
from alenv.observation import CAMPAIGN_FEATURES, STRATEGY_FEATURES, observe
from alenv.oracle import SimulatedOracle, charge
from alenv.problem import Problem, assemble
from alenv.record import Record
from alenv.render import curve_image, table_text

Info = dict[str, Any]
Observation = dict[str, npt.NDArray[np.float32]]
Buy = Callable[[Query], tuple[Query, list[int | None], float]]
ROUND0_MODELS = 8  # how many round-0 models are kept: checkers and evaluations reset to the same seeds again and again


class ActiveLearningEnv(gymnasium.Env[Observation, Any]):
    """Choose query strategies, round after round, until the label budget is spent.

    ## Action Space
    `Pick-v0`: `Discrete(S)`, one of the S candidate strategies. `Mix-v0`: `Box(-1, 1, (S,))`, weights are softmax(10 x action).
    `SampleMix-v0`: `Box(-1, 1, (N, S))`, such weights for every pool sample; bought are the samples with the highest
    weighted sum of the strategies' votes (AutoAL's query rule). `SampleDraw-v0`: `Box(-1, 1, (N, S))`, exp(10 x action) is the
    mass each strategy puts on each sample, none at exactly -1; samples are drawn in proportion, without replacement.

    ## Observation Space
    A `Dict` of float32 boxes in [-1, 1] that mean the same on every data set: `campaign` (F,), `strategies` (S_max x G,),
    the rows of an (S_max, G) table one after the other (Stable-Baselines3 wants vectors), and `mask` (S_max,), 1 where
    there is a strategy. No feature runs a strategy. `campaign`, in order: {campaign}. A row of `strategies`, in order:
    {strategies}.

    ## Rewards
    Named by `reward`; the default is the change of accuracy on the validation split. Test labels never enter.

    ## Starting State
    A random initial set is bought and a model is trained on it: a function of the seed alone, the same for every action kind.

    ## Episode End
    Terminates when the budget is spent, the pool is empty, or `stop_accuracy` is reached on validation. Never truncates.

    ## Information
    `round`, `labels`, `bought`, `cost`, `validation` (-1 without the split), `action_mask` (int8, (S,)). The attributes
    `ballot`, `query` (the last purchase) and `campaign` hold the rest.

    ## Arguments
    dataset, setting, net, trainer, strategies, reward, oracle: names as on the command line (or mappings with `name` and
    parameters). action: "pick", "mix", "sample_mix" or "sample_draw". mixing: how weights become a batch, "quota", "slots" or
    "blend". votes: r of "sample_mix". shares: its strategies buy shares of the batch. initial, batch, rounds: the budget.
    validation: size or share of the validation split. draws: T. stop_accuracy: see above. device: "cpu", "cuda", "auto".
    max_strategies: S_max. render_mode: see `render`. problem: a ready `Problem` instead of all that describes one (not
    JSON-able). directory: where oracles may keep files. peek: allow a reward that reads test labels (upper lines in
    simulation). features: encoders by the name strategies ask for, such as `semantic: simclr`.

    ## Version History
    v0: first.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array", "human"], "render_fps": 2}  # noqa: RUF012 - Gymnasium's own form

    def __init__(
        self, dataset: Any = "digits", setting: str = "standard", net: Any = "linear", trainer: Any = "default",
        strategies: Any = "autoal7", action: ActionKind = "pick", mixing: Mixing = "quota", votes: float = 2.0,
        shares: bool = False, initial: int = 20, batch: int = 20, rounds: int = 15, validation: float | int | None = None,
        reward: Any = "gain", oracle: Any = "simulated", draws: int = 10, stop_accuracy: float | None = None, device: str = "cpu",
        max_strategies: int = 64, render_mode: str | None = None, problem: Problem | None = None, directory: str | None = None,
        peek: bool = False, features: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        plan = Plan(initial, batch, rounds, action, mixing, votes, shares, draws, stop_accuracy)
        self.problem = problem or assemble(
            dataset=dataset, setting=setting, net=net, trainer=trainer, strategies=strategies, plan=plan, reward=reward,
            oracle=oracle, device=device, validation=validation, features=features,
        )  # fmt: skip
        if self.problem.reward.access == "test" and not peek:
            raise ValueError(
                f"reward {type(self.problem.reward).__name__} reads test labels: results would be worth nothing; choose another "
                "reward, or an oracle selector (peek=True says that this is one)"
            )
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"expected render_mode in {self.metadata['render_modes']}, got '{render_mode}'")
        count = len(self.problem.strategies)
        if count > max_strategies:
            raise ValueError(f"{count} strategies do not fit into observations for {max_strategies}; raise max_strategies")
        self.render_mode, self.max_strategies = render_mode, max_strategies
        self.directory = Path(directory) if directory is not None else None
        self._buy: Buy | None = None
        self.action_space = self._action_space(count)
        self.observation_space = cast("spaces.Space[Observation]", spaces.Dict({
            "campaign": spaces.Box(-1, 1, (len(CAMPAIGN_FEATURES),), np.float32),
            "strategies": spaces.Box(-1, 1, (max_strategies * len(STRATEGY_FEATURES),), np.float32),
            "mask": spaces.Box(0, 1, (max_strategies,), np.float32),
        }))  # fmt: skip
        self.campaign: Campaign
        self.query: Query
        self._round0: OrderedDict[int, TaskModel] = OrderedDict()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Info]:
        """Buy the initial set of a campaign and train on it. `seed` is the campaign's; without one it is drawn."""
        job, model = self.begin(seed=seed, options=options)
        info = self.begun(self._fit(job) if model is None else model)
        return self.observation, info

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, Info]:
        """Buy one batch, train, and return observation, reward, whether the campaign is over, False, and info."""
        reward, over, info = self.answered(self._fit(self.ask(action)))
        return self.observation, reward, over, False, info

    def begin(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Job, TaskModel | None]:
        """Do the half of `reset` that comes before training: return the training, and its model if it is still known."""
        super().reset(seed=seed, options=options)
        campaign_seed = seed if seed is not None else int(self.np_random.integers(2**31))
        self.campaign = self.problem.campaign(campaign_seed, self.directory)
        return self._receive(self.campaign.begin()), self._round0.get(campaign_seed)

    def begun(self, model: TaskModel, scores: Scores | None = None) -> Info:
        """Do the other half of `reset`; return the info."""
        seed = self.campaign.streams.seed
        self._round0.setdefault(seed, model)
        if len(self._round0) > ROUND0_MODELS:
            self._round0.popitem(last=False)
        self.campaign.advance(model, scores)
        return self._info()

    def ask(self, action: Any) -> Job:
        """Do the half of `step` that comes before training: buy one batch and return the training it calls for."""
        return self._receive(self.campaign.choose(action))

    def answered(self, model: TaskModel, scores: Scores | None = None) -> tuple[float, bool, Info]:
        """Do the other half of `step`; return the reward, whether the campaign is over, and the info."""
        record = self.campaign.advance(model, scores)
        if self.render_mode == "human":
            self.render()
        assert record.reward is not None
        return float(record.reward), bool(self.campaign.done), self._info()

    def simulate(self, action: Any, budget: int | None = None) -> dict[str, float]:
        """Return the metrics on the test split after buying what `action` (the first `budget` samples of it) would buy.

        For oracles and for learning from them, in simulation only: it reads hidden labels and the test split. Nothing is bought
        and nothing changes.

        Raises:
            ValueError: labels come from a person, or there is no test split.
        """
        oracle, trainer, task = self.problem.oracle, self.problem.trainer, self.campaign.task
        if not isinstance(oracle, SimulatedOracle):
            raise ValueError("simulate() needs oracle=simulated; it would ask people hypothetical questions")
        if len(task.test) == 0:
            raise ValueError("simulate() needs a test split to measure on; choose a data set that has one")
        query = self.campaign.suppose(action, budget)
        return trainer.evaluate(trainer.fit(self.campaign.rehearse(query, oracle.label(query.indices))), task.test)

    def resume(self, seed: int, state: dict[str, Any], model_state: dict[str, Any]) -> tuple[Observation, Info]:
        """Continue a campaign from `Campaign.state_dict` and the weights of its last model."""
        super().reset(seed=seed)
        campaign = self.campaign = self.problem.campaign(seed, self.directory)
        campaign.pool.load_state_dict(state["pool"])
        campaign.load_state_dict(state, self.problem.trainer.restore(campaign.job(), model_state))
        return self.observation, self._info()

    @property
    def buy(self) -> Buy:
        """How a query is answered: by the oracle, unless somebody (the runner's ledger) is put in between."""
        return self._buy or self._ask

    @buy.setter
    def buy(self, buy: Buy) -> None:
        self._buy = buy

    @property
    def ballot(self) -> Ballot:
        """What the strategies would buy now, asked lazily."""
        return self.campaign.ballot

    @property
    def observation(self) -> Observation:
        """What an agent sees now."""
        return {name: values[0] for name, values in observe([self.campaign], self.max_strategies).items()}

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Return (S,) which strategies may be picked: all of them, since unusable ones are refused at the start."""
        return np.ones(len(self.problem.strategies), dtype=np.bool_)

    def render(self) -> Any:
        """Return the table ("ansi"), an (H, W, 3) uint8 learning curve ("rgb_array"), or write the table out ("human")."""
        if self.render_mode is None:
            return None
        records: list[Record] = self.campaign.records if hasattr(self, "campaign") else []
        if self.render_mode == "rgb_array":
            return curve_image(records)
        text = table_text(records)
        if self.render_mode == "ansi":
            return text
        sys.stdout.write(text)
        return None

    def _action_space(self, count: int) -> spaces.Space[Any]:
        if self.problem.plan.action == "pick":
            return spaces.Discrete(count)
        if self.problem.plan.action == "mix":
            return spaces.Box(-1, 1, (count,), np.float32)
        return spaces.Box(-1, 1, (self.problem.pool_size, count), np.float32)

    def _ask(self, query: Query) -> tuple[Query, list[int | None], float]:
        labels = self.problem.oracle.label(query.indices)
        return query, labels, charge(self.problem.oracle, query.indices)

    def _receive(self, query: Query) -> Job:
        self.query, labels, cost = self.buy(query)
        self.campaign.adopt(self.query)
        return self.campaign.receive(labels, cost)

    def _fit(self, job: Job) -> TaskModel:
        with self.campaign.clock("train"):
            return self.problem.trainer.fit(job)

    def _info(self) -> Info:
        record = self.campaign.records[-1]
        return {
            "round": record.round, "labels": record.labels, "bought": record.bought, "cost": float(record.cost),
            "validation": -1.0 if record.validation is None else record.validation,
            "action_mask": self.action_masks().astype(np.int8),
        }  # fmt: skip


ActiveLearningEnv.__doc__ = (ActiveLearningEnv.__doc__ or "").format(
    campaign="; ".join(CAMPAIGN_FEATURES), strategies="; ".join(STRATEGY_FEATURES)
)
