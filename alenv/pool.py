"""Who is labelled: the masks and revealed labels of one campaign."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

HIDDEN = -1  # not bought
ABSTAINED = -2  # bought, but the oracle gave no label
OUTSIDE = -3  # bought, and of none of the task's classes (out of distribution)


class Pool:
    """The pool of one campaign: what has been bought and what it turned out to be.

    Attributes:
        labels: (N,) int64; a class number once revealed, else `HIDDEN`, `ABSTAINED` or `OUTSIDE`.
        order: indices in the order they were bought.
    """

    def __init__(self, size: int, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.labels: Int[Tensor, " N"] = torch.full((size,), HIDDEN, dtype=torch.int64, device=device)
        self.order: list[int] = []

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labeled(self) -> Bool[Tensor, " N"]:
        """Bought, with a usable label."""
        return self.labels >= 0

    @property
    def discarded(self) -> Bool[Tensor, " N"]:
        """Bought but unusable for training: abstained or out of distribution."""
        return self.labels < HIDDEN

    @property
    def candidates(self) -> Int[Tensor, " U"]:
        """Indices that can still be bought, ascending."""
        return torch.nonzero(self.labels == HIDDEN).flatten()

    @property
    def bought(self) -> int:
        """How many were bought, discarded ones included."""
        return len(self.order)

    def reveal(self, indices: Int[Tensor, " B"], labels: Sequence[int | None]) -> None:
        """Write down what the oracle said.

        Args:
            indices: distinct pool indices, none revealed before.
            labels: one per index: a class number, None (abstained), or `OUTSIDE`.

        Raises:
            ValueError: lengths differ, an index is out of range, repeated or already revealed, or a label is no class. Nothing
                is changed then.
        """
        wanted, size = indices.tolist(), len(self)
        if len(wanted) != len(labels):
            raise ValueError(f"expected one label per index ({len(wanted)}), got {len(labels)}")
        if len(set(wanted)) != len(wanted):
            raise ValueError("an index is revealed twice in one batch; every index may be bought once")
        if any(not 0 <= i < size for i in wanted):
            raise ValueError(f"expected pool indices in 0..{size - 1}, got {min(wanted)}..{max(wanted)}")
        known = indices[self.labels[indices] != HIDDEN].tolist()
        if known:
            raise ValueError(f"indices {known[:5]} were bought before; a label is revealed once")
        values = [ABSTAINED if label is None else label for label in labels]
        wrong = [v for v in values if v != int(v) or not (0 <= v < self.num_classes or v in (ABSTAINED, OUTSIDE))]
        if wrong:
            raise ValueError(f"expected labels in 0..{self.num_classes - 1}, None (abstained) or OUTSIDE, got {wrong[:5]}")
        self.labels[indices] = torch.tensor(values, dtype=torch.int64, device=self.labels.device)
        self.order += wanted

    def showing(self, indices: Int[Tensor, " k"]) -> "Pool":
        """Return a pool in which only these labels, of those known here, have been bought: a rehearsal of an earlier state."""
        shown = Pool(len(self), self.num_classes, self.labels.device)
        shown.labels[indices] = self.labels[indices]
        bought = (shown.labels != HIDDEN).tolist()
        shown.order = [i for i in self.order if bought[i]]
        return shown

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue."""
        return {"labels": self.labels.clone(), "order": torch.tensor(self.order, dtype=torch.int64)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.labels = state["labels"].to(self.labels.device).clone()
        self.order = state["order"].tolist()
