"""Executors: the same results everywhere, deaths survived, failures told."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from alenv import library
from alenv.executors import Event, Executor, Inline, Local, Ray, Slurm
from alenv.grid import Cell, expand

GRID: dict[str, Any] = {
    "net": "linear", "trainer": "default", "oracle": "simulated", "reward": None, "strategies": "autoal7",
    "budget": {"initial": 6, "batch": 3, "rounds": 2}, "validation": None, "stop": {"accuracy": None, "seconds": None},
    "draws": 5, "device": "cpu", "datasets": ["iris"], "settings": ["standard"], "selectors": [], "fixed": ["margin"], "seeds": 1,
}  # fmt: skip


def grid(**changes: Any) -> list[Cell]:
    return expand({**GRID, **changes})


def timeless(cell: Cell, root: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in cell.result(root)["records"]]


def run(executor: Executor, cells: list[Cell], root: Path) -> list[Event]:
    return list(executor.run(cells, root))


def kinds(events: list[Event]) -> list[str]:
    return sorted(event.kind for event in events)


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return grid(selectors=["albl"], seeds=1)


@pytest.fixture(scope="module")
def inline(cells: list[Cell], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inline")
    assert kinds(run(Inline(), cells, root)) == ["finished", "finished", "started", "started"]
    return root


def same(cells: list[Cell], one: Path, other: Path) -> bool:
    return all(
        timeless(cell, one) == timeless(cell, other)
        and (cell.directory(one) / "model.safetensors").read_bytes() == (cell.directory(other) / "model.safetensors").read_bytes()
        for cell in cells
    )


def test_a_pool_of_processes_gives_the_same_bits(cells: list[Cell], inline: Path, tmp_path: Path) -> None:
    events = run(Local(workers=2), cells, tmp_path)
    assert kinds(events) == ["finished", "finished", "started", "started"]
    assert same(cells, inline, tmp_path)
    assert not list(tmp_path.rglob("log.txt")), "nobody had anything to say"


def test_runs_in_lanes_give_the_same_bits_as_alone(tmp_path: Path) -> None:
    cells = grid(selectors=["albl"], seeds=3)
    assert kinds(run(Inline(), cells, tmp_path / "alone")) == ["finished"] * 6 + ["started"] * 6
    assert kinds(run(Inline(lanes=2), cells, tmp_path / "lanes")) == ["finished"] * 6 + ["started"] * 6
    assert same(cells, tmp_path / "alone", tmp_path / "lanes")


def test_a_lane_that_fails_lets_the_others_go_on(tmp_path: Path) -> None:
    cells = grid(seeds=3)
    folder = cells[1].directory(tmp_path)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 5\n")
    events = run(Inline(lanes=3), cells, tmp_path)
    assert [event.kind for event in events] == ["started"] * 3 + ["finished", "failed", "finished"]
    assert "holds a run with another configuration" in events[4].log


def test_lanes_train_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alenv.trainer import Trainer

    sizes: list[int] = []
    fit_many = Trainer.fit_many
    monkeypatch.setattr(Trainer, "fit_many", lambda self, jobs: sizes.append(len(jobs)) or fit_many(self, jobs))
    run(Inline(lanes=3), grid(seeds=3), tmp_path)
    assert sizes == [3, 3, 3], "rounds 0 to 2"


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_data_set_is_read_once_for_all_of_its_runs(lanes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    build = library.build

    def counted(group: str, name: Any, **overrides: Any) -> Any:
        if group == "dataset" and isinstance(name, dict):
            read.append(name["table"])
        return build(group, name, **overrides)

    monkeypatch.setattr(library, "build", counted)
    cells = grid(datasets=["wine", "iris"], seeds=2)
    run(Inline(lanes=lanes), sorted(cells, key=lambda cell: cell.task), tmp_path)
    assert read == ["iris", "wine"]
    assert all(cell.finished(tmp_path) for cell in cells)


DEADLY = """
import os, pathlib, signal
from alenv.strategy import ScoreStrategy

class Deadly(ScoreStrategy):
    '''Kills its process in the second round, `lives` times.'''

    needs = frozenset({"probs"})

    def __init__(self, folder: str, lives: int) -> None:
        self.folder, self.lives = pathlib.Path(folder), lives

    def score(self, round):
        deaths = len(list(self.folder.iterdir()))
        if round.index == 2 and deaths < self.lives:
            (self.folder / str(deaths)).touch()
            print("last words", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return -round.probs.max(1).values
"""


@pytest.fixture
def deadly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "deadly_strategy.py").write_text(DEADLY)
    monkeypatch.chdir(tmp_path)  # where workers look for the user's modules
    (tmp_path / "deaths").mkdir()

    def make(lives: int) -> list[Cell]:
        strategy = {"_target_": "deadly_strategy:Deadly", "folder": str(tmp_path / "deaths"), "lives": lives}
        return grid(selectors=[{"selector": {"name": "fixed", "strategy": strategy}, "label": "deadly"}], seeds=1)

    return make


def test_three_deaths_of_processes_are_survived(deadly: Any, tmp_path: Path) -> None:
    cells = deadly(3)
    events = run(Local(workers=1, attempts=4), cells, tmp_path / "grid")
    assert [event.kind for event in events if event.cell.policy == "deadly"] == ["started", "lost"] * 3 + ["started", "finished"]
    lost = next(event for event in events if event.kind == "lost")
    assert "last words" in lost.log
    assert "the process died (signal 9)" in lost.log
    assert all(cell.finished(tmp_path / "grid") for cell in cells)
    run(Inline(), cells, tmp_path / "calm")
    assert same(cells, tmp_path / "grid", tmp_path / "calm"), "it continued from its checkpoint"


def test_a_cell_that_dies_again_and_again_fails_and_the_others_go_on(deadly: Any, tmp_path: Path) -> None:
    cells = deadly(9)
    events = run(Local(workers=1, attempts=2), cells, tmp_path / "grid")
    assert [event.kind for event in events if event.cell.policy == "deadly"] == ["started", "lost", "started", "failed"]
    assert [cell.finished(tmp_path / "grid") for cell in cells] == [False, True]


def test_a_grid_given_up_leaves_no_process_behind(cells: list[Cell], tmp_path: Path) -> None:
    from multiprocessing import active_children

    before = {child.pid for child in active_children()}
    events = Local(workers=2).run(cells, tmp_path)
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert {child.pid for child in active_children()} <= before


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"executor.workers >= 1, got 0"):
        Local(workers=0)
    with pytest.raises(ValueError, match=r"executor.attempts >= 1, got 0"):
        Local(attempts=0)
    with pytest.raises(ValueError, match=r"executor.lanes >= 1, got 0"):
        Inline(lanes=0)


def test_the_width_is_what_the_machine_has_unless_one_says_otherwise() -> None:
    assert Local(workers=3).width == 3
    assert Local().width >= 1
    assert Inline().width == 1
    assert Ray().width is None


@pytest.mark.parametrize(("name", "module"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_absent_package_is_named_with_its_remedy(
    name: str, module: str, cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf'{module} is not installed; pip install "alenv\[scale\]"'):
        run(library.build("executor", name), cells, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_gives_the_same_bits_and_survives_a_failure(cells: list[Cell], inline: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is absent")
    bad = grid(selectors=[], budget={"initial": 6, "batch": 3, "rounds": 1000}, seeds=1)
    events = run(Ray(), [*cells, *bad], tmp_path)
    assert kinds(events) == ["failed", "finished", "finished"]
    assert "the budget buys" in next(event.log for event in events if event.kind == "failed")
    assert same(cells, inline, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # submitit's own
def test_submitit_gives_the_same_bits_and_survives_a_failure(cells: list[Cell], inline: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="submitit is absent")
    bad = grid(selectors=[], budget={"initial": 6, "batch": 3, "rounds": 1000}, seeds=1)
    events = run(Slurm(cluster="local", poll=0.2), [*cells, *bad], tmp_path)
    assert kinds(events) == ["failed", "finished", "finished"]
    assert "the budget buys" in next(event.log for event in events if event.kind == "failed")
    assert same(cells, inline, tmp_path)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
@pytest.mark.slow
def test_a_killed_grid_leaves_no_worker_and_continues(tmp_path: Path) -> None:
    import subprocess
    import time

    words = [sys.executable, "-m", "alenv.compare", "datasets=[iris]", "budget.initial=6", "budget.batch=1", "budget.rounds=40",
             "seeds=4", "device=cpu", "selectors=[]", "executor.workers=2", f"hydra.run.dir={tmp_path}/grid"]  # fmt: skip
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL)
    cells = tmp_path / "grid" / "cells"
    for _ in range(600):
        if len(list(cells.glob("*/summary.json"))) >= 2:
            break
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = {f: f.stat().st_mtime_ns for f in cells.glob("*/summary.json")}
    time.sleep(2)
    assert subprocess.run(words, cwd=tmp_path, check=False).returncode == 0
    assert len(list(cells.glob("*/summary.json"))) == 12
    assert {f: f.stat().st_mtime_ns for f in done} == done
