"""Long work in blocks: halved where memory does not suffice, and shown while it takes long."""

import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeVar

import torch

SILENT_SECONDS = 2.0  # work that takes no longer shows nothing

T = TypeVar("T")


def in_blocks(compute: Callable[[slice], T], count: int, size: int, what: str, bar: bool = True) -> Iterator[tuple[slice, T]]:
    """Yield (rows, compute(rows)) over 0..count-1, `size` rows at a time.

    Out of memory, the block is halved, for good, and a warning says so; a single row that does not fit raises. While it takes
    long and somebody watches a terminal, a bar named `what` is shown (unless `bar` is false).
    """
    start, shown = 0, _Bar(what, count) if bar else None
    try:
        while start < count:
            rows = slice(start, min(start + size, count))
            try:
                value = compute(rows)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size = max(1, (rows.stop - rows.start) // 2)
                warnings.warn(f"{what}: out of memory; going on with {size} examples at a time", stacklevel=2)
                _release()
                continue
            yield rows, value
            start = rows.stop
            if shown is not None:
                shown.at(start)
    finally:
        if shown is not None:
            shown.close()


def counted(steps: Sequence[T], what: str) -> Generator[T, None, None]:
    """Yield `steps`; while they take long and somebody watches a terminal, a bar named `what` is shown. Waits for no device."""
    shown = _Bar(what, len(steps))
    try:
        for done, step in enumerate(steps, 1):
            yield step
            shown.at(done)
    finally:
        shown.close()


def _release() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _Bar:
    """A progress bar that appears late, on a terminal only."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._began = time.perf_counter()
        self._bar: object | None = None

    def at(self, done: int) -> None:
        if self._bar is None and sys.stderr.isatty() and time.perf_counter() - self._began > SILENT_SECONDS:
            from rich.console import Console
            from rich.progress import Progress

            self._bar = bar = Progress(console=Console(stderr=True), transient=True)
            bar.start()
            self._task = bar.add_task(self._what, total=self._total)
        if self._bar is not None:
            self._bar.update(self._task, completed=done)  # type: ignore[attr-defined]

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()  # type: ignore[attr-defined]
