"""Seconds by what they were spent on; a nested measurement is not counted twice."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """A stopwatch with named laps: entering a name stops the one outside until it is left."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stack: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the time inside the block for `name`."""
        self._flush()
        self._stack.append(name)
        try:
            yield
        finally:
            self._flush()
            self._stack.pop()

    def take(self) -> dict[str, float]:
        """Return the seconds since the last take, and start from zero."""
        self._flush()
        taken, self.seconds = self.seconds, {}
        return taken

    def _flush(self) -> None:
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] = self.seconds.get(self._stack[-1], 0.0) + now - self._since
        self._since = now
