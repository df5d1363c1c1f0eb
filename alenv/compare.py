"""`python -m alenv.compare`: run policies on data sets over seeds, and say which is better and how sure that is."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from alenv import cli, library
from alenv.durable import write_atomically
from alenv.executors import Executor
from alenv.grid import AXES, CONDUCT, Cell, expand, frame
from alenv.rundir import RunDirectory, config_hash

if TYPE_CHECKING:
    from alenv.progress import GridProgress
    from alenv.verdict import Verdict

Failures = list[tuple[Cell, str]]


def compare(config: Mapping[str, Any], directory: str | Path, console: Console | None = None) -> "Verdict":
    """Compute what is missing of a grid, write its report, and return its statistics.

    Args:
        config: keys of `configs/compare.yaml`; those left out have the values there.
        directory: of the comparison; cells that lie there finished are not computed again.
        console: where progress and failures are shown; None shows nothing.

    Raises:
        ValueError: the configuration names what there is not, or no cell finished.
    """
    from alenv.progress import GridProgress
    from alenv.report import write_report
    from alenv.tensorboard import write_comparison
    from alenv.verdict import Verdict

    whole = {**_defaults(), **config}
    cells = expand(whole)
    executor: Executor = library.build("executor", whole["executor"])
    folder = RunDirectory(directory, {})
    with folder.locked():
        write_atomically(folder.path / "config.yaml", yaml.safe_dump(whole, sort_keys=False, allow_unicode=True))
        failures = compute(cells, folder.path, executor, GridProgress(console or Console(quiet=True), executor.width))
        rounds = frame(cells, folder.path)
        if rounds.empty:
            raise ValueError(f"no cell finished; why is in {folder.path / 'cells'}/*/log.txt")
        verdict = Verdict(rounds, whole["baseline"])
        write_report(folder.path, verdict, cells, failures, whole)
        write_comparison(folder.path / "tensorboard", verdict, cells, folder.path)
    return verdict


def compute(cells: Sequence[Cell], root: Path, executor: Executor, progress: "GridProgress") -> Failures:
    """Compute the cells that are not finished; return those that failed, and why."""
    missing = [cell for cell in cells if not cell.finished(root)]
    failures = []
    with progress.over(cells, missing):
        for event in executor.run(missing, root) if missing else ():
            progress.tell(event)
            failures += [(event.cell, event.log)] * (event.kind == "failed")
    return failures


def table(verdict: "Verdict") -> Table:
    """Return the policies, best mean rank first, as a rich table."""
    from alenv.verdict import span

    made = Table(title=verdict.title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    for heading in ("policy", "area", f"minus {verdict.baseline}, points", "labels saved, %", "rank", "select, s"):
        made.add_column(heading, justify="left" if heading == "policy" else "right", no_wrap=heading != "policy")
    for policy in verdict.ranking:
        against = ("", "")
        if policy != verdict.baseline and verdict.common(policy, verdict.baseline):
            difference, saving = verdict.difference(policy, verdict.baseline), verdict.saving(policy, verdict.baseline)
            against = (span(difference, "+"), span(saving, "+", 0))
        area, rank, seconds = verdict.area(policy).value, verdict.ranks[policy], verdict.seconds(policy)
        made.add_row(policy, f"{100 * area:.2f}", *against, f"{rank:.2f}", f"{seconds:.2f}")
    return made


def _defaults() -> dict[str, Any]:
    """Return what `configs/compare.yaml` says, groups by name."""
    chosen = {group: name for group, name in cli.groups("compare").items() if name is not None}
    return chosen | {key: value for key, value in cli.content("compare").items() if key not in ("defaults", "hydra")}


def run_name(*, _root_: DictConfig) -> str:
    """Return `compare-<preset>-<hash8>`: a grid that grows by seeds, policies or data sets keeps its directory."""
    config = {key: value for key, value in cli.resolved(_root_).items() if key not in (*AXES, *CONDUCT)}
    return f"compare-{_root_.hydra.runtime.choices.get('preset') or 'own'}-{config_hash(config)}"


@hydra.main(version_base="1.3", config_path="pkg://alenv.configs", config_name="compare")  # type: ignore[untyped-decorator]
def _job(config: DictConfig) -> None:
    with cli.speaking(sys.__stderr__):
        _compare(cli.resolved(config), Path(HydraConfig.get().runtime.output_dir).absolute())


def _compare(config: dict[str, Any], directory: Path) -> None:
    console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(f"run directory: {directory}", markup=False)
    with cli.told(directory):
        verdict = compare(config, directory, console)
    console.print(table(verdict), soft_wrap=False)
    for policy in verdict.ranking:
        console.print(f"{policy}: {verdict.sentence(policy)}", markup=False)
    console.print(f"report:  {directory / 'report.html'}", markup=False)
    console.print(f"results: {directory}", markup=False)


def main() -> None:
    """Entry point of the command."""
    OmegaConf.register_new_resolver("alenv_compare", run_name, replace=True)
    cli.call(_job, "compare")


if __name__ == "__main__":
    main()
