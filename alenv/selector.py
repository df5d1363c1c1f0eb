"""The policy: which strategy, or which mixture, to use next."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Int
from torch import Tensor

from alenv.ballot import Ballot
from alenv.campaign import ActionKind, Plan, Query
from alenv.mixing import Mixing
from alenv.model import TaskModel
from alenv.record import Record
from alenv.streams import Streams
from alenv.trainer import Trainer

Observation = Mapping[str, Any]
LOWER_IS_BETTER = ("nll", "ece")


@dataclass(frozen=True, eq=False)
class Context:
    """What a selector is told before the first round.

    Attributes:
        strategies: names of the S candidates, in the order of actions.
        num_classes: C.
        pool_size: N.
        plan: how much the campaign will buy.
        streams: the campaign's randomness; draw from names of your own.
        trainer: runs nets; owns device and precision.
        net: makes an untrained net of the task model's family with a given number of outputs; None: an untrained task model.
        simulate: `simulate(action, budget=None)` tries an action (on the first `budget` samples of it) and returns the metrics
            on the test split that it would lead to; None unless the selector declares `oracle`.
        reward_range: smallest and largest reward.
    """

    strategies: tuple[str, ...]
    num_classes: int
    pool_size: int
    plan: Plan
    streams: Streams
    trainer: Trainer
    net: Callable[[int | None], TaskModel]
    simulate: Callable[..., Mapping[str, float]] | None = None
    reward_range: tuple[float, float] = (0.0, 1.0)


class Transition(NamedTuple):
    """What an action led to.

    `record` is shown without test metrics unless the selector declares `oracle`; `labels` are what the oracle said of each
    purchase, in the order of the query (negative: no usable label).
    """

    observation: Observation
    action: Any
    query: Query
    record: Record
    reward: float
    next_observation: Observation
    done: bool
    labels: Int[Tensor, " B"]


class Selector(ABC):
    """A policy over query strategies.

    Attributes:
        action_kind: what `act` returns, see `Campaign.choose`.
        mixing: how the environment turns weights into a batch ("pick" and "mix").
        votes: r of "sample_mix".
        shares: how "sample_mix" buys, see `alenv.campaign.Plan`.
        requires: names of strategies it needs among the candidates.
        per_class: names of strategies with a parameter `target` that it wants once for every class, beside the candidates.
        candidates: a candidate set it insists on (as `strategies=` takes it); None leaves the choice to the user.
        reward: the reward it wants unless the user asks for another; None for the environment's default.
        oracle: it peeks at hidden labels (simulation only, an upper line in comparisons).
    """

    action_kind: ClassVar[ActionKind] = "pick"
    mixing: Mixing = "quota"
    votes: float = 1.0
    shares: bool = False
    requires: tuple[str, ...] = ()
    per_class: tuple[str, ...] = ()
    candidates: Any = None
    reward: str | None = None
    oracle: ClassVar[bool] = False

    def begin(self, context: Context) -> None:
        """Get ready for one campaign; forget any earlier one."""
        self.context = context

    @abstractmethod
    def act(self, observation: Observation, ballot: Ballot) -> Any:
        """Return the action for the round that `ballot` belongs to."""

    def update(self, transition: Transition) -> dict[str, float]:
        """Learn from what an action led to; return numbers to log (`weight/<strategy>`, `loss`, ...)."""
        del transition
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what has been learned, as nested dicts and lists of tensors, numbers and strings."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; called after `begin`."""
        del state


def merit(metrics: Mapping[str, float], name: str) -> float:
    """Return one of the metrics that `Context.simulate` gives, with its sign turned where less is better."""
    if name not in metrics:
        raise ValueError(f"unknown metric '{name}'; there are: {', '.join(metrics)}")
    return -metrics[name] if name in LOWER_IS_BETTER else metrics[name]
