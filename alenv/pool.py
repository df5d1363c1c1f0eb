"""Who is labelled: the masks and revealed labels of one campaign."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from alenv.ops import positions

HIDDEN = -1  # not bought
ABSTAINED = -2  # bought, but the oracle gave no label
OUTSIDE = -3  # bought, and of none of the task's classes (out of distribution)


class _Parts(NamedTuple):
    """Indices of a pool, each kind ascending."""

    candidates: Int[Tensor, " U"]
    labeled: Int[Tensor, " L"]
    targets: Int[Tensor, " L"]
    discarded: Int[Tensor, " X"]


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
        self._size = size
        self._known: _Parts | None = None  # until something is revealed

    def __len__(self) -> int:
        return self._size

    @property
    def candidates(self) -> Int[Tensor, " U"]:
        """Indices that can still be bought, ascending."""
        return self._parts.candidates

    @property
    def labeled(self) -> Int[Tensor, " L"]:
        """Indices that were bought and have a usable label, ascending."""
        return self._parts.labeled

    @property
    def targets(self) -> Int[Tensor, " L"]:
        """Classes of `labeled`."""
        return self._parts.targets

    @property
    def discarded(self) -> Int[Tensor, " X"]:
        """Indices that were bought but cannot be trained on, ascending: abstained or out of distribution."""
        return self._parts.discarded

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
        if wanted and (min(wanted) < 0 or max(wanted) >= size):
            raise ValueError(f"expected pool indices in 0..{size - 1}, got {min(wanted)}..{max(wanted)}")
        known = [i for i, label in zip(wanted, self.labels.index_select(0, indices).tolist(), strict=True) if label != HIDDEN]
        if known:
            raise ValueError(f"indices {known[:5]} were bought before; a label is revealed once")
        values = [ABSTAINED if label is None else label for label in labels]
        wrong = [v for v in values if v != int(v) or not (0 <= v < self.num_classes or v in (ABSTAINED, OUTSIDE))]
        if wrong:
            raise ValueError(f"expected labels in 0..{self.num_classes - 1}, None (abstained) or OUTSIDE, got {wrong[:5]}")
        self.labels.index_copy_(0, indices, torch.tensor(values, dtype=torch.int64, device=self.labels.device))
        self.order += wanted
        self._known = None

    def showing(self, indices: Int[Tensor, " k"]) -> "Pool":
        """Return a pool in which only these labels, of those known here, have been bought: a rehearsal of an earlier state."""
        shown = Pool(len(self), self.num_classes, self.labels.device)
        shown.labels[indices] = self.labels[indices]
        wanted = set(indices.tolist())
        shown.order = [i for i in self.order if i in wanted]
        return shown

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue."""
        return {"labels": self.labels.clone(), "order": torch.tensor(self.order, dtype=torch.int64)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.labels = state["labels"].to(self.labels.device).clone()
        self.order = state["order"].tolist()
        self._known = None

    @property
    def _parts(self) -> _Parts:
        if self._known is None:
            candidates, labeled = positions(self.labels == HIDDEN), positions(self.labels >= 0)
            lost = len(self) - len(candidates) - len(labeled)
            discarded = positions(self.labels < HIDDEN) if lost else labeled[:0]
            self._known = _Parts(candidates, labeled, self.labels.index_select(0, labeled), discarded)
        return self._known
