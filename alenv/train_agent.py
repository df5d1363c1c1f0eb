"""`python -m alenv.train_agent`: train a policy over strategies on many campaigns; `selector.path=` then runs it."""

import gc
import shlex
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from alenv import cli
from alenv.rundir import config_hash


def run_name(*, _root_: DictConfig) -> str:
    """Return `agent-<algorithm>-<seed>-<hash8>` of the configuration being composed."""
    config = cli.resolved(_root_)
    return f"agent-{config['algorithm']}-{config['seed']}-{config_hash(config)}"


@hydra.main(version_base="1.3", config_path="pkg://alenv.configs", config_name="train_agent")  # type: ignore[untyped-decorator]
def _job(config: DictConfig) -> None:
    with cli.speaking(sys.__stderr__):
        _train(cli.resolved(config), Path(HydraConfig.get().runtime.output_dir))


def _train(config: dict[str, Any], directory: Path) -> None:
    console = Console(soft_wrap=True, highlight=False)
    # before torch is imported: a sign of life within a second
    console.print(f"run directory: {directory.absolute()}", markup=False)
    from alenv.agent_progress import AgentProgress
    from alenv.agent_trainer import AgentTrainer

    command = shlex.join(["python", "-m", "alenv.train_agent", *sys.argv[1:]])
    with cli.told(directory):
        trainer = AgentTrainer(config, directory, [AgentProgress(console)], command)
        gc.freeze()  # the collector need not look through the libraries again and again while models come and go
        try:
            summary = trainer.run()
        finally:
            gc.unfreeze()
    final = summary["final"]
    if "area" in final:
        console.print(f"area under the validation curve {final['area']:.4f}, random picks {summary['random_area']:.4f}")
    name = config["algorithm"] if config["algorithm"] in ("dqn", "sac") else "ppo"
    folder = shlex.quote(str(directory.absolute()))
    console.print(f"{summary['steps']:,} steps, {summary['seconds']:.0f} s")
    console.print(f"use:     python -m alenv.train selector={name} selector.path={folder}", markup=False)
    console.print(f"look:    tensorboard --logdir {folder}", markup=False)
    console.print(f"results: {directory.absolute()}", markup=False)


def main() -> None:
    """Entry point of the command."""
    OmegaConf.register_new_resolver("alenv_agent", run_name, replace=True)
    cli.call(_job, "train_agent")


if __name__ == "__main__":
    main()
