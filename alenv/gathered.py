"""Rows of stored inputs, read when somebody asks: pools that lie in a file need not fit in memory."""

from collections.abc import Iterator
from typing import TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

COPIED_BYTES = 2**28  # rows that take no more are copied: 256 MB
RESIDENT_BYTES = 2**31  # inputs that take no more are moved to an accelerator as a whole: 2 GB


class Gathered:
    """Some rows of stored inputs: what `source[rows]` would be, without the copy; parts of it are copied when asked for.

    Args:
        source: (n, ...) inputs as stored, in memory or in a mapped file.
        rows: (k,) which of them.
        device: where the parts go (default: where `source` is).
    """

    def __init__(self, source: "Inputs", rows: Int[Tensor, " k"], device: torch.device | str | None = None) -> None:
        self.source, self.rows = source, rows.to(source.device)
        self.device: torch.device = torch.device(device) if device is not None else source.device
        self.shape: torch.Size = torch.Size((len(rows), *source.shape[1:]))
        self.dtype: torch.dtype = source.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        wanted = _taken(self.rows, rows.to(self.rows.device) if isinstance(rows, Tensor) else rows)
        return _taken(self.source, wanted).to(self.device)

    def __repr__(self) -> str:
        return f"Gathered({tuple(self.shape)}, {self.dtype}, device={self.device})"

    def dim(self) -> int:
        """Return how many axes there are."""
        return len(self.shape)

    def numel(self) -> int:
        """Return how many numbers there are."""
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        """Whether the inputs are floats."""
        return self.dtype.is_floating_point

    def split(self, size: int) -> Iterator[Tensor]:
        """Return the inputs in pieces of `size` rows."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def copied(self) -> "Inputs":
        """Return a copy of the rows, or, where that would be large, what is read later."""
        return self if self.numel() * self.dtype.itemsize > COPIED_BYTES else self[:]

    def to(self, device: torch.device | str) -> "Gathered":
        """Return the same with parts that go to `device`."""
        return Gathered(self.source, self.rows, device)


Inputs: TypeAlias = Tensor | Gathered


def _taken(source: Inputs, rows: slice | Tensor) -> Tensor:
    """Return `source[rows]`; of a list of positions in a third of the time."""
    if isinstance(source, Tensor) and isinstance(rows, Tensor) and rows.dim() == 1 and rows.dtype == torch.int64:
        return source.index_select(0, rows)
    return source[rows]


def gathered(source: Inputs, rows: Int[Tensor, " k"]) -> Inputs:
    """Return `source[rows]`: of a run of neighbours a view, else a copy, or, where that would be large, what is read later."""
    if isinstance(source, Tensor) and isinstance(run_of(rows), slice):
        return source[run_of(rows)]
    return Gathered(source, rows).copied()


def run_of(rows: Int[Tensor, " k"]) -> slice | Tensor:
    """Return `rows` as a slice if they are a run of neighbours, ascending, else as they are."""
    run = len(rows) > 0 and bool((rows.diff() == 1).all())
    return slice(int(rows[0]), int(rows[-1]) + 1) if run else rows


def shared(source: Inputs, rows: Int[Tensor, " k"], device: torch.device | str) -> Inputs:
    """Return `source[rows]` on `device`, not copied where `source` lies there already: campaigns on one data set share it.

    Very large ones stay where they are, and parts of them go to the device when asked for.
    """
    here, run = source.device.type == torch.device(device).type, run_of(rows)
    if here and isinstance(source, Tensor) and isinstance(run, slice):
        return source[run]
    large = len(rows) * source[:1].numel() * source.dtype.itemsize > RESIDENT_BYTES
    return Gathered(source, rows, device) if here or large else source[run].to(device)
