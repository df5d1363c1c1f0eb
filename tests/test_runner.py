"""The runner: what a run leaves behind, one seed one result, what a selector may know, and who may write in a run directory."""

import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from alenv import library
from alenv.ballot import Ballot
from alenv.problem import Problem, assemble
from alenv.record import Record
from alenv.rundir import RunDirectory, config_hash
from alenv.runner import Callback, Run, Runner, load_run
from alenv.selector import Context, Observation, Selector, Transition
from alenv.task import Source
from alenv.tensorboard import TensorBoard

SELECTORS: dict[str, Any] = {
    "fixed": {"name": "fixed", "strategy": "margin"},
    "random_pick": "random_pick",
    "uniform_mixture": "uniform_mixture",
    "albl": "albl",
    "autoal": {"name": "autoal", "fit_epochs": 5, "steps": 12},
}
BUDGET = {"initial": 20, "batch": 10, "rounds": 4}
KEYS = (
    "round", "labels", "bought", "cost", "queried", "strategies", "action", "chosen_by", "propensity", "metrics", "validation",
    "reward", "selector", "seconds",
)  # fmt: skip
METRICS = {"accuracy", "macro_f1", "balanced_accuracy", "nll", "ece"}
PHASES = {"train", "outputs", "select", "act", "evaluate"}


def a_config(selector: Any = "random_pick", **changes: Any) -> dict[str, Any]:
    chosen = SELECTORS.get(selector, selector) if isinstance(selector, str) else selector
    stop = {"accuracy": None, "seconds": None}
    plain = {"selector": chosen, "strategies": "autoal7", "budget": BUDGET, "draws": 5, "seed": 0, "device": "cpu", "stop": stop}
    return plain | changes


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def contents(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in directory.rglob("*") if f.is_file()}


def holds_nan(value: Any) -> bool:
    if isinstance(value, dict):
        return any(holds_nan(v) for v in value.values())
    if isinstance(value, list):
        return any(holds_nan(v) for v in value)
    return isinstance(value, float) and not math.isfinite(value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One finished run per selector, with TensorBoard."""
    root = tmp_path_factory.mktemp("runs")
    for name in SELECTORS:
        Runner.of(a_config(name), root / name, [TensorBoard()]).run()
    return {name: root / name for name in SELECTORS}


# What a run leaves behind


@pytest.mark.parametrize("name", SELECTORS)
def test_a_finished_run_leaves_these_files_and_no_others(finished: dict[str, Path], name: str) -> None:
    left = sorted(contents(finished[name]))
    events = [f for f in left if f.startswith("events.out.tfevents.")]
    assert len(events) == 1
    assert sorted(set(left) - set(events)) == [
        "checkpoint/state.safetensors", "config.yaml", "model.safetensors", "purchases.jsonl", "rounds.jsonl", "summary.json",
    ]  # fmt: skip
    assert (finished[name] / "config.yaml").stat().st_size > 0
    assert yaml.safe_load((finished[name] / "config.yaml").read_text()) == a_config(name)


@pytest.mark.parametrize("name", SELECTORS)
def test_every_round_has_every_key_with_its_type(finished: dict[str, Path], name: str) -> None:
    rows = lines(finished[name] / "rounds.jsonl")
    assert [row["round"] for row in rows] == list(range(BUDGET["rounds"] + 1))
    for row in rows:
        assert tuple(row) == KEYS
        assert not holds_nan(row)
        assert all(type(row[key]) is int for key in ("round", "labels", "bought"))
        assert row["labels"] == row["bought"] == row["cost"] == 20 + 10 * row["round"]
        assert type(row["cost"]) is float
        assert all(isinstance(id_, str) for id_ in row["queried"])
        assert len(set(row["queried"])) == len(row["queried"]) == (10 if row["round"] else 20)
        assert set(row["metrics"]) == METRICS
        assert all(type(value) is float for value in row["metrics"].values())
        assert 0 <= row["validation"] <= 1
        assert all(isinstance(value, int | float) for value in row["selector"].values())
        assert {k for k in row["seconds"] if "/" not in k} == PHASES
        assert {k for k in row["seconds"] if "/" in k} <= {f"select/{s}" for s in row["strategies"]}
        assert all(type(value) is float and value >= 0 for value in row["seconds"].values())
        assert row["seconds"]["train"] > 0
    assert len({id_ for row in rows for id_ in row["queried"]}) == 60


@pytest.mark.parametrize("name", SELECTORS)
def test_round_0_has_no_action_and_later_rounds_say_who_chose(finished: dict[str, Path], name: str) -> None:
    first, *later = lines(finished[name] / "rounds.jsonl")
    assert [first[key] for key in ("action", "reward", "chosen_by", "propensity", "selector")] == [None, None, [], [], {}]
    for row in later:
        names = row["strategies"]
        assert names == first["strategies"]
        assert len(row["action"]) == len(names)
        assert sum(row["action"]) == pytest.approx(1, abs=1e-5)
        assert type(row["reward"]) is float
        assert len(row["chosen_by"]) == len(row["propensity"]) == len(row["queried"])
        assert set(row["chosen_by"]) <= {*names, "uniform"}
        assert all(0 < p <= 1 for p in row["propensity"])
        if name in ("fixed", "random_pick"):
            assert sorted(row["action"]) == [0.0] * (len(names) - 1) + [1.0]
            assert set(row["chosen_by"]) == {names[row["action"].index(1)]}
        if name != "albl":
            assert set(row["propensity"]) == {1.0}


def test_drawn_purchases_have_propensities_below_one(finished: dict[str, Path]) -> None:
    assert min(p for row in lines(finished["albl"] / "rounds.jsonl") for p in row["propensity"]) < 1


def test_fixed_has_one_strategy_and_albl_its_required_one(finished: dict[str, Path]) -> None:
    assert lines(finished["fixed"] / "rounds.jsonl")[0]["strategies"] == ["margin"]
    assert lines(finished["albl"] / "rounds.jsonl")[0]["strategies"][-1] == "uniform"
    assert len(lines(finished["autoal"] / "rounds.jsonl")[0]["strategies"]) == 7


@pytest.mark.parametrize("name", SELECTORS)
def test_the_summary_says_what_the_rounds_say(finished: dict[str, Path], name: str) -> None:
    rows, summary = lines(finished[name] / "rounds.jsonl"), json.loads((finished[name] / "summary.json").read_text())
    assert {"aubc", "final", "labels", "bought", "seconds", "versions", "seed", "config_hash", "data_hash"} <= set(summary)
    x, y = np.array([row["bought"] for row in rows]), np.array([row["metrics"]["accuracy"] for row in rows])
    by_hand = sum((x[i + 1] - x[i]) * (y[i] + y[i + 1]) / 2 for i in range(len(x) - 1)) / (x[-1] - x[0])
    assert summary["aubc"] == pytest.approx(by_hand, abs=1e-12)
    assert (summary["final"], summary["labels"], summary["bought"]) == (y[-1], 60, 60)
    assert (summary["seed"], summary["rounds"], summary["cost"]) == (0, 4, 60.0)
    assert summary["config_hash"] == config_hash(a_config(name))
    assert {"python", "torch", "alenv", "gymnasium", "numpy"} <= set(summary["versions"])
    assert summary["seconds"] >= sum(row["seconds"]["train"] for row in rows) - 0.001
    assert len(summary["data_hash"]) == 32
    assert not holds_nan(summary)


@pytest.mark.parametrize("name", SELECTORS)
def test_the_ledger_holds_every_purchase_once_in_order(finished: dict[str, Path], name: str) -> None:
    rows, bought = lines(finished[name] / "rounds.jsonl"), lines(finished[name] / "purchases.jsonl")
    assert [p["id"] for p in bought] == [id_ for row in rows for id_ in row["queried"]]
    assert [p["round"] for p in bought] == [row["round"] for row in rows for _ in row["queried"]]
    assert [p["strategy"] for p in bought] == ["initial"] * 20 + [s for row in rows for s in row["chosen_by"]]
    assert [p["propensity"] for p in bought] == [1.0] * 20 + [s for row in rows for s in row["propensity"]]
    assert {p["who"] for p in bought} == {"SimulatedOracle"}
    source = library.build("dataset", "digits")
    truth = dict(zip(source.train.ids, source.train.targets.tolist(), strict=True))
    assert all(p["target"] == truth[p["id"]] and p["label"] == str(truth[p["id"]]) for p in bought)


def test_data_hashes_are_equal_over_selectors_and_differ_between_seeds(finished: dict[str, Path], tmp_path: Path) -> None:
    hashes = {json.loads((path / "summary.json").read_text())["data_hash"] for path in finished.values()}
    other = Runner.of(a_config(seed=1, budget=BUDGET | {"rounds": 0})).run().summary["data_hash"]
    assert len(hashes) == 1
    assert other not in hashes


def test_without_a_directory_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: dict[str, Path]) -> None:
    monkeypatch.chdir(tmp_path)
    run = Runner.of(a_config("albl")).run()
    assert list(tmp_path.iterdir()) == []
    assert run.directory is None
    assert timeless([r.to_json() for r in run.rounds]) == timeless(lines(finished["albl"] / "rounds.jsonl"))


def test_a_directory_needs_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs the configuration it holds"):
        Runner(Runner.of(a_config()).problem, library.build("selector", "random_pick"), directory=tmp_path)


# One seed, one result


@pytest.mark.parametrize("name", SELECTORS)
def test_the_same_seed_gives_the_same_rounds(finished: dict[str, Path], tmp_path: Path, name: str) -> None:
    Runner.of(a_config(name), tmp_path / "again").run()
    Runner.of(a_config(name, seed=1, budget=BUDGET | {"rounds": 1}), tmp_path / "other").run()
    rows = timeless(lines(finished[name] / "rounds.jsonl"))
    assert timeless(lines(tmp_path / "again" / "rounds.jsonl")) == rows
    assert timeless(lines(tmp_path / "other" / "rounds.jsonl")) != rows[:2]
    assert (tmp_path / "again" / "purchases.jsonl").read_bytes() == (finished[name] / "purchases.jsonl").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (finished[name] / "model.safetensors").read_bytes()


def test_selectors_share_the_initial_set_and_the_first_model(finished: dict[str, Path]) -> None:
    firsts = [lines(path / "rounds.jsonl")[0] for path in finished.values()]
    shared = [{k: row[k] for k in KEYS if k not in ("strategies", "seconds")} for row in firsts]
    assert all(row == shared[0] for row in shared)


# Reading a run again


@pytest.mark.parametrize("name", SELECTORS)
def test_a_loaded_run_predicts_what_its_last_record_says(finished: dict[str, Path], name: str) -> None:
    run = load_run(finished[name])
    test = library.build("dataset", "digits").test
    assert not run.model.training
    accuracy = float((run.model(test.inputs).argmax(1) == test.targets).double().mean())
    assert accuracy == pytest.approx(run.rounds[-1].metrics["accuracy"], abs=1e-9)
    assert run.config == a_config(name)
    assert run.summary == json.loads((finished[name] / "summary.json").read_text())
    assert run.directory == finished[name]


def test_a_trained_net_is_loaded_with_its_weights(tmp_path: Path) -> None:
    net = {"name": "small_cnn", "widths": [8, 8]}
    trainer = {"name": "default", "epochs": 1, "min_steps": 20}
    Runner.of(a_config(net=net, trainer=trainer, budget=BUDGET | {"rounds": 1}, strategies=["margin", "bald"]), tmp_path).run()
    run, test = load_run(tmp_path), library.build("dataset", "digits").test
    outputs = Runner.of(run.config).problem.trainer.outputs(run.model, test.inputs)
    accuracy = float((outputs.logits.argmax(1) == test.targets).double().mean())
    assert accuracy == pytest.approx(run.rounds[-1].metrics["accuracy"], abs=1e-9)


def test_the_records_become_a_table(finished: dict[str, Path]) -> None:
    run = load_run(finished["albl"])
    rows = lines(finished["albl"] / "rounds.jsonl")
    expected = {key for key in KEYS if key not in ("metrics", "selector", "seconds")} | METRICS
    assert expected | {f"seconds/{p}" for p in PHASES} | {"selector/probability/margin"} <= set(run.records.columns)
    assert len(run.records) == 5
    assert run.records["accuracy"].tolist() == [row["metrics"]["accuracy"] for row in rows]
    assert run.records["bought"].tolist() == [20, 30, 40, 50, 60]
    assert run.records["selector/probability/margin"].isna().tolist() == [True, False, False, False, False]
    assert run.records["queried"][1] == rows[1]["queried"]


def test_an_unfinished_run_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished run"):
        load_run(tmp_path)


# Issued again


def test_a_finished_run_is_not_run_again(finished: dict[str, Path]) -> None:
    class Deaf(Callback):
        def begin(self, *args: Any) -> None:
            raise AssertionError("a finished run began again")

    before = contents(finished["random_pick"])
    run = Runner.of(a_config("random_pick"), finished["random_pick"], [Deaf()]).run()
    assert contents(finished["random_pick"]) == before
    assert timeless([r.to_json() for r in run.rounds]) == timeless(lines(finished["random_pick"] / "rounds.jsonl"))


def test_another_configuration_is_refused_with_the_difference(finished: dict[str, Path]) -> None:
    before = contents(finished["random_pick"])
    other = a_config("random_pick", budget=BUDGET | {"batch": 11})
    with pytest.raises(ValueError, match=r"another configuration \(budget\.batch: 10 -> 11\).*fresh=true"):
        Runner.of(other, finished["random_pick"]).run()
    assert contents(finished["random_pick"]) == before


def test_fresh_starts_over_whatever_the_directory_held(tmp_path: Path, finished: dict[str, Path]) -> None:
    Runner.of(a_config("albl", seed=3, budget=BUDGET | {"rounds": 1}), tmp_path, [TensorBoard()]).run()
    (tmp_path / "mine.txt").write_text("kept")
    (tmp_path / "query.csv").write_text("id,label\n")
    Runner.of(a_config("random_pick", fresh=True), tmp_path, [TensorBoard()]).run()
    assert timeless(lines(tmp_path / "rounds.jsonl")) == timeless(lines(finished["random_pick"] / "rounds.jsonl"))
    assert (tmp_path / "purchases.jsonl").read_bytes() == (finished["random_pick"] / "purchases.jsonl").read_bytes()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == a_config("random_pick")  # fresh itself is not kept
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1
    assert (tmp_path / "mine.txt").exists()
    assert not (tmp_path / "query.csv").exists()


# What a selector may know


class Probe(Selector):
    """Writes down what it is shown; picks round robin."""

    def begin(self, context: Context) -> None:
        super().begin(context)
        self.seen: list[Transition] = []
        self.simulated: list[dict[str, float]] = []

    def act(self, observation: Observation, ballot: Ballot) -> int:
        return ballot.round.index % len(ballot.names)

    def update(self, transition: Transition) -> dict[str, float]:
        self.seen.append(transition)
        return {"seen": float(len(self.seen))}


class Peeker(Probe):
    """Tries every action before it takes the one that `Probe` takes."""

    oracle = True

    def act(self, observation: Observation, ballot: Ballot) -> int:
        assert self.context.simulate is not None
        tried = [dict(self.context.simulate(action)) for action in range(len(ballot.names))]
        taken = super().act(observation, ballot)
        self.simulated.append(tried[taken])
        return taken


def probed(probe: Probe, directory: Path | None = None) -> Run:
    problem = Runner.of(a_config(strategies=["margin", "kmeans", "uniform"])).problem
    return Runner(problem, probe, directory=directory, config={"probe": type(probe).__name__}).run()


def test_a_selector_never_sees_test_metrics() -> None:
    probe = Probe()
    run = probed(probe)
    assert probe.context.simulate is None
    assert [t.record.metrics for t in probe.seen] == [{}] * 4
    assert [t.record.queried for t in probe.seen] == [r.queried for r in run.rounds[1:]]
    assert [t.reward for t in probe.seen] == [r.reward for r in run.rounds[1:]]
    assert [t.done for t in probe.seen] == [False, False, False, True]
    assert [r.selector for r in run.rounds] == [{}, {"seen": 1.0}, {"seen": 2.0}, {"seen": 3.0}, {"seen": 4.0}]
    assert all(r.metrics["accuracy"] is not None for r in run.rounds)


def test_an_oracle_selector_simulates_what_then_happens_and_changes_nothing(tmp_path: Path) -> None:
    peeker = Peeker()
    plain, peeked = probed(Probe()), probed(peeker, tmp_path)
    assert timeless([r.to_json() for r in peeked.rounds]) == timeless([r.to_json() for r in plain.rounds])
    assert [t.record.metrics for t in peeker.seen] == [r.metrics for r in peeked.rounds[1:]]
    for simulated, record in zip(peeker.simulated, peeked.rounds[1:], strict=True):
        assert simulated == pytest.approx(record.metrics, abs=1e-4)  # the same examples, stacked in another order
    assert [p["id"] for p in lines(tmp_path / "purchases.jsonl")] == [id_ for r in plain.rounds for id_ in r.queried]
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, peeked.model.state_dict()[name])


# Missing splits


class Listener(Callback):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.rounds: list[int] = []
        self.ended = self.closed = 0

    def begin(self, campaign: Any, directory: Path | None, config: Any, note: str) -> None:
        self.notes.append(note)

    def round(self, record: Record, campaign: Any) -> None:
        self.rounds.append(record.round)

    def end(self, run: Run) -> None:
        self.ended += 1

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    ("selector", "reward", "said"),
    [
        ("random_pick", None, "EntropyGain instead of Gain"),
        ({"name": "uniform_mixture", "mixing": "slots"}, None, "ImportanceWeightedAccuracy instead of Gain"),
        ("autoal", "terminal_area", "EntropyGain instead of TerminalArea"),
        ("albl", None, ""),
        ("random_pick", "entropy_gain", ""),
    ],
)
def test_without_validation_the_reward_falls_back_and_says_so(selector: Any, reward: str | None, said: str) -> None:
    listener = Listener()
    config = a_config(selector, validation=0, reward=reward, budget=BUDGET | {"rounds": 2})
    run = Runner.of(config, callbacks=[listener]).run()
    assert listener.notes == [said and f"no validation split: the reward is {said}"]
    assert [r.validation for r in run.rounds] == [None] * 3
    assert all(isinstance(r.reward, float) for r in run.rounds[1:])
    assert run.summary["validation"] is None


def test_with_validation_there_is_no_note() -> None:
    listener = Listener()
    Runner.of(a_config(budget=BUDGET | {"rounds": 1}), callbacks=[listener]).run()
    assert (listener.notes, listener.rounds, listener.ended, listener.closed) == ([""], [0, 1], 1, 1)


def without_test() -> Problem:
    digits: Source = library.build("dataset", "digits")
    source = Source("no_test", digits.train, None, digits.classes, digits.mean, digits.std)
    return assemble(dataset=source, strategies=["margin", "uniform"], plan=Runner.of(a_config()).problem.plan, device="cpu")


def test_without_a_test_split_metrics_are_null_and_validation_is_reported(tmp_path: Path) -> None:
    def runner() -> Runner:
        return Runner(without_test(), library.build("selector", "random_pick"), directory=tmp_path, config={"data": "no test"})

    run = runner().run()
    rows, summary = lines(tmp_path / "rounds.jsonl"), json.loads((tmp_path / "summary.json").read_text())
    assert [row["metrics"] for row in rows] == [dict.fromkeys(METRICS)] * 5
    assert all(0 < row["validation"] <= 1 for row in rows)
    assert (summary["aubc"], summary["final"]) == (None, None)
    assert summary["validation"] == rows[-1]["validation"]
    again = runner().run()  # a problem made in Python is not looked for in config.yaml
    assert again.rounds == run.rounds
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in run.model.state_dict().items())


# Stopping


def test_a_run_stops_once_validation_is_good_enough(tmp_path: Path) -> None:
    target = sorted(r.validation or 0.0 for r in Runner.of(a_config()).run().rounds[:4])[-1]
    run = Runner.of(a_config(stop={"accuracy": target, "seconds": None}), tmp_path).run()
    values = [r.validation or 0.0 for r in run.rounds]
    assert values[-1] >= target
    assert all(value < target for value in values[:-1])
    assert len(values) < 5
    assert run.summary["bought"] == run.rounds[-1].bought == len(lines(tmp_path / "purchases.jsonl"))


def test_a_run_whose_initial_set_is_accurate_enough_buys_nothing_more() -> None:
    assert [r.round for r in Runner.of(a_config(stop={"accuracy": 0.01, "seconds": None})).run().rounds] == [0]


def test_joint_heads_are_for_one_strategy() -> None:
    with pytest.raises(ValueError, match=r"joint=true lets .* use selector=fixed"):
        Runner.of(a_config(joint=True))


def test_stopping_by_accuracy_needs_a_validation_split() -> None:
    with pytest.raises(ValueError, match="needs a validation split"):
        Runner.of(a_config(validation=0, stop={"accuracy": 0.5})).run()


def test_a_run_stops_after_the_round_that_passes_its_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ticks = iter(range(0, 1000, 10))
    monkeypatch.setattr("alenv.runner.time", SimpleNamespace(perf_counter=lambda: next(ticks), monotonic=float))
    run = Runner.of(a_config(stop={"accuracy": None, "seconds": 25}), tmp_path).run()  # starts at 0, looks at 10, 20 and 30
    assert [r.round for r in run.rounds] == [0, 1, 2]
    assert (tmp_path / "summary.json").exists()
    assert json.loads((tmp_path / "summary.json").read_text())["seconds"] == 40


def test_no_time_at_all_leaves_the_initial_round() -> None:
    run = Runner.of(a_config(stop={"accuracy": None, "seconds": 0})).run()
    assert len(run.rounds) == 1
    assert run.summary["aubc"] == run.summary["final"] == run.rounds[0].metrics["accuracy"]


# Who may write

HOLD = "import sys, time; from alenv.rundir import RunDirectory\n"


def in_a_process(code: str, *arguments: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", HOLD + code, *arguments], stdout=pipe, stderr=pipe, text=True)


def test_a_second_process_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, {}).locked():
        assert f"process {os.getpid()} on " in (tmp_path / "lock").read_text()
        other = in_a_process("with RunDirectory(sys.argv[1], {}).locked(): print('in')", str(tmp_path))
        out, error = other.communicate(timeout=120)
        assert "in\n" not in out
        assert f"ValueError: {tmp_path} is in use by process {os.getpid()} on " in error
        with pytest.raises(ValueError, match=r"is in use by process \d+ .*; wait for it, or choose another directory"):
            Runner.of(a_config(), tmp_path).run()
        assert list(tmp_path.iterdir()) == [tmp_path / "lock"]
    assert not (tmp_path / "lock").exists()


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    code = "with RunDirectory(sys.argv[1], {}).locked(): print('in', flush=True); time.sleep(600)"
    owner = in_a_process(code, str(tmp_path))
    assert owner.stdout is not None
    assert owner.stdout.readline() == "in\n"
    with pytest.raises(ValueError, match=f"is in use by process {owner.pid} on "):
        Runner.of(a_config(), tmp_path).run()
    os.kill(owner.pid, signal.SIGKILL)
    owner.communicate(timeout=60)
    assert f"process {owner.pid} on " in (tmp_path / "lock").read_text()
    assert len(Runner.of(a_config(budget=BUDGET | {"rounds": 1}), tmp_path).run().rounds) == 2
    assert not (tmp_path / "lock").exists()


def test_a_lock_that_its_owner_removed_while_we_waited_is_not_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alenv import rundir

    real, calls = rundir._try_lock, []

    def removed_first(handle: int) -> bool:
        calls.append(handle)
        if len(calls) == 1:
            (tmp_path / "lock").unlink()  # the owner leaves between our opening and locking the file
        return real(handle)

    monkeypatch.setattr(rundir, "_try_lock", removed_first)
    with RunDirectory(tmp_path, {}).locked():
        assert len(calls) == 2
        with pytest.raises(ValueError, match="is in use"), RunDirectory(tmp_path, {}).locked():
            pass


def test_the_lock_is_given_back_when_the_run_fails(tmp_path: Path) -> None:
    class Boom(Callback):
        def round(self, record: Record, campaign: Any) -> None:
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        Runner.of(a_config(), tmp_path, [Boom()]).run()
    assert not (tmp_path / "lock").exists()


def test_a_directory_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written .*hydra\.run\.dir="):
        Runner.of(a_config(), tmp_path / "file" / "run")


# What waits for the disk


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc (Linux)")
def test_every_purchase_waits_for_the_disk_and_quick_rounds_wait_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: Counter[str] = Counter()

    def watched(descriptor: int) -> None:
        waited[Path(f"/proc/self/fd/{descriptor}").readlink().name.strip(".")] += 1

    monkeypatch.setattr("alenv.durable.os", SimpleNamespace(**vars(os) | {"fsync": watched}))
    monkeypatch.setattr("alenv.runner.SYNC_SECONDS", 1e9)
    Runner.of(a_config("fixed"), tmp_path / "quick").run()
    assert waited["purchases.jsonl"] == BUDGET["rounds"] + 1
    assert waited["rounds.jsonl"] == 1, "before the summary"
    assert not waited["state.safetensors.tmp"]
    waited.clear()
    monkeypatch.setattr("alenv.runner.SYNC_SECONDS", 0)
    Runner.of(a_config("fixed"), tmp_path / "slow").run()
    assert waited["purchases.jsonl"] == waited["state.safetensors.tmp"] == BUDGET["rounds"] + 1
    assert waited["rounds.jsonl"] == BUDGET["rounds"] + 2
