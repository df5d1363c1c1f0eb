"""Draws docs/run.svg: the live table of `python -m alenv.train selector=autoal`, as the README shows it."""

import io
from pathlib import Path

from rich.console import Console

from alenv.progress import ProgressTable
from alenv.render import table
from alenv.runner import Runner

if __name__ == "__main__":
    run = Runner.of({"selector": "autoal", "device": "cpu"}, callbacks=[ProgressTable(Console(file=io.StringIO()))]).run()
    console = Console(record=True, width=124, file=io.StringIO(), force_terminal=True)
    console.print("[bold]$ python -m alenv.train selector=autoal[/bold]")
    console.print(table(run.rounds, "digits (standard), 10 classes, pool 1,350, validation 150, test 297, on cpu"))
    console.print(f"accuracy {run.summary['final']:.4f}, area under its curve {run.summary['aubc']:.4f}")
    target = Path(__file__).parent.parent / "docs" / "run.svg"
    target.parent.mkdir(exist_ok=True)
    console.save_svg(str(target), title="alenv")
    print(target)
