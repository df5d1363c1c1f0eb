"""The training of an agent as a person watches it: a bar in a terminal, a line per chapter elsewhere."""

from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from alenv.agent_trainer import Listener


class AgentProgress(Listener):
    """Steps done, time left, and what evaluations found.

    Args:
        console: where to; a console that is not a terminal gets a line per chapter.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Progress | None = None

    def begin(self, total: int, done: int) -> None:
        """Show the bar."""
        if done:
            self.console.print(f"continuing after {done:,} steps", highlight=False)
        if self.console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("steps,"), TimeElapsedColumn(), TextColumn("of which left"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=self.console)
            self._task = self._bar.add_task("", total=total, completed=done)
            self._bar.start()

    def step(self, done: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def chapter(self, row: Mapping[str, float]) -> None:
        """Say what the evaluation found."""
        self.step(int(row["steps"]))
        found = f", area {row['area']:.4f} ({row['over_random']:+.4f} over random picks)" if "area" in row else ""
        self.console.print(f"{int(row['steps']):>8,} steps{found}, {row['seconds']:.0f} s", highlight=False)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
