"""The grid: which cells there are, what they are called, what is computed again and what is not."""

import json
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from alenv import library
from alenv.compare import compute
from alenv.executors import Event, Executor, Inline
from alenv.grid import Cell, expand, frame
from alenv.progress import GridProgress
from alenv.runner import Runner

RUN: dict[str, Any] = {
    "net": "linear", "trainer": "default", "oracle": "simulated", "reward": None, "strategies": "autoal7",
    "budget": {"initial": 6, "batch": 3, "rounds": 2}, "validation": None, "stop": {"accuracy": None, "seconds": None},
    "draws": 5, "device": "cpu",
}  # fmt: skip
GRID: dict[str, Any] = {
    **RUN, "datasets": ["iris"], "settings": ["standard"], "selectors": ["random_pick"], "fixed": ["margin"], "seeds": 2,
    "executor": "inline", "baseline": None,
}  # fmt: skip


class Recorder(Executor):
    """Notes what it is asked to compute and computes it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def run(self, cells: Sequence[Cell], root: Path) -> Iterator[Event]:
        self.asked += [str(cell) for cell in cells]
        yield from Inline().run(cells, root)


def grid(**changes: Any) -> list[Cell]:
    return expand({**GRID, **changes})


def computed(cells: Sequence[Cell], root: Path) -> list[str]:
    """Compute what is missing and return what that was."""
    recorder = Recorder()
    compute(cells, root, recorder, GridProgress(Console(quiet=True)))
    return recorder.asked


def test_a_grid_is_the_product_of_its_axes_seed_by_seed() -> None:
    cells = grid(datasets=["iris", "wine"], settings=["standard", {"name": "openset", "rate": 0.2}], fixed=["margin", "uniform"])
    assert len(cells) == len({cell.name for cell in cells}) == 2 * 2 * 3 * 2
    assert [cell.seed for cell in cells] == [0] * 12 + [1] * 12
    assert {cell.policy for cell in cells} == {"random_pick", "margin", "uniform"}
    assert {cell.task for cell in cells} == {"iris", "wine", "iris, openset(rate=0.2)", "wine, openset(rate=0.2)"}


def test_seeds_may_be_listed() -> None:
    assert [cell.seed for cell in grid(seeds=[7, 3], selectors=[])] == [7, 3]


def test_a_cell_holds_what_the_command_for_one_run_would_resolve() -> None:
    config = grid(fixed=[{"name": "margin"}], selectors=[])[1].config
    assert config["selector"] == library.config("selector", "fixed") | {"strategy": {"name": "margin"}}
    assert config["dataset"] == library.config("dataset", "iris")
    assert config["net"] == library.config("net", "linear")
    assert config["seed"] == 1
    assert config["reward"] is None
    assert not {"seeds", "executor", "fixed", "selectors"} & set(config)
    Runner.of(config)


def test_options_of_one_policy_or_data_set_hold_for_it_alone() -> None:
    own = {"dataset": {"name": "wine"}, "budget": {"rounds": 1}, "net": "mlp", "label": "wine, short"}
    cells = grid(datasets=["iris", own], selectors=[{"selector": "random_pick", "strategies": ["margin"]}], fixed=[], seeds=1)
    iris, wine = (cell.config for cell in cells)
    assert (iris["budget"], wine["budget"]) == (RUN["budget"], {**RUN["budget"], "rounds": 1})
    assert wine["net"] == library.config("net", "mlp")
    assert iris["net"] == library.config("net", "linear")
    assert iris["strategies"] == ["margin"]
    assert [cell.dataset for cell in cells] == ["iris", "wine, short"]


def test_parameters_tell_policies_of_one_name_apart() -> None:
    cells = grid(
        selectors=["exp3", {"name": "exp3", "gamma": 0.3}], fixed=["badge", {"name": "prefilter", "by": "margin"}], seeds=1
    )
    assert [cell.policy for cell in cells] == ["exp3", "exp3(gamma=0.3)", "badge", "prefilter(by=margin)"]


def test_a_directory_is_named_for_people_and_by_its_content() -> None:
    cell, other = grid(selectors=[], seeds=1)[0], grid(selectors=[], seeds=1, draws=6)[0]
    assert cell.name.startswith("iris-standard-margin-0-")
    assert cell.name == grid(seeds=5)[1].name, "other seeds and policies change nothing"
    assert cell.name != other.name
    assert cell.name == grid(selectors=[], seeds=1, executor="local", baseline="margin")[0].name
    odd = grid(selectors=[], fixed=[{"name": "prefilter", "by": "margin", "inner": {"name": "kmeans"}}], seeds=1)[0]
    assert not set(odd.name) & set("/(){}: ,=")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"datasets": ["irs"]}, "unknown dataset 'irs'; did you mean 'iris'"),
        ({"fixed": ["margn"]}, "unknown strategy 'margn'; did you mean 'margin'"),
        ({"selectors": ["albll"]}, "unknown selector 'albll'; did you mean 'albl'"),
        ({"net": "liner"}, "unknown net 'liner'; did you mean 'linear'"),
        ({"datasets": [{"dataset": "iris", "bugdet": {}}]}, "a run has no option 'bugdet'; did you mean 'budget'"),
        ({"fixed": ["margin", "margin"]}, "'margin' is listed twice"),
        ({"datasets": []}, "at least one of datasets"),
        ({"fixed": [], "selectors": []}, "at least one of policies"),
        ({"seeds": 0}, "seeds to be how many"),
        ({"seeds": True}, "seeds to be how many"),
        ({"seeds": [1, 1]}, "distinct"),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        grid(**changes)


def test_finished_cells_are_not_computed_again_and_new_seeds_are(tmp_path: Path) -> None:
    assert len(computed(grid(), tmp_path)) == 4
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.json*")}
    assert computed(grid(), tmp_path) == []
    assert computed(grid(seeds=3), tmp_path) == ["iris / random_pick / seed 2", "iris / margin / seed 2"]
    assert computed(grid(seeds=3, fixed=["margin", "uniform"]), tmp_path) == [f"iris / uniform / seed {s}" for s in range(3)]
    assert {f: f.stat().st_mtime_ns for f in before} == before


def test_a_cell_cut_short_continues_where_it_was(tmp_path: Path) -> None:
    (cell,) = grid(selectors=[], seeds=1)
    whole = tmp_path / "whole"
    computed([cell], whole)
    runner = Runner.of(cell.config, cell.directory(tmp_path))
    assert runner.directory is not None
    runner.directory.prepare()
    observation, _ = runner._start()
    runner._round(observation)  # and then the process died
    first = (cell.directory(tmp_path) / "rounds.jsonl").read_text()
    assert computed([cell], tmp_path) == ["iris / margin / seed 0"]
    assert (cell.directory(tmp_path) / "rounds.jsonl").read_text().startswith(first), "even the seconds of what was done"
    assert timeless(cell, tmp_path) == timeless(cell, whole)


def timeless(cell: Cell, root: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in cell.result(root)["records"]]


def test_policies_of_one_seed_share_the_initial_set_and_the_first_model(tmp_path: Path) -> None:
    cells = grid(selectors=["random_pick", "albl"])
    computed(cells, tmp_path)
    for seed in (0, 1):
        starts = [timeless(cell, tmp_path)[0] for cell in cells if cell.seed == seed]
        assert len({json.dumps([s["queried"], s["metrics"]]) for s in starts}) == 1


def test_a_failed_cell_is_told_at_once_with_its_log_and_the_others_go_on(tmp_path: Path) -> None:
    cells = grid(datasets=[{"dataset": "iris", "budget": {"rounds": 1000}, "label": "too much"}, "iris"], seeds=1)
    console = Console(file=StringIO(), width=200)
    failures = compute(cells, tmp_path, Inline(), GridProgress(console, 1))
    assert [cell.dataset for cell, _ in failures] == ["too much", "too much"]
    assert "ValueError: the budget buys 3006 labels" in failures[0][1]
    assert [cell.finished(tmp_path) for cell in cells] == [False, False, True, True]
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert said.index("the budget buys 3006 labels") < said.index("finished iris / random_pick")
    assert "2 of 4 done, 2 failed" in said
    assert "the budget buys" in (cells[0].directory(tmp_path) / "log.txt").read_text()


def test_a_table_has_a_row_per_round_of_every_finished_cell(tmp_path: Path) -> None:
    cells = grid()
    computed(cells[:3], tmp_path)
    table = frame(cells, tmp_path)
    assert len(table) == 3 * 3
    assert set(table["metric"]) == {"accuracy"}
    assert (table["value"] == table["accuracy"]).all()
    assert list(table["policy"].unique()) == ["random_pick", "margin"]
    assert list(table[table["seed"] == 1]["bought"]) == [6, 9, 12]
    assert frame(cells[3:], tmp_path).empty


def test_progress_in_a_terminal_shows_what_runs_and_the_time_left() -> None:
    console = Console(file=StringIO(), width=100, force_terminal=True)
    progress, cells = GridProgress(console, 2), grid()
    with progress.over(cells, cells[1:]):
        progress.tell(Event(cells[1], "started"))
        assert "now: iris / margin / seed 0" in progress._line().plain
        progress.tell(Event(cells[1], "finished"))
        progress.tell(Event(cells[2], "started"))
        progress.tell(Event(cells[2], "lost", "signal 9"))
        assert "2 of 4 done" in progress._line().plain
        assert "left" in progress._line().plain
    assert "lost, it is started again" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_time_left_is_what_cells_of_the_same_policy_took(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("alenv.progress.time", SimpleNamespace(perf_counter=lambda: now[0]))
    progress, cells = GridProgress(Console(quiet=True), 1), grid(seeds=3)  # random_pick and margin by turns
    with progress.over(cells, cells):
        for cell, seconds in zip(cells[:2], (10, 30), strict=True):
            progress.tell(Event(cell, "started"))
            now[0] += seconds
            progress.tell(Event(cell, "finished"))
        assert progress._state() == "2 of 6 done, about 80 s left"
        progress.tell(Event(cells[2], "started"))
        now[0] += 4
        assert progress._left() == ", about 76 s left"
        progress.tell(Event(cells[2], "lost"))
        assert progress._left() == ", about 80 s left", "it is to be done again"
        for cell in cells[2:]:  # where nobody tells when they start
            progress.tell(Event(cell, "finished"))
        assert progress._state() == "6 of 6 done"


def test_a_name_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress asks for the names of all cells again and again."""
    cell, asked = grid()[0], []
    monkeypatch.setattr("alenv.grid.config_hash", lambda config: asked.append(config) or "0")
    assert cell.name == cell.name
    assert len(asked) == 1


def test_points_are_drawn_anew_for_every_run_where_a_data_sets_seed_is_null() -> None:
    own, fixed = ({"dataset": {"name": "honeypot", "seed": seed}, "label": f"of {seed}"} for seed in (None, 5))
    cells = expand(GRID | {"datasets": [own, fixed], "selectors": [], "fixed": ["uniform"], "seeds": 2})
    assert [(cell.dataset, cell.seed, cell.config["dataset"]["seed"]) for cell in cells] == [
        ("of None", 0, 0), ("of 5", 0, 5), ("of None", 1, 1), ("of 5", 1, 5),
    ]  # fmt: skip
