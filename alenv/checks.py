"""The public contract: what every strategy and every selector must keep, run on small problems that need no data."""

import copy
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alenv import toy
from alenv.checkpoint import load_state, save_state
from alenv.env import ActiveLearningEnv
from alenv.features import Features
from alenv.model import TaskModel
from alenv.pool import Pool
from alenv.round import Round
from alenv.selector import Context, Selector, Transition
from alenv.strategy import NEEDS, ScoreStrategy, Strategy, check_needs, check_positions
from alenv.streams import Streams

OFFERS = NEEDS - {"labels", "labeled_inputs", "pool", "last"} | {"aux"}  # what not every model or task has: it must be declared


class ContractViolation(AssertionError):  # noqa: N818 - the design's name
    """A rule is broken; the message names it, what was seen, and the remedy."""


def check_strategy(strategy: Strategy, device: torch.device | str = "cpu") -> None:
    """Return None if `strategy` keeps the contract of `alenv.strategy.Strategy`.

    Checked: declared needs exist and cover what is read; min(budget, U) distinct positions for budgets 1 to beyond U; identical
    candidates; one seed, one result, whatever the global generators hold; model, pool and shared outputs untouched; scores
    finite and equivariant to the order of candidates; pointwise scores equal block by block; state saved without pickle.

    Raises:
        ContractViolation: a rule is broken.
    """
    name = type(strategy).__name__
    for attribute in ("select", "needs", "heads", "state_dict", "load_state_dict"):
        _require(hasattr(strategy, attribute), f"{name}: interface", f"no '{attribute}'", "derive from alenv.strategy.Strategy")
    with _named(name, "needs are known"):
        check_needs(strategy)
    world = toy.World(strategy, torch.device(device))
    _check_nothing_changes(strategy, world)
    size = world.size
    for budget in (1, 7, size, size + 5):
        picks = _select(strategy, world.round(), budget, "shape: min(budget, U) distinct positions")
        again = _select(strategy, world.round(), budget, "one seed, one result")
        _require(
            torch.equal(picks, again),
            f"{name}: one seed, one result",
            f"two calls with budget {budget} differ",
            "draw from round.generator(name) only",
        )
    _check_reads(strategy, world)
    _check_global_randomness(strategy, world)
    _select(strategy, world.round(identical=True), 7, "identical candidates survive")
    _select(strategy, world.round(keep=1), 3, "a single candidate survives")
    if isinstance(strategy, ScoreStrategy):
        _check_scores(strategy, world)
    _check_state(name, strategy.state_dict())


def check_selector(selector: Selector) -> None:
    """Return None if `selector` keeps the contract of `alenv.selector.Selector`.

    Checked on small campaigns: actions lie in the action space; `begin` forgets the campaign before; one seed, one result,
    whatever the global generators hold; a selector restored from its saved state in mid-campaign continues identically; `update`
    returns finite numbers; model and pool untouched; other numbers of strategies and rounds.

    Raises:
        ContractViolation: a rule is broken.
    """
    name = type(selector).__name__
    for attribute in ("action_kind", "mixing", "requires", "begin", "act", "update", "state_dict", "load_state_dict"):
        _require(hasattr(selector, attribute), f"{name}: interface", f"no '{attribute}'", "derive from alenv.selector.Selector")
    fresh = copy.deepcopy(selector)
    first = _play(selector, strategies=3)
    _play(selector, strategies=3, seed=4)
    _require(
        _same(first, _play(selector, strategies=3)),
        f"{name}: begin() forgets",
        "a second campaign with the same seed went differently",
        "reset all state in begin()",
    )
    with _shaken():
        shaken = _play(copy.deepcopy(fresh), strategies=3)
    _require(
        _same(first, shaken),
        f"{name}: global generators are irrelevant",
        "other global seeds gave other actions",
        "draw from context.streams only",
    )
    resumed = _play(copy.deepcopy(fresh), strategies=3, restore_at=2, other=copy.deepcopy(fresh))
    _require(
        _same(first, resumed),
        f"{name}: state_dict is complete",
        "a selector restored in mid-campaign acted differently",
        "put everything learned into state_dict()",
    )
    if selector.candidates is None:
        _play(copy.deepcopy(fresh), strategies=1)
        _play(copy.deepcopy(fresh), strategies=4)


class _Watched(Round):
    """A round that notes what is read of it."""

    @classmethod
    def of(cls, round: Round) -> "_Watched":
        watched = copy.copy(round)
        watched.__class__ = cls
        assert isinstance(watched, cls)
        watched.read, watched.depth = set(), 0
        return watched

    read: set[str]
    depth: int

    def _get(self, name: str) -> Any:
        if self.depth == 0:
            self.read.add(name)
        self.depth += 1
        try:
            return super()._get(name)
        finally:
            self.depth -= 1

    def features(self, name: str) -> Features:
        self.read.add(f"features:{name}")
        return super().features(name)


def _check_reads(strategy: Strategy, world: toy.World) -> None:
    watched = _Watched.of(world.round())
    if isinstance(strategy, ScoreStrategy) and strategy.pointwise:
        strategy.score(watched)  # in one piece: cutting into blocks reads on the strategy's behalf
    else:
        _select(strategy, watched, 7, "shape")
    declared = set(strategy.needs)
    implied = {"logits", "probs"} if declared & {"logits", "probs"} else set()
    implied |= {"aux"} if any(need.startswith("aux:") for need in declared) else set()
    asked = {name for name in watched.read if name in OFFERS or name.startswith("features:")}
    undeclared = asked - declared - implied
    _require(
        not undeclared, f"{type(strategy).__name__}: needs are declared", f"it reads {sorted(undeclared)}", "add them to `needs`"
    )


def _check_global_randomness(strategy: Strategy, world: toy.World) -> None:
    rule = f"{type(strategy).__name__}: global generators are irrelevant"
    picks = strategy.select(world.round(), 7)
    with _shaken():
        state = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
        same = torch.equal(picks, strategy.select(world.round(), 7))
        _require(same, rule, "other global seeds gave other picks", "draw from round.generator(name) only")
        untouched = torch.equal(state[0], torch.random.get_rng_state()) and state[1] == np.random.get_state()[1].tolist()  # type: ignore[index]
        _require(untouched, rule, "it drew from a global generator", "pass generator= to every random function")


def _check_nothing_changes(strategy: Strategy, world: toy.World) -> None:
    round = world.round()
    for need in strategy.needs:
        if ":" not in need and need != "labels":
            getattr(round, need)  # compute the shared outputs first, so that changes to them show
    before = _snapshot(world.model, world.pool, round)
    _select(strategy, round, 7, "shape: min(budget, U) distinct positions")
    after = _snapshot(world.model, world.pool, round)
    changed = [key for key, value in before.items() if not _same(value, after.get(key))]
    _require(
        not changed,
        f"{type(strategy).__name__}: scoring changes nothing",
        f"changed: {changed}",
        "work on copies, in eval mode, under no_grad",
    )


def _check_scores(strategy: ScoreStrategy, world: toy.World) -> None:
    name = type(strategy).__name__
    scores = strategy.scores(world.round())
    drawn = strategy.scores(world.round(index=2))
    if _close(scores, drawn):  # else it draws per candidate, and the order decides who gets which draw
        lot = torch.randperm(world.size, generator=world.streams("checks/order"), device=world.device)
        moved = strategy.scores(world.round(order=lot))
        rule = f"{name}: the order of candidates is irrelevant"
        _require(_close(scores[lot], moved), rule, "permuted candidates got other scores", "score each candidate by its content")
    if strategy.pointwise:
        round = world.round()
        parts = torch.cat([strategy.score(block) for block in round.blocks(*strategy.needs, size=7)])
        _require(
            _close(scores, parts), f"{name}: pointwise", "blocks of 7 give other scores than the whole", "set pointwise = False"
        )


def _play(
    selector: Selector, strategies: int, restore_at: int | None = None, other: Selector | None = None, seed: int = 3
) -> list[Any]:
    """Run a small campaign and return everything it did.

    In round `restore_at`, `other`, restored from saved state, takes over.
    """
    name = type(selector).__name__
    env = ActiveLearningEnv(problem=toy.problem(selector, strategies))
    observation, _ = env.reset(seed=seed)
    campaign = env.campaign
    context = Context(
        strategies=tuple(campaign.strategies), num_classes=toy.CLASSES, pool_size=len(campaign.pool), plan=campaign.plan,
        streams=campaign.streams, trainer=env.problem.trainer, net=lambda outputs: env.problem.make_net(campaign.task, outputs),
        simulate=env.simulate if selector.oracle else None,
    )  # fmt: skip
    selector.begin(context)
    history: list[Any] = [_plain(selector.state_dict())]
    while not campaign.done:
        if campaign.index == restore_at and other is not None:
            saved = _check_state(name, selector.state_dict())
            selector = other
            selector.begin(context)
            selector.load_state_dict(saved)
        before = _snapshot(campaign.model, campaign.pool, campaign.round)
        state = torch.random.get_rng_state()
        action = selector.act(observation, env.ballot)
        _require(
            torch.equal(state, torch.random.get_rng_state()),
            f"{name}: global generators are irrelevant",
            "act() moved torch's global generator",
            "draw from context.streams, or inside streams.scoped(...)",
        )
        after = _snapshot(campaign.model, campaign.pool, campaign.round)
        changed = [key for key, value in before.items() if not _same(value, after.get(key))]
        _require(not changed, f"{name}: acting changes nothing", f"changed: {changed}", "work on copies of model and outputs")
        fits = env.action_space.contains(np.asarray(action) if selector.action_kind == "pick" else action)
        _require(
            fits,
            f"{name}: actions lie in the action space",
            f"{env.action_space} does not hold {action!r}",
            "return what action_kind says",
        )
        following, reward, done, _, _ = env.step(action)
        record = campaign.records[-1]
        labels = campaign.pool.labels[env.query.indices]
        logged = selector.update(Transition(observation, action, env.query, record, reward, following, done, labels))
        finite = isinstance(logged, Mapping) and all(isinstance(v, int | float) and np.isfinite(v) for v in logged.values())
        _require(finite, f"{name}: update() returns finite numbers by name", repr(logged), "return {} if there is nothing to log")
        history += [np.asarray(action).tolist(), list(record.queried), dict(logged), _plain(selector.state_dict())]
        observation = following
    return history


def _select(strategy: Strategy, round: Round, budget: int, rule: str) -> Tensor:
    with _named(type(strategy).__name__, rule):
        return check_positions(strategy.select(round, budget), budget, len(round), type(strategy).__name__)


def _check_state(name: str, state: Any) -> dict[str, Any]:
    with _named(name, "state is nested dicts and lists of tensors, numbers and strings"), tempfile.TemporaryDirectory() as folder:
        _check_keys(state)
        save_state(Path(folder) / "state", {"state": state})
        saved: dict[str, Any] = load_state(Path(folder) / "state")["state"]
        return saved


def _check_keys(state: Any) -> None:
    if isinstance(state, Mapping):
        numbers = [key for key in state if not isinstance(key, str)]
        if numbers:
            raise TypeError(f"expected strings as keys, got {numbers[:3]}")
        for value in state.values():
            _check_keys(value)


def _plain(state: Any) -> Any:
    """Return saved state as something that can be compared."""
    if isinstance(state, Tensor):
        return state.tolist()
    if isinstance(state, Mapping):
        return {key: _plain(value) for key, value in state.items()}
    return [_plain(value) for value in state] if isinstance(state, list | tuple) else state


def _snapshot(model: TaskModel, pool: Pool, round: Round) -> dict[str, Any]:
    values = {f"model {key}": value.clone() for key, value in model.state_dict().items()}
    values |= {f"mode {key}": module.training for key, module in model.named_modules()}
    values |= {"pool labels": pool.labels.clone(), "pool order": list(pool.order), "round candidates": round.candidates.clone()}
    return values | {f"round {key}": value.clone() for key, value in round._values.items() if isinstance(value, Tensor)}


@contextmanager
def _shaken() -> Iterator[None]:
    """Other states in all global generators."""
    with Streams(12345).scoped("checks/shaken"):
        yield


@contextmanager
def _named(name: str, rule: str) -> Iterator[None]:
    try:
        yield
    except ContractViolation:
        raise
    except Exception as error:
        raise ContractViolation(f"{name}: {rule}: {type(error).__name__}: {error}") from error


def _require(holds: bool, rule: str, seen: str, remedy: str) -> None:
    if not holds:
        raise ContractViolation(f"{rule}: {seen}; {remedy}")


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return bool(a == b)


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-5)
