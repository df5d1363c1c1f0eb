"""`alenv-compare`: what a user types, what is answered, what is left on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from alenv import cli, compare, library
from alenv.grid import AXES, CONDUCT, expand
from alenv.runner import Runner

Command = Callable[..., Any]  # words -> what was said, see `issue`
ROOT = Path(__file__).resolve().parent.parent
SMALL = (
    "datasets=[iris]", "budget.initial=6", "budget.batch=3", "budget.rounds=2", "executor=inline", "selectors=[random_pick]",
    "fixed=[margin,uniform]", "seeds=2", "device=cpu", "hydra.run.dir=out",
)  # fmt: skip


@pytest.fixture
def command(issue: Command) -> Command:
    """`alenv-compare`, standing in an empty folder."""
    return lambda *words: issue(compare.main, *words)


def composed(*words: str) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    OmegaConf.register_new_resolver("alenv_compare", compare.run_name, replace=True)
    with initialize_config_module("alenv.configs", version_base="1.3"):
        return cli.resolved(compose("compare", overrides=list(words)))


def test_a_comparison_leaves_what_the_design_promises(command: Command, tmp_path: Path) -> None:
    answer = command(*SMALL)
    assert (answer.code, answer.err) == (0, "")
    said = answer.out.splitlines()
    assert said[0] == f"run directory: {tmp_path / 'out'}"
    assert said[-2:] == [f"report:  {tmp_path / 'out' / 'report.html'}", f"results: {tmp_path / 'out'}"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.yaml", "cells", "report.html", "summary.csv", "rounds.parquet", "figures", "tensorboard",
    }  # fmt: skip
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 6
    assert any(line.startswith("margin: ") for line in said), "a sentence for each policy"


def test_the_tables_hold_what_the_runs_say(command: Command, tmp_path: Path) -> None:
    command(*SMALL)
    rounds = pandas.read_parquet(tmp_path / "out" / "rounds.parquet")
    assert len(rounds) == 6 * 3
    assert set(rounds.columns) >= {"task", "policy", "seed", "bought", "value", "accuracy", "queried", "action", "seconds/select"}
    summary = pandas.read_csv(tmp_path / "out" / "summary.csv").set_index("policy")
    assert list(summary.index) == ["random_pick", "margin", "uniform"]
    runs = [pandas.read_json(f, typ="series") for f in (tmp_path / "out" / "cells").glob("*-margin-*/summary.json")]
    assert summary.loc["margin", "area"] == pytest.approx(sum(run["aubc"] for run in runs) / 2)
    assert pandas.isna(summary.loc["uniform", "difference"])
    assert set(summary["baseline"]) == {"uniform"}


def test_a_second_command_computes_nothing_and_says_the_same(command: Command, tmp_path: Path) -> None:
    first = command(*SMALL).out.splitlines()
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "out" / "cells").rglob("*") if f.is_file()}
    page = (tmp_path / "out" / "report.html").read_bytes()
    second = command(*SMALL).out.splitlines()
    assert "6 cells, 6 of them finished before" in second
    assert [line for line in first if not line.startswith("finished")][2:] == second[2:]
    assert {f: f.stat().st_mtime_ns for f in before} == before
    assert (tmp_path / "out" / "report.html").read_bytes() == page, "figures hold no dates and no dice"


def test_a_failed_run_is_told_and_the_report_is_made_of_the_others(command: Command, tmp_path: Path) -> None:
    answer = command(*SMALL, "fixed=[margin,{name: most_likely_positive, target: 99}]")
    assert answer.code == 0
    assert "failed" in answer.out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "2 runs failed and are left out" in page
    assert "target=99" in page
    assert "Error" in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["selectrs=[albl]"], "'selectrs' is not an option; did you mean 'selectors'?"),
        (["selector=albl"], "'selector' is not an option; did you mean 'selectors'?"),
        (["net=liner"], "unknown net 'liner'; did you mean 'linear'?"),
        (["executor=slrm"], "unknown executor 'slrm'; did you mean 'slurm'?"),
        (["executor.worker=1"], "'executor.worker' is not an option; did you mean 'executor.workers'?"),
        (["fixed=[margn]"], "unknown strategy 'margn'; did you mean 'margin'?"),
        (["datasets=[irs]"], "unknown dataset 'irs'; did you mean 'iris'?"),
        (["seeds=0"], "expected seeds to be how many (1 or more), or a list of distinct whole numbers, got 0"),
    ],
)
def test_a_mistake_gets_one_line(command: Command, words: list[str], said: str) -> None:
    answer = command(*words, "hydra.run.dir=out")
    assert (answer.code, answer.err) == (1, f"alenv: {said}\n")


def test_nothing_finished_is_an_error(command: Command) -> None:
    answer = command(*SMALL, "budget.rounds=1000")
    assert answer.code == 1
    assert "no cell finished" in answer.err


def test_a_comparison_in_the_same_place_at_the_same_time_is_refused(command: Command, tmp_path: Path) -> None:
    from alenv.rundir import RunDirectory

    with RunDirectory(tmp_path / "out", {}).locked():
        answer = command(*SMALL)
    assert answer.code == 1
    assert "is in use by process" in answer.err


def test_the_directory_stays_when_the_grid_grows() -> None:
    GlobalHydra.instance().clear()
    OmegaConf.register_new_resolver("alenv_compare", compare.run_name, replace=True)
    with initialize_config_module("alenv.configs", version_base="1.3"):

        def folder(*words: str) -> str:
            return compose("compare", overrides=list(words), return_hydra_config=True).hydra.run.dir

        assert folder() == folder("seeds=50", "selectors=[tcm]", "datasets=[wine]", "executor=ray", "baseline=margin")
        assert folder().startswith("runs/compare-own-")
        assert folder() != folder("budget.batch=5")


def test_python_and_the_command_make_the_same_cells() -> None:
    ours = expand({**compare._defaults(), "seeds": 2})
    assert [cell.name for cell in ours] == [cell.name for cell in expand(composed("seeds=2"))]


def test_a_cell_is_the_run_that_the_other_command_would_make() -> None:
    cell = next(cell for cell in expand(composed()) if cell.policy == "margin")
    GlobalHydra.instance().clear()
    OmegaConf.register_new_resolver("alenv_run", cli.run_name, replace=True)
    with initialize_config_module("alenv.configs", version_base="1.3"):
        theirs = cli.resolved(compose("train", overrides=["selector=fixed", "selector.strategy=margin"]))
    assert {key: value for key, value in theirs.items() if key != "fresh"} == cell.config


def test_the_shared_options_have_the_numbers_of_the_other_command() -> None:
    ours, theirs = (yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text()) for name in ("compare", "train"))
    skipped = {"defaults", "hydra", "seed", "fresh", *AXES, *CONDUCT}
    assert {k: v for k, v in ours.items() if k not in skipped} == {k: v for k, v in theirs.items() if k not in skipped}


@pytest.mark.parametrize("name", library.names("executor"))
def test_hydra_composes_every_executor(name: str) -> None:
    assert composed(f"executor={name}")["executor"] == library.config("executor", name)


@pytest.mark.parametrize("name", library.names("preset"))
def test_every_preset_makes_a_grid_that_can_run(name: str) -> None:
    cells = expand(composed(f"preset={name}", "seeds=1"))
    assert len(cells) > 3
    with pytest.raises(ValueError, match=f"run python -m alenv.compare preset={name}"):
        library.build("preset", name)
    if name.endswith("_small"):
        for cell in {(cell.task, cell.policy): cell for cell in cells}.values():
            Runner.of({**cell.config, "device": "cpu"})


def test_the_preset_of_everything_leaves_out_nobody() -> None:
    config = composed("preset=everything")
    assert {*config["fixed"]} == {*library.names("strategy")} - {"most_likely_positive"}, "one class's arm of TAILOR"
    assert {*config["selectors"]} == {*library.names("selector")} - {"fixed"}
