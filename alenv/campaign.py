"""The state of one active-learning run, without Gymnasium and without training."""

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from alenv.arrays import Rows
from alenv.ballot import Ballot
from alenv.clock import Clock
from alenv.gathered import Inputs
from alenv.heads import distinct
from alenv.inference import Outputs, Scores
from alenv.initial import by_lot
from alenv.job import Job
from alenv.metrics import purchase
from alenv.mixing import Batch, Mixing, mix, sample_draw, sample_mix, sample_shares
from alenv.model import TaskModel
from alenv.pool import Pool
from alenv.record import Record
from alenv.rewards import Reward, Trace
from alenv.round import Purchase, Round
from alenv.strategy import JudgesPurity, Strategy
from alenv.streams import Streams
from alenv.task import Task
from alenv.trainer import Trainer

Audit = Callable[[Int[Tensor, " U"], Float[Tensor, " U"]], float | None]
ActionKind = Literal["pick", "mix", "sample_mix", "sample_draw"]
LOGIT_SCALE = 10.0  # weights = softmax(10 a): an action in [-1, 1] spans ratios up to e^20


@dataclass(frozen=True)
class Plan:
    """How a campaign buys.

    Attributes:
        initial: size of the initial set.
        batch: B; the last batch may be smaller.
        rounds: purchases after the initial set.
        action: "pick" one strategy, "mix" them, "sample_mix" them for every sample, or "sample_draw" from masses on samples.
        mixing: how weights become a batch ("pick" and "mix" only).
        votes: r of "sample_mix": each strategy marks r x B candidates.
        shares: of "sample_mix": strategies buy shares of the batch; else it goes to the highest weighted sums of votes.
        draws: T stochastic draws for strategies that ask for them.
        stop_accuracy: end the campaign once the primary metric on validation is this high.
    """

    initial: int = 20
    batch: int = 20
    rounds: int = 15
    action: ActionKind = "pick"
    mixing: Mixing = "quota"
    votes: float = 2.0
    shares: bool = False
    draws: int = 10
    stop_accuracy: float | None = None

    def __post_init__(self) -> None:
        least = {"initial": 1, "batch": 1, "rounds": 0, "draws": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                option = "draws" if name == "draws" else f"budget.{name}"
                raise ValueError(f"expected {option} to be a whole number >= {low}, got {value!r}")
        if self.votes < 1:
            raise ValueError(f"expected votes >= 1 (each strategy marks votes x batch candidates), got {self.votes}")

    @property
    def by_lot(self) -> bool:
        """Whether purchases are drawn by lot, so that propensities mean something."""
        return self.action == "sample_draw" or (self.mixing == "slots" and self.action != "sample_mix")

    def check(self, pool_size: int) -> None:
        """Raise ValueError if the campaign would buy more than the pool holds."""
        total = self.initial + self.batch * self.rounds
        if total > pool_size:
            raise ValueError(
                f"the budget buys {total} labels (initial {self.initial} + batch {self.batch} x {self.rounds} rounds) "
                f"but the pool has {pool_size}; at most {max(0, (pool_size - self.initial) // self.batch)} rounds fit: "
                "lower budget.rounds or budget.batch"
            )


class Query(NamedTuple):
    """What is asked of the oracle.

    Attributes:
        round: 0 for the initial set.
        indices: (B,) pool indices, best first.
        ids: their stable ids.
        chosen_by: names of strategies; empty in round 0.
        propensity: see `alenv.mixing.Batch`; empty in round 0.
        weights: (S,) or empty in round 0.
        advice: (S, B) or empty in round 0.
    """

    round: int
    indices: Int[Tensor, " B"]
    ids: tuple[str, ...]
    chosen_by: tuple[str, ...]
    propensity: Float[Tensor, " p"]
    weights: Float[Tensor, " S"]
    advice: Float[Tensor, "S b"]


class Campaign:
    """One run: `begin`, then `receive` and `advance`, then rounds of `choose`, `receive`, `advance`.

    Labels may take days between `choose` and `receive`; training happens outside, on the `Job` that `receive` returns.

    Args:
        task: what is learned; its hidden targets are not read here.
        strategies: candidate strategies by name.
        plan: how much is bought and how.
        trainer: runs and evaluates models; `fit` is never called.
        net: makes an untrained model for the task.
        streams: all randomness.
        reward: see `alenv.rewards`.
        initial: indices of the initial set (default: uniformly random).
        features: by name, for strategies that need a provider: what gives rows by pool index, such as an (N, F) tensor.
        joint: let the heads of strategies train the body as well.
        audit: says, of pool indices and the purity a strategy sees in them, how well that tells the task's classes from others;
            where hidden labels are known.

    Attributes:
        records: one per finished round.
        round: what strategies see now; `ballot` what they would buy.
        cost: charged so far.
    """

    def __init__(
        self, task: Task, strategies: Mapping[str, Strategy], plan: Plan, trainer: Trainer, net: Callable[[], TaskModel],
        streams: Streams, reward: Reward, initial: Int[Tensor, " I"] | None = None,
        features: Mapping[str, Rows] | None = None, joint: bool = False, audit: Audit | None = None,
    ) -> None:  # fmt: skip
        plan.check(len(task))
        self.task, self.strategies, self.plan, self.trainer = task, dict(strategies), plan, trainer
        self.streams = streams.on(trainer.device)
        self.clock = Clock()
        self.pool = Pool(len(task), task.num_classes, trainer.device)
        self.records: list[Record] = []
        self.cost = 0.0
        self.round: Round
        self.ballot: Ballot
        self.model: TaskModel
        self._net, self._reward, self._joint, self._audit = net, reward, joint, audit
        self._features = {name: _Timed(rows, self.clock) for name, rows in (features or {}).items()}
        self._outputs = functools.partial(_timed_outputs, trainer, self.clock)  # rounds hold it: it must not hold the campaign
        self._last: Outputs | None = None
        self._initial = initial
        self._query: Query | None = None
        self._propensity: list[float] = []

    @property
    def index(self) -> int:
        """Number of the round that is next or under way; 0 before the initial set is trained on."""
        return len(self.records)

    @property
    def done(self) -> bool:
        """Whether the budget is spent, the pool is empty, or a purchase has reached the target: an episode has a step."""
        return self.finished and (self.index > 1 or not self._reached)

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to buy: the campaign is done, or the initial set alone has reached the target."""
        spent = self.index > self.plan.rounds or self.pool.bought == len(self.pool)
        return bool(self.records) and (spent or self._reached)

    @property
    def _reached(self) -> bool:
        target, found = self.plan.stop_accuracy, self.records[-1].validation
        return target is not None and found is not None and found >= target

    def begin(self) -> Query:
        """Return the question of round 0: the initial set."""
        if self.records:
            raise ValueError("begin() was called on a campaign under way; use choose()")
        self._require_trained("begin")
        indices = self._initial
        if indices is None:
            indices = by_lot(len(self.task), self.plan.initial, self.streams).to(self.pool.labels.device)
        empty = indices.new_zeros(0, dtype=torch.float32)
        self._query = Query(0, indices, self._ids(indices), (), empty, empty, empty.view(0, 0))
        return self._query

    def choose(self, action: Any) -> Query:
        """Turn an action into a question.

        Args:
            action: "pick": a strategy's number; "mix": (S,) in [-1, 1]; "sample_mix": (N, S) in [-1, 1]. Weights are
                softmax(10 x action). "sample_draw": (N, S) in [-1, 1]; masses are exp(10 x action), and none at exactly -1.
        """
        self._require_open("choose")
        with self.clock("select"):
            self._query = self._question(self._batch(action, self.ballot))
        return self._query

    def suppose(self, action: Any, budget: int | None = None) -> Query:
        """Return the question `choose(action)` would ask, of at most `budget` samples; nothing is asked, noted or changed."""
        self._require_open("suppose")
        states = {name: copy.deepcopy(strategy.state_dict()) for name, strategy in self.strategies.items()}
        budget = self._next_batch() if budget is None else min(budget, self._next_batch())
        try:
            return self._question(self._batch(action, Ballot(self.round, self.strategies, budget)))
        finally:
            for name, state in states.items():
                self.strategies[name].load_state_dict(state)

    def adopt(self, query: Query) -> None:
        """Replace the open question by another one of the same round, already bought."""
        self._query = query

    def receive(self, labels: list[int | None], cost: float | None = None) -> Job:
        """Take the answers to the open question and return the training they call for.

        Args:
            labels: one per asked index, see `Pool.reveal`.
            cost: what they cost (default: one each).
        """
        if self._query is None:
            raise ValueError("receive() was called without an open question; call begin() or choose() first")
        self.pool.reveal(self._query.indices, labels)
        self.cost += len(labels) if cost is None else cost
        if self._query.round > 0:
            self._propensity += self._query.propensity.tolist()
        return self.job()

    def job(self) -> Job:
        """Return the training on everything labelled so far."""
        labeled = self.pool.labeled
        if len(labeled) == 0:
            raise ValueError(
                f"none of the {self.pool.bought} purchases has a usable label; buy a larger initial set (budget.initial)"
            )
        shared = distinct(head for strategy in self.strategies.values() for head in strategy.heads())
        heads = tuple(replace(head, joint=True) if self._joint else head for head in shared)
        model = getattr(self, "model", None)
        return Job(
            net=self._net, inputs=self.task.inputs[labeled], targets=self.pool.targets, streams=self.streams,
            round=self.index, heads=heads, augmentation=self.task.augmentation,
            like=model if model is not None and model.bare else None,
        )  # fmt: skip

    def rehearse(self, query: Query, labels: list[int | None]) -> Job:
        """Return the training that buying `query` would call for; nothing is bought."""
        real, self.pool = self.pool, self.pool.showing(self.pool.labeled)
        try:
            self.pool.reveal(query.indices, labels)
            return self.job()
        finally:
            self.pool = real

    def advance(self, model: TaskModel, scores: Scores | None = None) -> Record:
        """Take the trained model, open the next round and return the record of the one that ends.

        Args:
            model: what `receive`'s job was trained to.
            scores: what it says of the task, where that is known; else it is computed here.
        """
        if not self._answered:
            raise ValueError("advance() was called without a purchase; call receive() first")
        assert self._query is not None
        query, old_round, judged = self._query, getattr(self, "round", None), self._judged()
        labels = self.pool.labels.index_select(0, query.indices)
        with self.clock("evaluate"):
            test = self.trainer.evaluate(model, self.task.test, self.task.groups) if scores is None else scores.test
            test = test | self._open_set(labels)
            given = self.trainer.evaluate(model, self.task.validation) if scores is None else scores.validation
            validation = given.get(self.task.primary)
        record = Record(
            round=query.round, labels=len(self.pool.labeled), bought=self.pool.bought, cost=self.cost, queried=query.ids,
            strategies=tuple(self.strategies), action=tuple(query.weights.tolist()) if query.round else None,
            chosen_by=query.chosen_by, propensity=tuple(query.propensity.tolist()),
            metrics={name: test.get(name) for name in self.task.metrics} | judged, validation=validation,
        )  # fmt: skip
        self.records.append(record)
        self._query = None
        self._last = self._seen_before(query)
        self._open(model, Purchase(query.indices, labels, self._last), scores)
        if query.round:
            assert old_round is not None
            reward = self._reward(self._trace(model, old_round, labels))
            self.records[-1] = record = replace(record, reward=reward)
        return record

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue after the last finished round, the model apart."""
        return {
            "pool": self.pool.state_dict(), "records": [r.to_json() for r in self.records], "cost": self.cost,
            "propensity": list(self._propensity), "last": None if self._last is None else self._last._asdict(),
            "strategies": {name: strategy.state_dict() for name, strategy in self.strategies.items()},
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any], model: TaskModel) -> None:
        """Continue from `state` with `model`, the one trained in the last finished round."""
        self.records = [Record.from_json(r) for r in state["records"]]
        self.cost = state["cost"]
        self._propensity = list(state["propensity"])
        for name, strategy in self.strategies.items():
            strategy.load_state_dict(state["strategies"].get(name, {}))
        self.pool.load_state_dict(state["pool"])
        position = {id_: i for i, id_ in enumerate(self.task.ids)}
        indices = torch.tensor([position[id_] for id_ in self.records[-1].queried], device=self.trainer.device)
        self._last = None if state.get("last") is None else Outputs(**state["last"])
        self._open(model, Purchase(indices, self.pool.labels[indices], self._last))

    def _open(self, model: TaskModel, last: Purchase, scores: Scores | None = None) -> None:
        self.model = model
        self.round = Round.of_model(
            model, self.task.inputs, self.pool, self._outputs, self.streams, index=self.index, num_draws=self.plan.draws,
            last=last, features=self._features, logits=None if scores is None else scores.logits,
            known=None if scores is None else scores.known,
        )  # fmt: skip
        self.ballot = Ballot(self.round, self.strategies, self._next_batch(), self.clock)

    def _open_set(self, labels: Tensor) -> dict[str, float]:
        """Return precision and recall of a purchase, where the pool holds examples of no class."""
        outside = self.task.facts.get("outside")
        return {} if outside is None else purchase(labels, len(self.pool.labeled), len(self.task) - outside)

    def _judged(self) -> dict[str, float | None]:
        """Return, for each strategy that judges purity, how well it did in the round that ends; None if nobody asked it."""
        if "outside" not in self.task.facts:
            return {}
        judges = {name: one for name, one in self.strategies.items() if isinstance(one, JudgesPurity)}
        asked = self.ballot.asked if self.records and self._audit is not None else ()
        with self.clock("evaluate"):
            return {f"purity_auroc/{name}": self._audited(name, one) if name in asked else None for name, one in judges.items()}

    def _audited(self, name: str, judge: JudgesPurity) -> float | None:
        purity = judge.purity(self.round)
        if purity is None:
            return None
        if purity.shape != (len(self.round),) or bool(purity.isnan().any()):
            raise ValueError(f"{name}: expected purity of shape ({len(self.round)},) without NaN, got {tuple(purity.shape)}")
        assert self._audit is not None
        return self._audit(self.round.candidates, purity)

    def _seen_before(self, query: Query) -> Outputs | None:
        """Return what the model before says of what was bought with it, if a strategy learns from its last purchase."""
        wanted = any("last" in strategy.needs for strategy in self.strategies.values())
        return self._outputs(self.model, self.task.inputs[query.indices]) if query.round and wanted else None

    @property
    def _answered(self) -> bool:
        """Whether the open question has been answered, so that its model is what comes next."""
        return self._query is not None and self.pool.bought > (self.records[-1].bought if self.records else 0)

    def _require_trained(self, who: str) -> None:
        if self._answered:
            raise ValueError(f"{who}() was called before the last answers were trained on; call advance() first")

    def _require_open(self, who: str) -> None:
        if self.done or not self.records:
            raise ValueError(
                f"{who}() was called on a campaign that is over or has not begun; call begin() first, or start another one"
            )
        self._require_trained(who)

    def _next_batch(self) -> int:
        return min(self.plan.batch, len(self.pool) - self.pool.bought)

    def _ids(self, indices: Tensor) -> tuple[str, ...]:
        return tuple(self.task.ids[i] for i in indices.tolist())

    def _batch(self, action: Any, ballot: Ballot) -> Batch:
        generator = self.streams("mixing", self.index)
        weights = action_weights(self.plan.action, action, len(self.strategies), len(self.pool)).to(self.trainer.device)
        if self.plan.action == "sample_mix":
            buy = sample_shares if self.plan.shares else sample_mix
            return buy(weights[self.round.candidates], ballot, ballot.budget, self.plan.votes, generator)
        if self.plan.action == "sample_draw":
            return sample_draw(weights[self.round.candidates], ballot, ballot.budget, generator)
        return mix(self.plan.mixing, weights, ballot, ballot.budget, generator)

    def _question(self, batch: Batch) -> Query:
        indices = self.round.candidates.index_select(0, batch.positions)
        return Query(self.index, indices, self._ids(indices), batch.chosen_by, batch.propensity, batch.weights, batch.advice)

    def _trace(self, model: TaskModel, old_round: Round, labels: Tensor) -> Trace:
        return Trace(
            validation=[r.validation for r in self.records if r.validation is not None], bought=[r.bought for r in self.records],
            horizon=self.plan.batch * self.plan.rounds, pool_size=len(self.pool) - self.records[0].bought, done=self.done,
            predictions=lambda: _predictions(self.round), previous_predictions=lambda: _predictions(old_round),
            num_classes=self.task.num_classes, batch=len(labels),
            test=[v for r in self.records if (v := r.metrics[self.task.primary]) is not None and self._reward.access == "test"],
            **(self._purchases(model, old_round, labels) if self._reward.access == "purchases" else {}),
        )  # fmt: skip

    def _purchases(self, model: TaskModel, old_round: Round, labels: Tensor) -> dict[str, Any]:
        """Return what rewards that read purchases see of them."""
        later = torch.tensor(self.pool.order[self.records[0].bought :], dtype=torch.int64, device=self.trainer.device)
        usable = self.pool.labels[later] >= 0

        def correct() -> Tensor:
            predicted = self.trainer.outputs(model, self.task.inputs[later]).logits.argmax(1)
            return predicted[usable] == self.pool.labels[later][usable]

        return {
            "correct": correct, "propensity": torch.tensor(self._propensity, device=usable.device)[usable],
            "labels": labels[labels >= 0], "class_counts": torch.bincount(old_round.labels, minlength=self.task.num_classes),
        }  # fmt: skip


def _predictions(round: Round) -> Tensor:
    return torch.cat([round.candidates[:0], *(block.logits.argmax(1) for block in round.blocks("logits"))])


def _timed_outputs(trainer: Trainer, clock: Clock, model: TaskModel, inputs: Inputs) -> Outputs:
    with clock("outputs"):
        return trainer.outputs(model, inputs)


class _Timed:
    """Features whose computation counts as running the model, not as selecting."""

    def __init__(self, rows: Rows, clock: Clock) -> None:
        self._rows, self._clock = rows, clock

    def __getitem__(self, indices: Tensor) -> Tensor:
        with self._clock("outputs"):
            return self._rows[indices]


def action_weights(kind: ActionKind, action: Any, strategies: int, pool_size: int) -> Tensor:
    """Return an action as weights: (S,), or (N, S) for "sample_mix", rows sum to one; (N, S) masses for "sample_draw".

    Raises:
        ValueError: the action has the wrong shape, is out of range or holds NaN.
    """
    if kind == "pick":
        number = int(action)
        if number != action or not 0 <= number < strategies:
            raise ValueError(f"expected the number of a strategy, 0..{strategies - 1}, got {action}")
        weights = torch.zeros(strategies)
        weights[number] = 1
        return weights
    shape = (strategies,) if kind == "mix" else (pool_size, strategies)
    values = action if isinstance(action, Tensor) else torch.from_numpy(np.array(action, dtype=np.float32))
    if tuple(values.shape) != shape:
        raise ValueError(f"expected an action of shape {shape}, got {tuple(values.shape)}")
    if bool(values.isnan().any()) or bool((values.abs() > 1 + 1e-6).any()):
        raise ValueError("expected action values in [-1, 1], got NaN or larger ones; clip them, or rescale the policy's output")
    values = values.float()
    if kind == "sample_draw":
        return torch.where(values > -1, (LOGIT_SCALE * (values - values.max())).exp(), 0)
    return torch.softmax(LOGIT_SCALE * values, dim=-1)


def weights_action(weights: Float[Tensor, "*rows S"]) -> npt.NDArray[np.float32]:
    """Return the action in [-1, 1] whose weights are `weights`; ratios beyond e^20 are cut.

    Flatten masses for "sample_draw" first: they share one scale, and what is cut has none.
    """
    logits = weights.clamp(min=torch.finfo(weights.dtype).tiny).log() / LOGIT_SCALE
    action = (1 + logits - logits.amax(-1, keepdim=True)).clamp(min=-1)
    return action.float().cpu().numpy()  # Gymnasium wants arrays
