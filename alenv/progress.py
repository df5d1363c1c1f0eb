"""The run as a person watches it: a live table in a terminal, plain lines elsewhere."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from alenv.campaign import Campaign
from alenv.executors import Event
from alenv.grid import Cell
from alenv.record import Record
from alenv.render import HEADINGS, row, table
from alenv.runner import Callback


class ProgressTable(Callback):
    """A row per round: labels, accuracy, what was chosen, seconds; time left below.

    Args:
        console: where to; a console that is not a terminal gets plain lines.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Live | None = None
        self._title = ""
        self._seen = 0
        self._began = 0.0

    def begin(self, campaign: Campaign, directory: Path | None, config: Mapping[str, Any], note: str) -> None:
        """Show what was done before, if the run continues."""
        task = campaign.task
        sizes = f"pool {len(task):,}, validation {len(task.validation):,}, test {len(task.test):,}"
        self._title = f"{task.name} ({task.setting}), {task.num_classes} classes, {sizes}, on {campaign.trainer.device}"
        self._began, self._seen = time.perf_counter(), len(campaign.records)
        if note:
            self.console.print(f"note: {note}")
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()
            self._show(campaign)
        else:
            self.console.print(self._title)
            if campaign.index > 1:
                self.console.print(f"continuing after round {campaign.index - 1}")

    def round(self, record: Record, campaign: Campaign) -> None:
        """Add the round."""
        if self._live is not None:
            self._show(campaign)
            return
        cells = [f"{heading} {cell}" for heading, cell in zip(HEADINGS, row(record), strict=True) if cell]
        self.console.print("  ".join(text for text in [*cells, self._left(campaign)] if text), soft_wrap=True, highlight=False)

    def close(self) -> None:
        """Leave the table as it stands."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self, campaign: Campaign) -> None:
        assert self._live is not None
        height = max(5, self.console.height - 8)
        shown = table(campaign.records[-height:], self._title)
        shown.caption, shown.caption_justify = self._left(campaign), "left"
        self._live.update(shown, refresh=True)

    def _left(self, campaign: Campaign) -> str:
        done = len(campaign.records) - self._seen
        rounds = 0 if campaign.finished else campaign.plan.rounds + 1 - campaign.index
        if done <= 0 or rounds <= 0:
            return "" if rounds else "done"
        seconds = (time.perf_counter() - self._began) / done * rounds
        return f"{rounds} to go, about {duration(seconds)}"


class GridProgress:
    """Cells done, running, failed, and the time left; failures and their reasons at once.

    Args:
        console: where to; a console that is not a terminal gets a line per cell.
        width: how many cells are computed at once, if that is known.
    """

    def __init__(self, console: Console, width: int | None = None) -> None:
        self.console, self.width = console, width
        self._live: Live | None = None

    @contextmanager
    def over(self, cells: Sequence[Cell], missing: Sequence[Cell]) -> Iterator[None]:
        """Watch over the `missing` ones of `cells`."""
        self._total, self._before, self._missing = len(cells), len(cells) - len(missing), {c.name: c for c in missing}
        self._running: dict[str, tuple[str, float]] = {}  # policy, begun
        self._waiting = Counter(cell.policy for cell in missing)
        self._spent: dict[str, list[float]] = {}  # policy -> seconds of its finished cells
        self._done = self._failed = 0
        self._began = time.perf_counter()
        found = f", {self._before} of them finished before" if self._before else ""
        self.console.print(f"{self._total} cells{found}")
        if not missing:
            yield
            return
        live = self._live = Live(console=self.console, get_renderable=self._line) if self.console.is_terminal else None
        if live is None:
            yield
            return
        with live:
            yield

    def tell(self, event: Event) -> None:
        """Take notice of what happened to a cell."""
        name, policy = event.cell.name, event.cell.policy
        _, begun = self._running.pop(name, (policy, None))
        if event.kind == "started":
            self._running[name] = (policy, time.perf_counter())
        self._waiting[policy] += (begun is not None) - (event.kind != "lost")  # nobody says when a cell far away starts
        if event.kind in ("finished", "failed"):
            self._missing.pop(name, None)
            self._done += event.kind == "finished"
            self._failed += event.kind == "failed"
            if begun is not None:
                self._spent.setdefault(policy, []).append(time.perf_counter() - begun)
            if self._live is None:
                self.console.print(f"{event.kind} {event.cell}; {self._state()}", markup=False)
        if event.kind in ("lost", "failed"):
            what = "lost, it is started again:" if event.kind == "lost" else "failed:"
            self.console.print(f"{event.cell} {what}\n{_indented(event.log)}", markup=False, style="red")

    def _line(self) -> Text:
        running = [self._missing[name] for name in self._running if name in self._missing]
        names = ", ".join(str(cell) for cell in running[:4]) + (", ..." if len(running) > 4 else "")
        return Text("\n".join([self._state(), f"  now: {names}"] if names else [self._state()]))

    def _state(self) -> str:
        parts = [f"{self._before + self._done} of {self._total} done"]
        parts += [f"{len(self._running)} running"] * bool(self._running) + [f"{self._failed} failed"] * bool(self._failed)
        return ", ".join(parts) + self._left()

    def _left(self) -> str:
        """Return the time left: what cells of the same policy took, or else all, spread over the width."""
        if not self._missing or not (self._done or self._failed):
            return ""
        if not self._spent:
            seconds = (time.perf_counter() - self._began) / (self._done + self._failed) * len(self._missing)
        else:
            means = {policy: sum(spent) / len(spent) for policy, spent in self._spent.items()}
            usual = sum(means.values()) / len(means)
            now = time.perf_counter()
            waiting = {policy: means.get(policy, usual) for policy, count in self._waiting.items() if count}
            ahead = [max(0.0, means.get(policy, usual) - (now - begun)) for policy, begun in self._running.values()]
            total = sum(ahead) + sum(takes * self._waiting[policy] for policy, takes in waiting.items())
            seconds = max(total / (self.width or max(1, len(self._running))), *ahead, *waiting.values(), 0.0)
        return f", about {duration(seconds)} left"


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
