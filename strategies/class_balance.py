"""A balancing step on predicted classes (Aggarwal, Popescu & Hudelot, "Active Learning for Imbalanced Datasets", WACV 2020)."""

import torch
from jaxtyping import Int
from torch import Tensor

from alenv.round import Round
from alenv.strategy import Strategy, Wrapper, select_among


class ClassBalance(Wrapper):
    """Buy most of the classes with fewest labels: quotas per predicted class, within a class the order of another strategy.

    If every prediction were right, the counts of labels after the purchase would be as even as the candidates allow: the
    smallest counts are raised first (water filling), and a label that several classes could get falls by lot. O(U C + U log U)
    beside the cost of `inner`, which runs once for each class with a quota and sees the candidates of that class only.

    Args:
        inner: the strategy that buys within a class.
    """

    def __init__(self, inner: Strategy) -> None:
        super().__init__(inner=inner)
        self.inner = inner
        self.needs |= {"probs", "labels"}

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return picks by rising count of labels in their class, so that every beginning of the batch is even too."""
        predicted = round.probs.argmax(1)
        labels = torch.bincount(round.labels, minlength=round.num_classes)
        available = torch.bincount(predicted, minlength=round.num_classes)
        members = torch.sort(predicted, stable=True).indices.split(available.tolist())  # positions by class
        quota = quotas(labels, available, budget, round.generator("class_balance"))
        wanted = [(c, count) for c, count in enumerate(quota.tolist()) if count]
        picks = [select_among(self.inner, round, members[c], count) for c, count in wanted]
        level = torch.cat([labels[c] + torch.arange(count, device=round.device) for c, count in wanted])
        lot = torch.randperm(budget, generator=round.generator("class_balance/order"), device=round.device)
        return torch.cat(picks)[lot[torch.sort(level[lot], stable=True).indices]]


def quotas(labels: Int[Tensor, " C"], available: Int[Tensor, " C"], budget: int, generator: torch.Generator) -> Int[Tensor, " C"]:
    """Return how many to buy of each class: at most what is available, `budget` in all, the smallest sums `labels + quota` first.

    The level is found by bisection: the largest at which filling every class up to it stays within the budget.
    """
    low, high = 0, int(labels.max()) + budget
    while low < high:
        middle = (low + high + 1) // 2
        fits = int(torch.minimum((middle - labels).clamp(min=0), available).sum()) <= budget
        low, high = (middle, high) if fits else (low, middle - 1)
    quota = torch.minimum((low - labels).clamp(min=0), available)
    lot = torch.randperm(len(labels), generator=generator, device=labels.device)
    short = lot[((labels + quota == low) & (quota < available))[lot]]  # those the next label may go to
    quota[short[: budget - int(quota.sum())]] += 1
    return quota
