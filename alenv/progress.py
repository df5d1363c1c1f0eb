"""The run as a person watches it: a live table in a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from alenv.campaign import Campaign
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
        rounds = 0 if campaign.done else campaign.plan.rounds + 1 - campaign.index
        if done <= 0 or rounds <= 0:
            return "" if rounds else "done"
        seconds = (time.perf_counter() - self._began) / done * rounds
        return f"{rounds} to go, about {_duration(seconds)}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
