"""A run stopped at whatever moment continues as if nothing had happened; nothing bought is ever lost or bought twice."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alenv import ledger, library
from alenv.checkpoint import load_state, save_state
from alenv.oracle import SimulatedOracle
from alenv.record import Record
from alenv.runner import Callback, Runner
from alenv.tensorboard import TensorBoard

SELECTORS: dict[str, Any] = {
    "fixed": {"name": "fixed", "strategy": "bald"},
    "random_pick": "random_pick",
    "uniform_mixture": "uniform_mixture",
    "albl": {"name": "albl", "reward": "normalized_gain"},
    "autoal": {"name": "autoal", "fit_epochs": 5, "steps": 12},
}
BUDGET = {"initial": 20, "batch": 10, "rounds": 4}
TINY_NET = {"net": {"name": "small_cnn", "widths": [8, 8]}, "trainer": {"name": "default", "epochs": 1, "min_steps": 10}}


def a_config(name: str, **changes: Any) -> dict[str, Any]:
    return {"selector": SELECTORS[name], "budget": BUDGET, "draws": 5, "seed": 0, "device": "cpu"} | changes


def rounds(directory: Path) -> list[str]:
    """The lines of rounds.jsonl, as text, the times apart."""
    rows = [json.loads(line) for line in (directory / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    return [json.dumps({key: value for key, value in row.items() if key != "seconds"}) for row in rows]


def purchases(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "purchases.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_same_run(directory: Path, expected: Path) -> None:
    assert rounds(directory) == rounds(expected)
    assert (directory / "purchases.jsonl").read_bytes() == (expected / "purchases.jsonl").read_bytes()
    assert (directory / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    mine, other = (json.loads((d / "summary.json").read_text()) | {"seconds": None} for d in (directory, expected))
    assert mine == other


class Stop(BaseException):
    """What stops a run here: no error handler may swallow it."""


class StopAfter(Callback):
    def __init__(self, round: int) -> None:
        self.stop = round

    def round(self, record: Record, campaign: Any) -> None:
        if record.round == self.stop:
            raise Stop


def stopped(runner: Runner) -> Runner:
    with pytest.raises(Stop):
        runner.run()
    return runner


def stop_before_training(runner: Runner, round: int) -> Runner:
    """Run until the labels of `round` are on file and its training would begin."""
    real = runner.env._fit

    def fit(job: Any) -> Any:
        if job.round == round:
            raise Stop
        return real(job)

    runner.env._fit = fit  # type: ignore[method-assign]
    return stopped(runner)


class Counting(SimulatedOracle):
    """Counts how often each label is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[int] = Counter()

    def label(self, indices: Tensor) -> list[int | None]:
        self.asked.update(indices.tolist())
        return super().label(indices)


Counting.__name__ = "SimulatedOracle"  # the ledger says who answered


def counted(oracle: Counting, directory: Path, *callbacks: Callback, name: str = "uniform_mixture") -> Runner:
    problem = replace(Runner.of(a_config(name)).problem, oracle=oracle)
    return Runner(problem, library.build("selector", SELECTORS[name]), 0, directory, a_config(name), callbacks)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An uninterrupted run of each selector."""
    root = tmp_path_factory.mktemp("whole")
    for name in SELECTORS:
        Runner.of(a_config(name), root / name).run()
    return {name: root / name for name in SELECTORS}


# Stopped and run again


@pytest.mark.parametrize("round", range(4))
@pytest.mark.parametrize("name", SELECTORS)
def test_a_run_stopped_after_any_round_continues_bit_equal(name: str, round: int, tmp_path: Path, whole: dict[str, Path]) -> None:
    stopped(Runner.of(a_config(name), tmp_path, [StopAfter(round)]))
    assert rounds(tmp_path) == rounds(whole[name])[: round + 1]
    assert not (tmp_path / "summary.json").exists()
    Runner.of(a_config(name), tmp_path).run()
    assert_same_run(tmp_path, whole[name])


@pytest.mark.parametrize("name", ["albl", "autoal"])
def test_a_run_stopped_in_every_round_continues_bit_equal(name: str, tmp_path: Path, whole: dict[str, Path]) -> None:
    for round in range(4):
        stopped(Runner.of(a_config(name), tmp_path, [StopAfter(round)]))
        stop_before_training(Runner.of(a_config(name), tmp_path), round + 1)
    Runner.of(a_config(name), tmp_path).run()
    assert_same_run(tmp_path, whole[name])


@pytest.mark.parametrize("round", range(5))
def test_a_run_stopped_between_purchase_and_training_trains_on_what_it_bought(
    round: int, tmp_path: Path, whole: dict[str, Path]
) -> None:
    stop_before_training(Runner.of(a_config("autoal"), tmp_path), round)
    assert [p["round"] for p in purchases(tmp_path)][-1] == round
    Runner.of(a_config("autoal"), tmp_path).run()
    assert_same_run(tmp_path, whole["autoal"])


@pytest.mark.parametrize("reward", ["entropy_gain", "iw_accuracy", "terminal_area"])
@pytest.mark.parametrize("mixing", ["slots", "blend"])
def test_rewards_and_mixings_survive_a_stop(reward: str, mixing: str, tmp_path: Path) -> None:
    selector, oracle = {"name": "uniform_mixture", "mixing": mixing}, {"name": "noisy", "abstain": 0.3}
    config = a_config("fixed", selector=selector, oracle=oracle, reward=reward)
    Runner.of(config, tmp_path / "whole").run()
    stopped(Runner.of(config, tmp_path / "stopped", [StopAfter(2)]))
    Runner.of(config, tmp_path / "stopped").run()
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    last = json.loads(rounds(tmp_path / "whole")[-1])
    assert last["labels"] < last["bought"] == 60


@pytest.mark.parametrize("name", ["fixed", "autoal"])
def test_a_trained_net_survives_a_stop_with_its_buffers(name: str, tmp_path: Path) -> None:
    config = a_config(name, **TINY_NET, budget=BUDGET | {"rounds": 2})
    Runner.of(config, tmp_path / "whole").run()
    stopped(Runner.of(config, tmp_path / "stopped", [StopAfter(1)]))
    Runner.of(config, tmp_path / "stopped").run()
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_continued_run_has_spent_what_its_rounds_took(tmp_path: Path) -> None:
    stopped(Runner.of(a_config("fixed"), tmp_path, [StopAfter(3)]))
    lines = (tmp_path / "rounds.jsonl").read_text().splitlines()
    before = sum(v for line in lines for k, v in json.loads(line)["seconds"].items() if "/" not in k)
    assert Runner.of(a_config("fixed"), tmp_path).run().summary["seconds"] >= before - 0.001


def test_a_run_stopped_before_its_summary_writes_it_without_another_round(tmp_path: Path, whole: dict[str, Path]) -> None:
    class StopAtEnd(Callback):
        def end(self, run: Any) -> None:
            raise Stop

    stopped(Runner.of(a_config("albl"), tmp_path, [StopAtEnd()]))
    assert not (tmp_path / "summary.json").exists()
    oracle = Counting()
    counted(oracle, tmp_path, name="albl").run()
    assert not oracle.asked
    assert_same_run(tmp_path, whole["albl"])


# Files that do not fit each other, or are damaged


def test_rounds_beyond_the_checkpoint_are_cut_and_repeated(tmp_path: Path, whole: dict[str, Path]) -> None:
    run, saved, state = tmp_path / "run", tmp_path / "saved", Path("checkpoint", "state.safetensors")
    stopped(Runner.of(a_config("autoal"), run, [StopAfter(1)]))
    shutil.copy(run / state, saved)
    stopped(Runner.of(a_config("autoal"), run, [StopAfter(3)]))
    shutil.copy(saved, run / state)
    assert len(rounds(run)) == 4
    stop_before_training(Runner.of(a_config("autoal"), run), 2)
    assert rounds(run) == rounds(whole["autoal"])[:2]
    Runner.of(a_config("autoal"), run).run()
    assert_same_run(run, whole["autoal"])


@pytest.mark.parametrize("end", [b'{"round": 3, "labels": 50, "bou', '{"round": 3, "queried": ["é'.encode()[:-1], b"\0\0"])
def test_a_half_written_last_round_is_repaired(end: bytes, tmp_path: Path, whole: dict[str, Path]) -> None:
    stopped(Runner.of(a_config("albl"), tmp_path, [StopAfter(2)]))
    with (tmp_path / "rounds.jsonl").open("ab") as file:
        file.write(end)
    Runner.of(a_config("albl"), tmp_path).run()
    assert_same_run(tmp_path, whole["albl"])


@pytest.mark.parametrize("lost", [1, 25, 700, 1200])
def test_a_half_written_purchase_is_repaired_and_its_batch_completed(lost: int, tmp_path: Path, whole: dict[str, Path]) -> None:
    stop_before_training(Runner.of(a_config("albl"), tmp_path), 2)
    path = tmp_path / "purchases.jsonl"
    path.write_bytes(path.read_bytes()[:-lost])
    Runner.of(a_config("albl"), tmp_path).run()
    assert_same_run(tmp_path, whole["albl"])


def test_a_half_written_first_purchase_does_not_spoil_the_ledger(tmp_path: Path, whole: dict[str, Path]) -> None:
    stop_before_training(Runner.of(a_config("fixed"), tmp_path), 0)
    path = tmp_path / "purchases.jsonl"
    path.write_bytes(path.read_bytes()[:40])  # less than one line
    stopped(Runner.of(a_config("fixed"), tmp_path, [StopAfter(1)]))
    Runner.of(a_config("fixed"), tmp_path).run()
    assert_same_run(tmp_path, whole["fixed"])


@pytest.mark.parametrize("damage", ["short", "empty", "garbage"])
def test_a_damaged_checkpoint_is_an_error_that_names_the_remedy(damage: str, tmp_path: Path, whole: dict[str, Path]) -> None:
    stopped(counted(oracle := Counting(), tmp_path, StopAfter(2)))
    state = tmp_path / "checkpoint" / "state.safetensors"
    content = state.read_bytes()
    state.write_bytes({"short": content[:-10], "empty": b"", "garbage": b"\xff" * 2000}[damage])
    before = (tmp_path / "rounds.jsonl").read_bytes(), (tmp_path / "purchases.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"state\.safetensors is damaged .*delete it .*bought labels are kept"):
        counted(oracle, tmp_path).run()
    assert ((tmp_path / "rounds.jsonl").read_bytes(), (tmp_path / "purchases.jsonl").read_bytes()) == before
    state.unlink()
    counted(oracle, tmp_path).run()
    assert set(oracle.asked.values()) == {1}
    assert_same_run(tmp_path, whole["uniform_mixture"])


def test_a_damaged_ledger_is_a_clear_error_and_is_left_as_it_is(tmp_path: Path) -> None:
    stopped(Runner.of(a_config("fixed"), tmp_path, [StopAfter(1)]))
    path = tmp_path / "purchases.jsonl"
    text = path.read_text().replace('{"round": 0', '{"round": ', 1).replace('"round": ,', '"round",', 1)
    path.write_text("{" + text)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"purchases\.jsonl: a line is damaged"):
        Runner.of(a_config("fixed"), tmp_path).run()
    assert path.read_bytes() == before


def test_a_lost_checkpoint_repeats_the_rounds_without_asking_again(tmp_path: Path, whole: dict[str, Path]) -> None:
    oracle = Counting()
    stop_before_training(counted(oracle, tmp_path), 3)
    assert sum(oracle.asked.values()) == 50
    shutil.rmtree(tmp_path / "checkpoint")
    counted(oracle, tmp_path).run()
    assert sum(oracle.asked.values()) == len(oracle.asked) == 60
    assert_same_run(tmp_path, whole["uniform_mixture"])


@pytest.mark.parametrize("name", SELECTORS)
def test_no_label_is_asked_for_twice_however_often_a_run_stops(name: str, tmp_path: Path) -> None:
    oracle = Counting()
    for round in range(4):
        stopped(counted(oracle, tmp_path, StopAfter(round), name=name))
        stop_before_training(counted(oracle, tmp_path, name=name), round + 1)
    counted(oracle, tmp_path, name=name).run()
    assert sum(oracle.asked.values()) == len(oracle.asked) == 60


def test_purchases_of_other_data_are_refused(tmp_path: Path) -> None:
    stopped(Runner.of(a_config("fixed"), tmp_path, [StopAfter(1)]))
    path = tmp_path / "purchases.jsonl"
    rows = purchases(tmp_path)
    rows[3]["id"] = "another"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"ids \['another'\] are not in the pool; the data have changed"):
        Runner.of(a_config("fixed"), tmp_path).run()


# What is on file is what is trained on


def edited(directory: Path, round: int, keep: int) -> list[dict[str, Any]]:
    """Let the ledger say that other samples, of other labels, were bought in `round`."""
    rows = purchases(directory)
    taken = {row["id"] for row in rows}
    others = [id_ for id_ in library.build("dataset", "digits").train.ids if id_ not in taken]
    pool = set(Runner.of(a_config("fixed")).problem.task(0).ids)
    free = [id_ for id_ in others if id_ in pool]
    mine = [row for row in rows if row["round"] == round][:keep]
    for n, row in enumerate(mine):
        row |= {"id": free[n], "target": n % 10, "label": str(n % 10), "who": "a person"}
        row |= {"strategy": "somebody", "propensity": 0.5}
    mine[0] |= {"target": None, "label": None}  # who could not say
    kept = [row for row in rows if row["round"] != round] + mine
    (directory / "purchases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    return mine


@pytest.mark.parametrize("keep", [10, 6])
@pytest.mark.parametrize("name", SELECTORS)
def test_purchases_on_file_stand_whatever_the_selector_would_choose(name: str, keep: int, tmp_path: Path) -> None:
    oracle = Counting()
    stop_before_training(counted(oracle, tmp_path, name=name), 2)
    mine = edited(tmp_path, 2, keep)
    oracle.asked.clear()
    runner = counted(oracle, tmp_path, StopAfter(2), name=name)
    stopped(runner)
    assert not oracle.asked
    record, pool, ids = runner.env.campaign.records[2], runner.env.campaign.pool, runner.env.campaign.task.ids
    assert list(record.queried) == [row["id"] for row in mine]
    assert set(record.chosen_by) == {"somebody"}
    assert set(record.propensity) == {0.5}
    assert (record.bought, record.labels) == (30 + keep, 29 + keep)
    assert [int(pool.labels[ids.index(row["id"])]) for row in mine] == [-2, *(row["target"] for row in mine[1:])]
    trained = runner.problem.trainer.fit(runner.env.campaign.job())
    assert torch.equal(trained.linear.weight, runner.env.campaign.model.linear.weight)
    run = counted(oracle, tmp_path, name=name).run()
    assert run.rounds[-1].bought == 50 + keep
    assert len({id_ for r in run.rounds for id_ in r.queried}) == 50 + keep
    assert [p["id"] for p in purchases(tmp_path)] == [id_ for r in run.rounds for id_ in r.queried]


def test_a_partial_batch_on_file_is_completed(tmp_path: Path, whole: dict[str, Path]) -> None:
    stop_before_training(Runner.of(a_config("autoal"), tmp_path), 2)
    rows = purchases(tmp_path)
    (tmp_path / "purchases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-7]))
    Runner.of(a_config("autoal"), tmp_path).run()
    assert_same_run(tmp_path, whole["autoal"])


def test_an_oracle_that_answers_too_few_buys_nothing(tmp_path: Path, whole: dict[str, Path]) -> None:
    class Lazy(SimulatedOracle):
        def label(self, indices: Tensor) -> list[int | None]:
            return super().label(indices)[:-1]

    config = a_config("fixed")
    problem = replace(Runner.of(config).problem, oracle=Lazy())
    lazy = Runner(problem, library.build("selector", SELECTORS["fixed"]), 0, tmp_path, config)
    with pytest.raises(ValueError, match="gave 19 answers to 20 questions"):
        lazy.run()
    assert not (tmp_path / "purchases.jsonl").exists()
    Runner.of(config, tmp_path).run()
    assert_same_run(tmp_path, whole["fixed"])


# The checkpoint


def test_a_checkpoint_gives_back_nested_state(tmp_path: Path) -> None:
    state = {
        "a/b": torch.arange(3),
        "a": {"b": torch.zeros(2, 2, dtype=torch.bool), "c": [1, 2.5, None, True, "x", {"y": torch.tensor(7.0)}]},
        "strided": torch.arange(6).view(2, 3).T,
        "empty": {},
        "none": None,
        "third": 1 / 3,
        "name#0": torch.ones(1, dtype=torch.bfloat16),
    }
    save_state(tmp_path / "state", state)
    back = load_state(tmp_path / "state")
    assert list(back) == list(state)
    assert torch.equal(back["a/b"], torch.arange(3))
    assert torch.equal(back["a"]["b"], torch.zeros(2, 2, dtype=torch.bool))
    assert back["a"]["c"][:5] == [1, 2.5, None, True, "x"]
    assert torch.equal(back["a"]["c"][5]["y"], torch.tensor(7.0))
    assert torch.equal(back["strided"], torch.arange(6).view(2, 3).T)
    assert (back["empty"], back["none"], back["third"]) == ({}, None, 1 / 3)
    assert back["name#0"].dtype == torch.bfloat16


def test_a_checkpoint_without_tensors_is_possible_and_replaces_the_old_one(tmp_path: Path) -> None:
    save_state(tmp_path / "state", {"big": torch.zeros(1000)})
    save_state(tmp_path / "state", {"learned": {}})
    assert load_state(tmp_path / "state") == {"learned": {}}
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


# TensorBoard, continued


def next_second() -> None:
    """Wait: readers order event files by the second in their names, then by process, then by a number without leading zeros."""
    time.sleep(1.02 - time.time() % 1)


def events(directory: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return accumulator.Reload()


def assert_events_fit(directory: Path) -> None:
    """Every curve has each of its steps once, with the values of rounds.jsonl."""
    rows = [json.loads(line) for line in rounds(directory)]
    found = events(directory)
    accuracy, validation = [row["metrics"]["accuracy"] for row in rows], [row["validation"] for row in rows]
    for tag, values in (("task/accuracy", accuracy), ("task/validation", validation)):
        assert [e.step for e in found.Scalars(tag)] == [row["bought"] for row in rows]
        assert [e.value for e in found.Scalars(tag)] == pytest.approx(values)
    for tag in found.Tags()["scalars"]:
        steps = [e.step for e in found.Scalars(tag)]
        assert steps == sorted(set(steps)), tag
    for tag in found.Tags()["images"]:
        steps = [e.step for e in found.Images(tag)]
        assert steps == sorted(set(steps)), tag
    assert [e.step for e in found.Scalars("reward")] == [row["bought"] for row in rows[1:]]
    assert [e.step for e in found.Scalars("final/aubc")] == [rows[-1]["bought"]]
    assert {e.step for e in found.Tensors("config/text_summary")} == {0}


def test_tensorboard_has_every_step_once_whether_it_heard_of_the_last_round_or_not(tmp_path: Path) -> None:
    stopped(Runner.of(a_config("albl"), tmp_path, [StopAfter(0), TensorBoard()]))  # stopped before TensorBoard hears
    next_second()
    stopped(Runner.of(a_config("albl"), tmp_path, [TensorBoard(), StopAfter(1)]))  # and after
    next_second()
    stopped(Runner.of(a_config("albl"), tmp_path, [StopAfter(3), TensorBoard()]))
    next_second()
    Runner.of(a_config("albl"), tmp_path, [TensorBoard()]).run()
    assert_events_fit(tmp_path)


def test_tensorboard_is_purged_when_the_checkpoint_is_lost(tmp_path: Path) -> None:
    stopped(Runner.of(a_config("albl"), tmp_path, [TensorBoard(), StopAfter(2)]))
    (tmp_path / "checkpoint" / "state.safetensors").unlink()
    next_second()
    Runner.of(a_config("albl"), tmp_path, [TensorBoard()]).run()
    assert_events_fit(tmp_path)


def test_tensorboard_survives_a_stop_before_the_summary(tmp_path: Path) -> None:
    class StopAtEnd(Callback):
        def end(self, run: Any) -> None:
            raise Stop

    stopped(Runner.of(a_config("albl"), tmp_path, [TensorBoard(), StopAtEnd()]))
    next_second()
    Runner.of(a_config("albl"), tmp_path, [TensorBoard()]).run()
    assert_events_fit(tmp_path)


# Killed for good, at exact places

DRIVER = '''
"""Attempts at one run, each a forked process that kills itself at one exact place; the last one is left alone."""
import json, os, signal, sys, time
from pathlib import Path

import sklearn.datasets, torch

torch.set_num_threads(1)
from alenv import checkpoint, durable, ledger, library, runner, strategies, tensorboard, trainer
from alenv.runner import Runner

runner.SYNC_SECONDS = 0  # every round waits for the disk: that is where some of the places are
config, directory, plan = json.loads(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])


def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def at(owner, name, count, deed=kill, when=lambda *_: True):
    """Do `deed` instead of the call number `count` of `owner.name` (counted where `when` holds)."""
    real, seen = getattr(owner, name), []

    def wrapped(*arguments, **options):
        if when(*arguments):
            seen.append(1)
            if len(seen) == count + 1:
                return deed(*arguments, **options)
        return real(*arguments, **options)

    setattr(owner, name, wrapped)


def is_file(name):
    return lambda handle: name in os.readlink(f"/proc/self/fd/{handle}")


def halve(handle):
    os.ftruncate(handle, os.fstat(handle).st_size // 2)
    kill()


def cut_last_line(handle):
    os.ftruncate(handle, os.fstat(handle).st_size - 30)
    kill()


PLACES = {
    "half-written purchase": lambda n: at(durable.os, "fsync", n, cut_last_line, is_file("/purchases.jsonl")),
    "purchase on disk, not trained on": lambda n: at(trainer.Trainer, "fit", n),
    "half-written round": lambda n: at(durable.os, "fsync", n, cut_last_line, is_file("/rounds.jsonl")),
    "round on disk, no checkpoint": lambda n: at(runner, "save_state", n),
    "half-written checkpoint": lambda n: at(durable.os, "fsync", n, halve, is_file("state.safetensors")),
    "checkpoint not renamed": lambda n: at(Path, "replace", n, kill, lambda old, new: "state.safetensors" in str(new)),
    "checkpoint on disk, TensorBoard not told": lambda n: at(tensorboard.TensorBoard, "round", n),
    "before the summary": lambda n: at(Path, "replace", n, kill, lambda old, new: "summary.json" in str(new)),
}

died, before = [], ""
for place in [*plan, None]:
    child = os.fork()
    if child == 0:
        code = 1
        if str(os.getpid()) < before:
            time.sleep(1.1)  # event files of one second are read in the order of process numbers, as text
        try:
            if place:
                PLACES[place[0]](place[1])
            Runner.of(config, directory, [tensorboard.TensorBoard()]).run()
            code = 0
        finally:
            os._exit(code)
    before, status = str(child), os.waitpid(child, 0)[1]
    rounds = Path(directory, "rounds.jsonl")
    count = len(rounds.read_bytes().splitlines()) if rounds.exists() else 0
    died.append([os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status), count])
print(json.dumps(died))
'''
PLAN = [
    ("half-written purchase", 0), ("purchase on disk, not trained on", 0), ("half-written round", 0),
    ("round on disk, no checkpoint", 0), ("half-written checkpoint", 0), ("checkpoint not renamed", 0),
    ("checkpoint on disk, TensorBoard not told", 0),  # the initial round, at last
    ("half-written round", 0), ("round on disk, no checkpoint", 0), ("half-written checkpoint", 0), ("checkpoint not renamed", 1),
    ("half-written purchase", 0), ("purchase on disk, not trained on", 0), ("checkpoint on disk, TensorBoard not told", 2),
    ("half-written checkpoint", 0), ("before the summary", 0),
]  # fmt: skip


def slow_but(fast: str) -> list[Any]:
    return [name if name == fast else pytest.param(name, marks=pytest.mark.slow) for name in SELECTORS]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc (Linux)")
@pytest.mark.parametrize("name", slow_but("albl"))
def test_a_run_killed_at_every_delicate_place_ends_like_one_that_was_not(name: str, tmp_path: Path) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)

    def drive(directory: str, plan: list[Any]) -> list[Any]:
        config = a_config(name, budget=BUDGET | {"rounds": 5})
        command = [sys.executable, str(driver), json.dumps(config), str(tmp_path / directory), json.dumps(plan)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=500)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    assert drive("whole", []) == [[0, 6]]
    died = drive("killed", PLAN)
    assert [signal_ for signal_, _ in died] == [signal.SIGKILL] * len(PLAN) + [0], died
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert_events_fit(tmp_path / "killed")
    assert not (tmp_path / "killed" / "lock").exists()
    leftovers = [p.name for p in (tmp_path / "killed").rglob(".*")]
    assert leftovers in ([], [".summary.json.tmp"])


# Killed for good, at any moment


def train(directory: Path, words: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "alenv.train", *words, f"hydra.run.dir={directory}"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd=directory.parent
    )


def size(directory: Path) -> int:
    files = [directory / name for name in ("purchases.jsonl", "rounds.jsonl")]
    return sum(f.stat().st_size for f in files if f.exists())


COMMANDS = {
    "autoal": ["selector=autoal", "selector.fit_epochs=40", "selector.steps=150", "budget.rounds=8"],
    "autoal with a net": [
        "selector=autoal", "selector.fit_epochs=2", "selector.steps=12", "budget.rounds=6", "net=small_cnn", "net.widths=[8,16]",
        "trainer.min_steps=60", "trainer.epochs=5", "draws=3",
    ],
    "albl with a net": [
        "selector=albl", "budget.rounds=8", "net=small_cnn", "net.widths=[16,32]", "trainer.min_steps=80", "trainer.epochs=5",
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_killed_at_random_moments_ends_like_one_that_was_not(name: str, tmp_path: Path) -> None:
    words = [*COMMANDS[name], "device=cpu"]
    undisturbed, killed, moments = train(tmp_path / "whole", words), tmp_path / "killed", random.Random(name)
    out, error = undisturbed.communicate(timeout=500)
    assert undisturbed.returncode == 0, error
    last = json.loads((tmp_path / "whole" / "rounds.jsonl").read_text().splitlines()[-1])
    pace = sum(value for key, value in last["seconds"].items() if "/" not in key)
    kills = 0
    for _ in range(5):
        attempt, before = train(killed, words), size(killed)
        while attempt.poll() is None and size(killed) <= before:  # until it gets somewhere
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 1.5 * pace))
        attempt.kill()
        attempt.communicate(timeout=60)
        kills += attempt.returncode == -signal.SIGKILL
    final = train(killed, words)
    out, error = final.communicate(timeout=500)
    assert final.returncode == 0, error
    assert kills >= 3
    assert f"results: {killed}" in out
    assert_same_run(killed, tmp_path / "whole")
    assert_events_fit(killed)


def test_the_ledger_module_writes_before_it_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order that all of the above rests on: answers are on disk, then the oracle hears of it."""
    told: list[str] = []

    class Told(SimulatedOracle):
        def received(self) -> None:
            told.append("received")

    real = ledger.append_lines
    monkeypatch.setattr(ledger, "append_lines", lambda path, rows: (real(path, rows), told.append("written")))
    config = a_config("fixed", budget=BUDGET | {"rounds": 1})
    problem = replace(Runner.of(config).problem, oracle=Told())
    Runner(problem, library.build("selector", SELECTORS["fixed"]), 0, tmp_path, config).run()
    assert told == ["written", "received"] * 2
