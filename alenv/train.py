"""`python -m alenv.train`: run one selector on one data set, watch it, keep everything."""

import shlex
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from alenv import cli


@hydra.main(version_base="1.3", config_path="pkg://alenv.configs", config_name="train")  # type: ignore[untyped-decorator]
def _job(config: DictConfig) -> None:
    with cli.speaking(sys.__stderr__):
        _train(cli.resolved(config), Path(HydraConfig.get().runtime.output_dir))


def _train(config: dict[str, Any], directory: Path) -> None:
    console = Console(soft_wrap=True, highlight=False)
    # before torch is imported: a sign of life within a second
    console.print(f"run directory: {directory.absolute()}", markup=False)
    from alenv.oracle import AwaitingLabels
    from alenv.progress import ProgressTable
    from alenv.runner import Runner
    from alenv.tensorboard import TensorBoard

    try:
        with cli.told(directory):
            run = Runner.of(config, directory, [ProgressTable(console), TensorBoard()]).run()
    except AwaitingLabels as wait:
        console.print(str(wait), markup=False)
        return
    summary = run.summary
    area = (
        "no test split"
        if summary["aubc"] is None
        else f"{summary['metric']} {summary['final']:.4f}, area under its curve {summary['aubc']:.4f}"
    )
    console.print(f"{area}; {summary['labels']} labels, {summary['seconds']:.1f} s")
    console.print(f"look:    tensorboard --logdir {shlex.quote(str(directory.parent.absolute()))}", markup=False)
    console.print(f"results: {directory.absolute()}", markup=False)


def main() -> None:
    """Entry point of the command."""
    cli.call(_job, "train")


if __name__ == "__main__":
    main()
