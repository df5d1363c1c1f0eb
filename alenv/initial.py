"""The initial set: what a campaign buys before there is a model."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alenv.pool import HIDDEN
from alenv.round import Round
from alenv.strategy import Strategy
from alenv.streams import Streams
from alenv.task import Task

STREAM = "initial"
OFFERED = frozenset({"embeddings", "labeled_embeddings", "discarded_embeddings", "labels"})  # all there is without a model


class Initial(Protocol):
    """How the initial set is chosen: a function of (task, streams, size), whoever selects later."""

    reads_labels: bool

    def choose(self, task: Task, rows: Callable[[str | None], Tensor], streams: Streams, size: int) -> Int[Tensor, " size"]:
        """Return `size` distinct pool indices; `rows(name)` gives the features of a provider, or of None the inputs."""
        ...


class ByLabels:
    """An initial set drawn with a look at hidden labels: only in simulation, where it stands for a lucky or an unlucky start.

    Args:
        kind: "stratified": class shares as in the pool (Sainte-Lague), one of each at least, outsiders of an open set as one
            more class; "balanced": as many of each class, while there are; "one_class": all of one class, drawn by lot.
        seed: of the draw alone; None: the campaign's.
    """

    reads_labels = True

    def __init__(self, kind: str, seed: int | None = None) -> None:
        self.kind, self.seed = kind, seed

    def choose(self, task: Task, rows: Callable[[str | None], Tensor], streams: Streams, size: int) -> Int[Tensor, " size"]:
        """Return `size` pool indices."""
        del rows
        chosen = LABELLED[self.kind](task.targets.cpu(), size, _streams(streams, self.seed)(STREAM))
        if len(chosen) < size:
            raise ValueError(
                f"initial={self.kind}: {len(chosen)} examples can be drawn so, {size} are wanted; lower budget.initial"
            )
        return chosen.to(task.targets.device)


class ByStrategy:
    """An initial set bought by a strategy that reads nothing but embeddings, on the inputs or on a provider's features.

    Args:
        strategy: who buys; it finds no labelled example.
        features: name of the provider of its embeddings; None: the normalised inputs.
        seed: of its random choices alone; None: the campaign's.
    """

    reads_labels = False

    def __init__(self, strategy: Strategy, features: str | None = None, seed: int | None = None) -> None:
        lacking = sorted(need for need in strategy.needs - OFFERED if not need.startswith("features:"))
        if lacking:
            raise ValueError(
                f"initial={type(strategy).__name__}: it needs {', '.join(lacking)}, and before the first purchase there is no "
                "model; choose a strategy that reads embeddings alone (typiclust, kmeans, coreset), or initial=random"
            )
        self.strategy, self.features, self.seed = strategy, features, seed

    def choose(self, task: Task, rows: Callable[[str | None], Tensor], streams: Streams, size: int) -> Int[Tensor, " size"]:
        """Return `size` pool indices, in the order of the strategy's wishes."""
        if self.features is None and task.tokens is not None:
            raise ValueError(
                f"initial={type(self.strategy).__name__}: distances between numbers of tokens mean nothing; name a provider of "
                "features, as in initial={name: typiclust, features: text} features={text: {name: transformers, path: ...}}"
            )
        x = rows(self.features).flatten(1)
        names = [need.partition(":")[2] for need in self.strategy.needs if need.startswith("features:")]
        round = Round.from_arrays(
            embeddings=x, labels=x.new_zeros(0, dtype=torch.int64), labeled_embeddings=x[:0], discarded_embeddings=x[:0],
            features={name: (rows(name), rows(name)[:0], rows(name)[:0]) for name in names},
            num_classes=task.num_classes, seed=_streams(streams, self.seed).key(STREAM),
        )  # fmt: skip
        return self.strategy.select(round, size)


class Known:
    """An initial set of examples whose label the data set holds already, drawn by lot; it is not looked at."""

    reads_labels = False

    def choose(self, task: Task, rows: Callable[[str | None], Tensor], streams: Streams, size: int) -> Int[Tensor, " size"]:
        """Return `size` pool indices."""
        del rows
        known = torch.nonzero(task.targets.cpu() != HIDDEN).flatten()
        if len(known) < size:
            remedy = f"set budget.initial={len(known)}" if len(known) else "use initial=random to be asked for the first ones"
            raise ValueError(f"initial=known: {len(known)} examples of the pool have a label, {size} are wanted; {remedy}")
        return known[by_lot(len(known), size, streams)].to(task.targets.device)


class ByLot:
    """A uniformly random initial set with a seed of its own."""

    reads_labels = False

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    def choose(self, task: Task, rows: Callable[[str | None], Tensor], streams: Streams, size: int) -> Int[Tensor, " size"]:
        """Return `size` pool indices."""
        del rows
        return by_lot(len(task), size, _streams(streams, self.seed)).to(task.targets.device)


def by_lot(pool_size: int, size: int, streams: Streams) -> Int[Tensor, " size"]:
    """Return `size` of the pool's indices, uniformly."""
    return torch.randperm(pool_size, generator=streams.on("cpu")(STREAM))[:size]


def stratified(targets: Int[Tensor, " N"], size: int, generator: torch.Generator) -> Int[Tensor, " size"]:
    """Return indices with class shares as in `targets`; one of each class first, if `size` allows."""
    lot, rank, count = _ranks(targets, generator)
    turn = (rank + 0.5) / count
    if size >= len(targets.unique()):
        turn = torch.where(rank == 0, 0, turn)
    return lot[turn.sort(stable=True).indices[:size]]


def balanced(targets: Int[Tensor, " N"], size: int, generator: torch.Generator) -> Int[Tensor, " size"]:
    """Return indices of as many examples of every class, outsiders apart; small classes run out."""
    lot, rank, _ = _ranks(targets, generator)
    rank = torch.where(targets[lot] >= 0, rank, len(targets))
    chosen = rank.sort(stable=True).indices[:size]
    return lot[chosen[rank[chosen] < len(targets)]]


def one_class(targets: Int[Tensor, " N"], size: int, generator: torch.Generator) -> Int[Tensor, " size"]:
    """Return indices of one class, drawn among those that have enough examples, or else of the largest."""
    counts = torch.bincount(targets[targets >= 0])
    enough = torch.nonzero(counts >= size).flatten()
    kind = enough[torch.randint(len(enough), (), generator=generator)] if len(enough) else counts.argmax()
    rows = torch.nonzero(targets == kind).flatten()
    return rows[torch.randperm(len(rows), generator=generator)[:size]]


LABELLED: Mapping[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "stratified": stratified, "balanced": balanced, "one_class": one_class,
}  # fmt: skip


def make(spec: Any, build: Callable[[Any], Strategy]) -> Initial | None:
    """Return the initial set that a name, or a mapping with `name` and parameters, describes; None for the default, random.

    Args:
        spec: "random", "known", a name of `LABELLED`, or a strategy; in a mapping also `seed` and, for strategies, `features`.
        build: makes a strategy of what names one.
    """
    given = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    if "name" not in given and "_target_" not in given:
        raise ValueError(f"expected initial as a name, a list of ids, or a mapping with 'name', got {dict(spec)}")
    name, seed = given.get("name"), given.pop("seed", None)
    if name == "random" and seed is None and len(given) == 1:
        return None
    if name == "known" and seed is None and len(given) == 1:
        return Known()
    if isinstance(name, str) and name in ("random", *LABELLED):
        unknown = sorted(given.keys() - {"name"})
        if unknown:
            raise ValueError(f"initial={name} has no parameter {', '.join(unknown)}; it takes seed alone")
        return ByLot(seed) if name == "random" else ByLabels(name, seed)
    features = given.pop("features", None)
    return ByStrategy(build(given if isinstance(spec, Mapping) else spec), features, seed)


def _streams(streams: Streams, seed: int | None) -> Streams:
    return Streams(streams.seed if seed is None else seed)


def _ranks(targets: Int[Tensor, " N"], generator: torch.Generator) -> tuple[Tensor, Int[Tensor, " N"], Float[Tensor, " N"]]:
    """Return a random order of the examples and, in that order, each one's rank in its class and how many that class has."""
    lot = torch.randperm(len(targets), generator=generator)
    _, kind, counts = targets[lot].unique(return_inverse=True, return_counts=True)
    by_class = kind.sort(stable=True).indices
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(kind)
    rank[by_class] = torch.arange(len(lot)) - starts[kind[by_class]]
    return lot, rank, counts[kind].double()
