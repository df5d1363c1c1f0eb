"""The policy: which strategy, or which mixture, to use next."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from alenv.ballot import Ballot
from alenv.campaign import ActionKind, Plan, Query
from alenv.mixing import Mixing
from alenv.model import TaskModel
from alenv.record import Record
from alenv.streams import Streams
from alenv.trainer import Trainer

Observation = Mapping[str, Any]


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
        net: makes an untrained net of the task model's family with a given number of outputs.
        simulate: tries an action and returns metrics; None unless the selector declares `oracle`.
    """

    strategies: tuple[str, ...]
    num_classes: int
    pool_size: int
    plan: Plan
    streams: Streams
    trainer: Trainer
    net: Callable[[int], TaskModel]
    simulate: Callable[[Any], Mapping[str, float]] | None = None


class Transition(NamedTuple):
    """What an action led to. `record` is shown without test metrics unless the selector declares `oracle`."""

    observation: Observation
    action: Any
    query: Query
    record: Record
    reward: float
    next_observation: Observation
    done: bool


class Selector(ABC):
    """A policy over query strategies.

    Attributes:
        action_kind: what `act` returns, see `Campaign.choose`.
        mixing: how the environment turns weights into a batch.
        votes: r of "sample_mix".
        requires: names of strategies it needs among the candidates.
        candidates: a candidate set it insists on (as `strategies=` takes it); None leaves the choice to the user.
        reward: the reward it wants unless the user asks for another; None for the environment's default.
        oracle: it peeks at hidden labels (simulation only, an upper line in comparisons).
    """

    action_kind: ClassVar[ActionKind] = "pick"
    mixing: Mixing = "quota"
    votes: float = 1.0
    requires: tuple[str, ...] = ()
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
