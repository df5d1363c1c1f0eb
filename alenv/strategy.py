"""What to buy: the interface of query strategies."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alenv.heads import Head, distinct
from alenv.round import Round

NEEDS = frozenset({
    "probs", "logits", "embeddings", "labeled_embeddings", "discarded_embeddings", "mc_probs", "labels", "head", "model",
    "inputs", "labeled_inputs", "discarded_inputs", "pool", "last",
})  # fmt: skip
NEED_PREFIXES = ("aux:", "features:")
FAMILIES = (  # bayesian: reads stochastic draws
    "baseline", "uncertainty", "bayesian", "diversity", "hybrid", "imbalance", "open-set", "wrapper",
)  # fmt: skip


def _checked(select: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(select)
    def wrapper(self: Strategy, round: Round, budget: int) -> Tensor:
        if budget < 0:
            raise ValueError(f"{_name(self)}: expected a budget >= 0, got {budget}")
        budget = min(budget, len(round))
        if budget == 0:
            return torch.zeros(0, dtype=torch.int64, device=round.device)
        return check_positions(select(self, round, budget), budget, len(round), _name(self))

    return wrapper


class Strategy(ABC):
    """A query strategy.

    Subclasses define `select`. Whatever they define is checked: the budget is clamped to the candidates, and what comes back
    must be distinct positions, as many as asked for.

    Attributes:
        needs: what it reads from a round: names of `NEEDS`, "aux:<head>" or "features:<provider>". Checked against the
            task before a run starts.
        family: one of `FAMILIES`, for strategies of the library.

    `docs/strategies.md` is made of what a class says of itself: the head of its file is the source; the docstring's first
    sentence is the rule, one that starts with "O(" (or "With P = ..., O(") the cost, "Args:" the parameters.
    """

    needs: frozenset[str] = frozenset()
    family: str = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "select" in cls.__dict__ and not getattr(cls.select, "__isabstractmethod__", False):
            cls.select = _checked(cls.__dict__["select"])  # type: ignore[method-assign]

    @abstractmethod
    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return positions of the candidates to buy: min(budget, U) distinct ones, best first.

        Must not change the model, the pool or any array of the round, and must draw only from `round.generator`.
        """

    def heads(self) -> tuple[Head, ...]:
        """Return the heads to train beside the task model."""
        return ()

    def law(self, round: Round, taken: Int[Tensor, " t"]) -> Float[Tensor, " U"] | None:
        """Return the probabilities with which a stochastic strategy would buy each candidate next, given what is taken.

        None means that it is deterministic once its wishes are known. Only bandits that weigh by propensity ask.
        """
        del round, taken
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return what the strategy has learned, as nested dicts of tensors, numbers and strings."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        del state


@runtime_checkable
class JudgesPurity(Protocol):
    """A strategy that estimates which candidates are of the task's classes; in simulated open sets the records say how well."""

    def purity(self, round: Round) -> Float[Tensor, " U"] | None:
        """Return one number per candidate, higher for what more likely is of a class; None while there is nothing to judge by."""
        ...


class ScoreStrategy(Strategy):
    """A strategy that scores every candidate; higher is bought first, ties fall by lot.

    Attributes:
        pointwise: the score of a candidate depends on no other candidate. Then large pools are scored block by block, and
            `score` may get a block of the round.
    """

    pointwise: bool = False

    @abstractmethod
    def score(self, round: Round) -> Float[Tensor, " U"]:
        """Return one score per candidate."""

    def scores(self, round: Round) -> Float[Tensor, " U"]:
        """Return the scores of all candidates, block by block if they are pointwise.

        Raises:
            ValueError: the shape is wrong or a score is NaN.
        """
        scores = self._by_block(round) if self.pointwise else self.score(round)
        if scores.shape != (len(round),):
            raise ValueError(f"{_name(self)}: expected one score per candidate ({len(round)},), got shape {tuple(scores.shape)}")
        if bool(scores.sum().isnan()) and bool(scores.isnan().any()):  # the sum alone takes a third, and may be inf - inf
            raise ValueError(
                f"{_name(self)}: {int(scores.isnan().sum())} scores are NaN; the strategy must map every candidate to a number"
            )
        return scores

    def _by_block(self, round: Round) -> Tensor:
        """Score block after block into one tensor: pieces kept between blocks keep the allocator from using their room again."""
        scores, start = torch.zeros(len(round), device=round.device), 0
        for block in round.blocks(*self.needs):
            piece = self.score(block)
            if block is round or piece.shape != (len(block),):
                return piece  # all of them, or of the wrong shape, as `scores` says
            if start == 0:
                scores = scores.to(piece.dtype)
            scores[start : start + len(block)] = piece
            start += len(block)
        return scores

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return the positions of the highest scores, ties in seeded random order."""
        return best_first(self.scores(round), lambda: round.generator(f"ties/{_name(self)}"), budget)


class Wrapper(Strategy):
    """A strategy made of others: it reads what they read, trains their heads and carries what they have learned.

    `alenv.library` builds what is given by name for parameters annotated as strategies.

    Attributes:
        parts: the strategies by the name of the parameter they came as.
    """

    family = "wrapper"

    def __init__(self, **parts: Strategy) -> None:
        self.parts = parts
        self.needs = frozenset().union(*(strategy.needs for strategy in parts.values()))

    def heads(self) -> tuple[Head, ...]:
        """Return the heads of the strategies inside, one of each name."""
        return distinct(head for strategy in self.parts.values() for head in strategy.heads())

    def state_dict(self) -> dict[str, Any]:
        """Return what the strategies inside have learned, by parameter."""
        return {name: strategy.state_dict() for name, strategy in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        for name, strategy in self.parts.items():
            strategy.load_state_dict(state.get(name, {}))


def select_among(strategy: Strategy, round: Round, positions: Int[Tensor, " u"], budget: int) -> Int[Tensor, " B"]:
    """Return what `strategy` buys if only `positions` of a round can be bought: min(budget, u) of them, best first."""
    return positions[strategy.select(round.subset(positions), budget)]


def select_preferring(strategy: Strategy, round: Round, wanted: Bool[Tensor, " U"], budget: int) -> Int[Tensor, " B"]:
    """Return what `strategy` buys among the wanted candidates, and where they are too few the rest among the others."""
    first = torch.nonzero(wanted).flatten()
    if len(first) in (0, len(round)):
        return strategy.select(round, budget)
    picks = select_among(strategy, round, first, budget)
    if len(picks) == budget:
        return picks
    return torch.cat([picks, select_among(strategy, round, torch.nonzero(~wanted).flatten(), budget - len(picks))])


def best_first(
    scores: Float[Tensor, " U"], generator: torch.Generator | Callable[[], torch.Generator], count: int | None = None
) -> Int[Tensor, " k"]:
    """Return the positions of the `count` (default: all) highest scores, highest first, equal scores in random order.

    A generator is drawn from even where no two scores are equal: whoever draws next draws the same. What makes one is not asked
    then.
    """
    lot = _lot(scores, generator) if isinstance(generator, torch.Generator) else None
    top = scores.topk(count + 1) if count is not None and 0 < count < len(scores) // 4 else None  # those it can be, not all
    if top is not None and bool((top.values[1:] < top.values[:-1]).all()):
        return top.indices[:-1]  # the lot decides nothing
    if not isinstance(generator, torch.Generator):
        lot = _lot(scores, generator())
    assert lot is not None
    if top is not None:
        lot = lot[scores[lot] >= top.values[-2]]
    return lot[torch.sort(scores[lot], descending=True, stable=True).indices][:count]


def _lot(scores: Float[Tensor, " U"], generator: torch.Generator) -> Int[Tensor, " U"]:
    return torch.randperm(len(scores), generator=generator, device=scores.device)


def check_positions(positions: Any, budget: int, candidates: int, who: str) -> Int[Tensor, " B"]:
    """Return `positions` as int64, or raise ValueError naming the rule of `Strategy.select` they break."""
    if not isinstance(positions, Tensor):
        raise ValueError(f"{who}: expected a 1-axis integer tensor of positions, got {type(positions).__name__}")
    if positions.dim() != 1 or positions.is_floating_point() or positions.dtype == torch.bool:
        got = f"{positions.dtype} of shape {tuple(positions.shape)}"
        raise ValueError(f"{who}: expected a 1-axis integer tensor of positions, got {got}")
    expected = min(budget, candidates)
    if len(positions) != expected:
        raise ValueError(f"{who}: expected {expected} positions (budget {budget}, {candidates} candidates), got {len(positions)}")
    listed = positions.tolist()
    if expected and (min(listed) < 0 or max(listed) >= candidates):
        raise ValueError(
            f"{who}: expected positions in 0..{candidates - 1}, got {min(listed)}..{max(listed)}; positions, not pool indices"
        )
    if len(set(listed)) < expected:
        raise ValueError(f"{who}: positions repeat; every candidate may be bought once")
    return positions.long()


def check_needs(strategy: Strategy) -> None:
    """Raise ValueError if `strategy.needs` names something no round has."""
    unknown = [need for need in strategy.needs if need not in NEEDS and not need.startswith(NEED_PREFIXES)]
    if unknown:
        raise ValueError(
            f"{_name(strategy)}: unknown needs {sorted(unknown)}; "
            f"a round offers {', '.join(sorted(NEEDS))}, aux:<head>, features:<name>"
        )


def _name(strategy: Strategy) -> str:
    return type(strategy).__name__
