"""TAILOR: Zhang, Shao, Verma & Nowak, "Algorithm selection for deep active learning with imbalanced datasets", NeurIPS 2023."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alenv import bandits
from alenv.ballot import Ballot
from alenv.campaign import weights_action
from alenv.rewards import class_values
from alenv.selector import Context, Observation, Selector, Transition

BLOCK_ELEMENTS = 2**22  # Gamma draws held at once
Reward = Literal["div", "pos"]


class Tailor(Selector):
    """Thompson sampling of strategies by the classes their purchases turn out as; no accuracy is estimated.

    Strategy k keeps discounted counts n_k of the classes it brought. For every slot of a batch theta_k ~ Dirichlet(n_k + 1) is
    drawn, and the slot goes to the strategy of the highest theta_k . v, where v_c = 1 / max(1, N_c) makes labels of rare classes
    dear and, for "div", is negative for a class that holds more than half of all labels. After the batch n_k <- discount n_k +
    counts of the labels k's purchases got. A strategy not used for long drifts back to the uniform law and is tried again.

    O(B K C) a round. Slots are drawn first and handed out strategy by strategy, largest share first (the paper goes slot by
    slot; the batch differs only where wishes coincide). The paper's arms are GALAXY and most likely positives, one of each per
    class, and least confidence, BADGE and SIMILAR: `strategies=[least_confidence, badge, similar]`.

    Args:
        per_class: strategies with a parameter `target` that become an arm for every class, beside the candidates.
        values: "div" or "pos" (v = 1, for tasks with several labels a sample; here it makes all strategies equal).
        discount: of the counts, every round.
        prior: count of every class at first.
    """

    action_kind = "mix"
    mixing = "quota"

    def __init__(
        self, per_class: Sequence[str] = ("galaxy", "most_likely_positive"), values: Reward = "div", discount: float = 0.9,
        prior: float = 1.0,
    ) -> None:  # fmt: skip
        if values not in get_args(Reward):
            raise ValueError(f"tailor: expected values to be one of {', '.join(get_args(Reward))}, got '{values}'")
        if not 0 <= discount <= 1 or prior < 0:
            raise ValueError(f"tailor: expected discount in [0, 1] and prior >= 0, got discount={discount}, prior={prior}")
        self.per_class = tuple(per_class)
        self.values, self.discount, self.prior = values, discount, prior

    def begin(self, context: Context) -> None:
        """Start from the prior."""
        super().begin(context)
        self.counts = torch.full((len(context.strategies), context.num_classes), self.prior, dtype=torch.float64)

    def act(self, observation: Observation, ballot: Ballot) -> Any:
        """Return the share of slots that each strategy won."""
        labels = torch.bincount(ballot.round.labels, minlength=self.context.num_classes).to(self.counts.device)
        pulls = self.pulls(labels, ballot.budget, self.context.streams.on("cpu")("selector/tailor", ballot.round.index))
        return weights_action(pulls / pulls.sum())

    def pulls(self, labels: Int[Tensor, " C"], slots: int, generator: torch.Generator) -> Float[Tensor, " K"]:
        """Return how many of `slots` each strategy wins, given how many labels of each class there are."""
        values = class_values(labels) if self.values == "div" else torch.ones(len(labels), dtype=torch.float64)
        rows = max(1, BLOCK_ELEMENTS // self.counts.numel())
        won = torch.zeros(len(self.counts), dtype=torch.float64)
        for start in range(0, slots, rows):
            size = min(rows, slots - start)
            worth = bandits.dirichlet((self.counts + 1).expand(size, -1, -1), generator) @ values  # (slots, K)
            lot = torch.rand(worth.shape, generator=generator)
            ties = worth >= worth.amax(1, keepdim=True) - 1e-12
            won += torch.bincount(torch.where(ties, lot, -1.0).argmax(1), minlength=len(won))
        return won

    def update(self, transition: Transition) -> dict[str, float]:
        """Fade the counts and add the labels that came."""
        labels, names = transition.labels.to(self.counts.device), self.context.strategies
        by = torch.tensor([names.index(name) for name in transition.query.chosen_by], dtype=torch.int64)
        usable = labels >= 0
        arrived = torch.zeros_like(self.counts).index_put((by[usable], labels[usable]), torch.ones(()).double(), accumulate=True)
        self.counts = self.discount * self.counts + arrived
        share = torch.bincount(by, minlength=len(names)) / max(1, len(by))
        return {f"pulls/{name}": value for name, value in zip(names, share.tolist(), strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Return the counts."""
        return {"counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.counts = state["counts"].to(self.counts)
