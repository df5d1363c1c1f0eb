"""One strategy, always: what every other selector is compared with."""

from typing import Any

from alenv.ballot import Ballot
from alenv.selector import Observation, Selector


class Fixed(Selector):
    """Use one strategy in every round.

    Args:
        strategy: a name, a mapping with `name` and parameters, or "module:Class".
    """

    action_kind = "pick"

    def __init__(self, strategy: Any = "margin") -> None:
        self.candidates = [strategy]

    def act(self, observation: Observation, ballot: Ballot) -> int:
        """Return 0, the only candidate."""
        return 0
