"""The table a person watches: live in a terminal, plain lines elsewhere, and how long it will still take."""

import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from alenv.progress import ProgressTable, duration
from alenv.record import Record
from alenv.runner import Callback, Run, Runner

BUDGET = {"initial": 20, "batch": 10, "rounds": 3}


def a_config(**changes: Any) -> dict[str, Any]:
    return {"selector": "random_pick", "strategies": ["margin", "kmeans"], "budget": BUDGET, "device": "cpu"} | changes


def terminal(height: int = 40, width: int = 140) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, record=True, width=width, height=height, legacy_windows=False)


def pipe() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, soft_wrap=True, highlight=False, width=40)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def watched(console: Console, directory: Path | None = None, callbacks: tuple[Callback, ...] = (), **changes: Any) -> Run:
    return Runner.of(a_config(**changes), directory, [ProgressTable(console), *callbacks]).run()


class Stop(Exception):  # noqa: N818
    pass


class StopAfter(Callback):
    def __init__(self, round: int) -> None:
        self.stop = round

    def round(self, record: Record, campaign: Any) -> None:
        if record.round == self.stop:
            raise Stop


def percent(value: float | None) -> str:
    assert value is not None
    return f"{100 * value:.1f} %"


def test_a_pipe_gets_a_title_and_a_plain_line_per_round() -> None:
    console = pipe()
    run = watched(console)
    title, *lines = written(console).splitlines()
    assert title == "digits (standard), 10 classes, pool 1,350, validation 150, test 297, on cpu"
    assert len(lines) == 4
    for record, line in zip(run.rounds, lines, strict=True):
        assert line.startswith(f"round {record.round}  labels {record.labels}  accuracy {percent(record.metrics['accuracy'])}  ")
        assert f"  validation {percent(record.validation)}  " in line
        assert "\x1b" not in line
        assert line == line.rstrip()
    assert "chosen initial set" in lines[0]
    assert "reward" not in lines[0]
    for record, line in zip(run.rounds[1:], lines[1:], strict=True):
        assert f"  chosen {record.chosen_by[0]}  reward {record.reward:+.3f}  seconds " in line


def test_a_line_says_what_is_left_and_the_last_that_it_is_done() -> None:
    console = pipe()
    watched(console)
    lines = written(console).splitlines()[1:]
    assert "to go" not in lines[0]  # no round has been measured yet
    assert re.search(r"  2 to go, about \d+ s$", lines[1])
    assert re.search(r"  1 to go, about \d+ s$", lines[2])
    assert lines[3].endswith("  done")


def test_the_time_left_is_the_mean_of_the_rounds_seen_times_the_rounds_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("alenv.progress.time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Slow(Callback):
        def round(self, record: Record, campaign: Any) -> None:
            now[0] += 40 * (record.round + 1)  # what the next round takes

    console = pipe()
    watched(console, callbacks=(Slow(),))
    lines = written(console).splitlines()[1:]
    assert lines[1].endswith("2 to go, about 80 s")  # 40 s for the first
    assert lines[2].endswith("1 to go, about 60 s")  # 40 s and 80 s


def test_a_run_that_reaches_its_target_is_done_early() -> None:
    console = pipe()
    run = watched(console, stop={"accuracy": 0.3})
    assert len(run.rounds) == 1
    assert written(console).splitlines()[1].endswith("  done")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "60 s"), (89.4, "89 s"), (90, "2 min"), (1800, "30 min"), (5399, "90 min"), (5400, "1.5 h")],
)
def test_durations_are_in_the_unit_a_person_would_use(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_terminal_gets_one_table_that_stays() -> None:
    console = terminal()
    run = watched(console)
    assert "\x1b[" in written(console)
    shown = console.export_text()
    title, last = shown[shown.rindex("digits (standard)") :].split("\n", 1)
    assert title.rstrip().endswith("test 297, on cpu")
    for heading in ("round", "labels", "accuracy", "validation", "chosen", "reward", "seconds"):
        assert last.count(f" {heading} ") == 1
    for record in run.rounds:
        cells = [str(record.round), str(record.labels), percent(record.metrics["accuracy"]), percent(record.validation)]
        assert re.search(r"[│┃]\s+" + r"\s+[│┃]\s+".join(map(re.escape, cells)) + r"\s+[│┃]", last)
    assert "done" in last.splitlines()[-1]


def test_a_terminal_shows_the_time_left_under_the_table() -> None:
    console = terminal()
    with pytest.raises(Stop):
        watched(console, callbacks=(StopAfter(2),))
    shown = console.export_text()
    assert re.search(r"1 to go, about \d+ s", shown.splitlines()[-1] or shown.splitlines()[-2])


def test_a_low_terminal_shows_the_latest_rounds() -> None:
    console = terminal(height=14)
    watched(console, budget=BUDGET | {"batch": 5, "rounds": 9})
    shown = console.export_text()
    last = shown[shown.rindex("digits (standard)") :]
    assert re.findall(r"^│ +(\d+) │", last, re.MULTILINE) == ["4", "5", "6", "7", "8", "9"]


def test_the_cursor_comes_back_when_the_run_fails() -> None:
    console = terminal()
    with pytest.raises(Stop):
        watched(console, callbacks=(StopAfter(1),))
    text = written(console)
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert console._live_stack == []


@pytest.mark.parametrize("make", [terminal, pipe])
def test_a_note_is_shown_before_the_rounds(make: Any) -> None:
    console = make()
    watched(console, validation=0)
    text = written(console)
    assert text.startswith("note: no validation split: the reward is EntropyGain instead of Gain\n")
    assert "validation 0, test 297" in text


def test_a_continued_run_says_so_and_shows_where_it_stands(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        watched(pipe(), tmp_path, (StopAfter(1),))
    console = pipe()
    watched(console, tmp_path)
    lines = written(console).splitlines()
    assert lines[1] == "continuing after round 1"
    assert [line.split("  ")[0] for line in lines[2:]] == ["round 1", "round 2", "round 3"]
    assert "to go" not in lines[2]
    assert re.search(r"1 to go, about \d+ s$", lines[3])


def test_a_continued_run_shows_all_its_rounds_in_a_terminal(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        watched(pipe(), tmp_path, (StopAfter(1),))
    console = terminal()
    watched(console, tmp_path)
    shown = console.export_text()
    last = shown[shown.rindex("digits (standard)") :]
    assert re.findall(r"^│ +(\d+) │", last, re.MULTILINE) == ["0", "1", "2", "3"]
