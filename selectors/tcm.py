"""TCM, "TypiClust then margin": the two-line schedule that every learned selector has to beat."""

from alenv.ballot import Ballot
from alenv.selector import Observation, Selector


class TCM(Selector):
    """Buy typical samples while labels are few, uncertain ones later.

    The budget regimes of Hacohen, Dekel & Weinshall (ICML 2022) as a fixed schedule (Doucet et al., arXiv 2406.07124).

    Args:
        rounds: rounds of TypiClust before margin takes over.
    """

    action_kind = "pick"
    requires = ("typiclust", "margin")

    def __init__(self, rounds: int = 3) -> None:
        if rounds < 0:
            raise ValueError(f"tcm: expected rounds >= 0, got {rounds}")
        self.rounds = rounds

    def act(self, observation: Observation, ballot: Ballot) -> int:
        """Return TypiClust in the first rounds, then margin."""
        return ballot.names.index("typiclust" if ballot.round.index <= self.rounds else "margin")
