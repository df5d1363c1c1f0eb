"""Small problems that need no data and train in milliseconds: what the contract is checked on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from alenv import library
from alenv.campaign import Plan
from alenv.job import Job
from alenv.model import TaskModel
from alenv.pool import OUTSIDE, Pool
from alenv.problem import Problem
from alenv.rewards import NormalizedGain
from alenv.round import Purchase, Round
from alenv.selector import Selector
from alenv.strategy import ScoreStrategy, Strategy
from alenv.streams import Streams
from alenv.task import Examples, Source, Split, number_ids
from alenv.trainer import Trainer

CLASSES, DIM, LABELED, DISCARDED = 3, 6, 24, 5


class World:
    """A fitted little model, a pool with all kinds of members, and rounds on them."""

    def __init__(self, strategy: Strategy, device: torch.device) -> None:
        self.strategy, self.device = strategy, device
        self.streams = Streams(8, device)  # no two candidates tie but for rounding
        source = blobs(11)
        self.inputs = source.train.inputs.to(device)
        targets = source.train.targets.tolist()
        self.pool = Pool(len(self.inputs), CLASSES, device)
        bought = list(range(0, 2 * (LABELED + DISCARDED), 2))
        unusable = [None, OUTSIDE] * DISCARDED
        labels: list[int | None] = [*(targets[p] for p in bought[:LABELED]), *unusable[:DISCARDED]]
        self.pool.reveal(torch.tensor(bought, device=device), labels)
        labeled = self.pool.labeled
        self.trainer = Trainer(device=str(device), epochs=2, min_steps=10)
        job = Job(_net, self.inputs[labeled], self.pool.labels[labeled], self.streams, 1, heads=tuple(strategy.heads()))
        self.model = self.trainer.fit(job)
        self.size = len(self.pool.candidates)
        draw = self.streams("checks/features")
        wanted = [need.partition(":")[2] for need in strategy.needs if need.startswith("features:")]
        self.features = {name: torch.randn(len(self.inputs), 5, generator=draw, device=device) for name in wanted}

    def round(self, *, identical: bool = False, keep: int | None = None, order: Tensor | None = None, index: int = 1) -> Round:
        """Return a fresh round: with all candidates alike, the first `keep` only, in another order, or of another number."""
        candidates = self.pool.candidates[:keep]
        candidates = candidates if order is None else candidates[order]
        inputs = self.inputs.clone()
        if identical:
            inputs[candidates] = inputs[candidates[0]].clone()
        last = torch.tensor(self.pool.order[-4:], device=self.device)
        made = Round.of_model(
            self.model, inputs, self.pool, self.trainer.outputs, self.streams, index=index,
            last=Purchase(last, self.pool.labels[last]), features=self.features, candidates=candidates,
        )  # fmt: skip
        made._values["heads"] = self.model.head_draws(made.num_draws, self.streams("checks/noise"))  # the same for every index
        missing = [need.partition(":")[2] for need in self.strategy.needs if need.startswith("aux:")]
        for name in missing:
            if name not in made.aux:
                draw = self.streams(f"checks/aux/{name}")
                whole = torch.rand(len(self.pool), 1, generator=draw, device=self.device)
                made.aux[name] = whole[candidates]
        return made


def problem(selector: Selector, strategies: int) -> Problem:
    """Return a small campaign for `selector`, with this many toy candidates beside those it requires (or insists on)."""
    if selector.candidates is not None:
        candidates = library.strategies(selector.candidates, selector.requires)
    else:
        toys: dict[str, Strategy] = {name: cls() for name, cls in list(TOYS.items())[:strategies]}
        required = {name: library.build("strategy", name) for name in selector.requires}
        candidates = toys | required
    plan = Plan(
        initial=12,
        batch=6,
        rounds=4,
        action=selector.action_kind,
        mixing=selector.mixing,
        votes=max(1.0, selector.votes),
        shares=selector.shares,
    )
    return Problem(blobs(5), _split, _net_for, Trainer(device="cpu"), candidates, plan, reward=NormalizedGain())


def blobs(seed: int, size: int = 160, test: int = 40) -> Source:
    """Return a small data set of overlapping Gaussian classes."""
    draw = Streams(seed)("checks/blobs")
    centres = 1.5 * torch.randn(CLASSES, DIM, generator=draw)
    targets = torch.arange(size + test) % CLASSES
    inputs = centres[targets] + torch.randn(size + test, DIM, generator=draw)
    ids = number_ids(size + test)
    train, held = Examples(inputs[:size], targets[:size], ids[:size]), Examples(inputs[size:], targets[size:], ids[size:])
    return Source("blobs", train, held, tuple("abc"))


class _FirstComponent(ScoreStrategy):
    needs = frozenset({"embeddings"})

    def score(self, round: Round) -> Tensor:
        return round.embeddings[:, 0]


class _Unsure(ScoreStrategy):
    needs = frozenset({"probs"})

    def score(self, round: Round) -> Tensor:
        return -round.probs.max(1).values


class _ByLot(Strategy):
    def select(self, round: Round, budget: int) -> Tensor:
        return torch.randperm(len(round), generator=round.generator("by_lot"))[:budget]


class _Disagreement(ScoreStrategy):
    needs = frozenset({"mc_probs"})

    def score(self, round: Round) -> Tensor:
        return round.mc_probs.var(0).sum(1)


TOYS: dict[str, Callable[[], Strategy]] = {
    "unsure": _Unsure, "first_component": _FirstComponent, "by_lot": _ByLot, "disagreement": _Disagreement,
}  # fmt: skip


class _Body(nn.Module):
    """Two layers whose maps serve as stages."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(DIM, 8), nn.Linear(8, 8)

    def stages(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        a = self.first(x).relu()
        b = self.second(a).relu()
        return [a, b], b

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x)[1]


def _net(num_outputs: int = CLASSES) -> TaskModel:
    return TaskModel(_Body(), 8, num_outputs, dropout=0.3, companion=_net)


def _net_for(input_shape: Any, num_outputs: int, mean: Any, std: Any) -> TaskModel:
    del input_shape, mean, std
    return TaskModel(nn.Flatten(), DIM, num_outputs, solver="lbfgs", companion=_net)


def _split(source: Source, validation: Any, streams: Streams) -> Split:
    del validation
    lot = torch.randperm(len(source.train), generator=streams("split"))
    return Split(lot[30:].sort().values, lot[:30].sort().values, torch.arange(len(source.test or ())))
