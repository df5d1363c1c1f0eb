"""A campaign that asks a person: the question in query.csv, the answers, and that nothing is lost or asked twice on the way."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alenv import ledger, library
from alenv.oracle import AwaitingLabels, FileOracle, SimulatedOracle
from alenv.problem import assemble
from alenv.runner import Run, Runner
from alenv.task import Examples, Source, number_ids

SELECTORS: dict[str, Any] = {
    "fixed": {"name": "fixed", "strategy": "margin"},
    "albl": "albl",
    "autoal": {"name": "autoal", "fit_epochs": 5, "steps": 12},
}
BUDGET = {"initial": 12, "batch": 6, "rounds": 2}
TRUTH = dict(zip((train := library.build("dataset", "digits").train).ids, map(str, train.targets.tolist()), strict=True))
Answer = Callable[[str], str]


def a_config(name: str = "albl", **changes: Any) -> dict[str, Any]:
    return {"selector": SELECTORS[name], "budget": BUDGET, "draws": 5, "seed": 0, "device": "cpu", "oracle": "file"} | changes


def asked(directory: Path) -> list[str]:
    with (directory / "query.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["id", "label"]
    return [row[0] for row in rows[1:]]


def fill_in(directory: Path, answer: Answer = TRUTH.__getitem__) -> list[str]:
    ids = asked(directory)
    (directory / "query.csv").write_text("id,label\n" + "".join(f"{id_},{answer(id_)}\n" for id_ in ids))
    return ids


def to_the_end(make: Callable[[], Runner], directory: Path, answer: Answer = TRUTH.__getitem__) -> tuple[Run, list[list[str]]]:
    """Answer until the run is finished; return it with the questions."""
    questions: list[list[str]] = []
    while True:
        try:
            return make().run(), questions
        except AwaitingLabels:
            questions.append(fill_in(directory, answer))


def rounds(directory: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (directory / "rounds.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def purchases(directory: Path) -> list[dict[str, Any]]:
    path = directory / "purchases.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def nobody(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "who"} for row in rows]


class Killed(BaseException):
    """Stands for a kill: no handler may swallow it."""


@pytest.mark.parametrize("name", SELECTORS)
def test_a_run_with_a_person_equals_the_simulated_one(name: str, tmp_path: Path) -> None:
    person, simulated = tmp_path / "person", tmp_path / "simulated"
    _, questions = to_the_end(lambda: Runner.of(a_config(name), person), person)
    Runner.of(a_config(name, oracle="simulated"), simulated).run()
    assert rounds(person) == rounds(simulated)
    assert nobody(purchases(person)) == nobody(purchases(simulated))
    assert {row["who"] for row in purchases(person)} == {"FileOracle"}
    assert questions == [row["queried"] for row in rounds(person)]
    assert (person / "model.safetensors").read_bytes() == (simulated / "model.safetensors").read_bytes()
    assert sorted(p.name for p in person.iterdir()) == sorted(p.name for p in simulated.iterdir())


def test_a_question_is_a_file_and_waits(tmp_path: Path) -> None:
    with pytest.raises(AwaitingLabels, match=r"12 labels wanted: fill in the label column of .*query\.csv and run the same"):
        Runner.of(a_config(), tmp_path).run()
    text = (tmp_path / "query.csv").read_text()
    assert len(set(asked(tmp_path))) == 12
    for _ in range(2):
        with pytest.raises(AwaitingLabels, match=r"query\.csv has no label yet"):
            Runner.of(a_config(), tmp_path).run()
    assert (tmp_path / "query.csv").read_text() == text
    assert purchases(tmp_path) == []
    assert not (tmp_path / "lock").exists()
    assert not (tmp_path / "summary.json").exists()


def test_the_command_s_own_function_asks_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from alenv.train import _train

    for count in (12, 6, 6):
        _train(a_config(), tmp_path)
        assert f"{count} labels wanted" in capsys.readouterr().out
        fill_in(tmp_path)
    _train(a_config(), tmp_path)
    out = capsys.readouterr().out
    assert "continuing after round 1" in out
    assert f"results: {tmp_path}" in out
    assert len(purchases(tmp_path)) == 24
    assert not (tmp_path / "query.csv").exists()
    assert not (tmp_path / "asked.json").exists()


@pytest.mark.slow
def test_the_command_ends_well_while_it_waits(tmp_path: Path) -> None:
    budget = ["budget.initial=12", "budget.batch=6", "budget.rounds=1"]
    words = ["selector=albl", "oracle=file", "device=cpu", "hydra.run.dir=run", *budget]

    def command() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "alenv.train", *words], capture_output=True, text=True, timeout=300, cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    for _ in range(2):
        assert "labels wanted" in command()
        fill_in(tmp_path / "run")
    assert "area under its curve" in command()
    assert "area under its curve" in command()  # and once more: the summary of the finished run


def test_a_blank_answer_is_bought_but_not_labelled(tmp_path: Path) -> None:
    def answer(id_: str) -> str:
        return "" if int(id_) % 3 == 0 else "?" if int(id_) % 7 == 0 else TRUTH[id_]

    class SameAnswers(SimulatedOracle):
        def begin(self, task: Any, streams: Any, directory: Path | None = None) -> None:
            super().begin(task, streams, directory)
            self.ids = task.ids

        def label(self, indices: Tensor) -> list[int | None]:
            said = [answer(self.ids[i]) for i in indices.tolist()]
            return [int(word) if word.isdecimal() else None for word in said]

    person, simulated = tmp_path / "person", tmp_path / "simulated"
    to_the_end(lambda: Runner.of(a_config(), person), person, answer)
    problem, selector = Runner.of(a_config(oracle=SameAnswers())).problem, library.build("selector", "albl")
    Runner(problem, selector, directory=simulated, config={"oracle": "the same answers"}).run()
    rows = rounds(person)
    assert rows == rounds(simulated)
    assert nobody(purchases(person)) == nobody(purchases(simulated))
    silent = [row for row in purchases(person) if row["target"] is None]
    assert silent
    assert all(row["label"] is None and answer(row["id"]) in ("", "?") for row in silent)
    assert (rows[-1]["bought"], rows[-1]["cost"]) == (24, 24.0)
    assert rows[-1]["labels"] == 24 - len(silent)


def animals() -> Source:
    noise = torch.Generator().manual_seed(0)
    targets = torch.arange(90) % 3
    inputs = torch.randn(90, 3, generator=noise) + 3 * torch.nn.functional.one_hot(targets, 3)
    examples = Examples(inputs, targets, number_ids(90, "animal, no. "))  # ids that a CSV must quote
    return Source("animals", examples, examples.take(torch.arange(20)), ("horse", "donkey", "zebra"))


def of_animals(directory: Path) -> Runner:
    plan = Runner.of(a_config()).problem.plan
    problem = assemble(dataset=animals(), strategies=["margin", "uniform"], oracle="file", plan=plan, device="cpu")
    return Runner(problem, library.build("selector", "random_pick"), directory=directory, config={"data": "animals"})


def name_of(id_: str) -> str:
    return ("horse", "donkey", "zebra")[int(id_.split()[-1]) % 3]


def write_answers(directory: Path, answers: dict[str, str]) -> None:
    with (directory / "query.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "label"), *answers.items()])


def test_a_wrong_class_name_is_refused_with_the_nearest_and_nothing_is_lost(tmp_path: Path) -> None:
    with pytest.raises(AwaitingLabels):
        of_animals(tmp_path).run()
    write_answers(tmp_path, {id_: name_of(id_) for id_ in asked(tmp_path)})
    with pytest.raises(AwaitingLabels):
        of_animals(tmp_path).run()
    ids = asked(tmp_path)
    answers = {id_: name_of(id_) for id_ in ids}
    write_answers(tmp_path, answers | {ids[2]: "zerba"})
    kept = [tmp_path / name for name in ("query.csv", "purchases.jsonl", "rounds.jsonl")]
    before = [file.read_bytes() for file in kept]
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"query\.csv: 'zerba' \(id {ids[2]}\) is not a class; did you mean 'zebra'\?"):
            of_animals(tmp_path).run()
        assert [file.read_bytes() for file in kept] == before
    write_answers(tmp_path, answers)
    with pytest.raises(AwaitingLabels):
        of_animals(tmp_path).run()
    assert rounds(tmp_path)[1]["queried"] == ids
    write_answers(tmp_path, {id_: name_of(id_) for id_ in asked(tmp_path)})
    run = of_animals(tmp_path).run()
    assert run.rounds[-1].labels == 24
    assert all(row["label"] == name_of(row["id"]) for row in purchases(tmp_path))


@pytest.mark.parametrize("damage", [lambda t: t.replace("id,label", "name,label"), lambda t: t[: t.rindex("\n", 0, -1) + 1]])
def test_a_question_file_that_does_not_fit_is_refused_and_left_as_it_is(damage: Callable[[str], str], tmp_path: Path) -> None:
    with pytest.raises(AwaitingLabels):
        Runner.of(a_config(), tmp_path).run()
    fill_in(tmp_path)
    good = (tmp_path / "query.csv").read_text()
    (tmp_path / "query.csv").write_text(damage(good))
    with pytest.raises(ValueError, match=r"query\.csv: expected"):
        Runner.of(a_config(), tmp_path).run()
    assert (tmp_path / "query.csv").read_text() == damage(good)
    assert purchases(tmp_path) == []
    (tmp_path / "query.csv").write_text(good)
    with pytest.raises(AwaitingLabels, match="6 labels wanted"):
        Runner.of(a_config(), tmp_path).run()


def kill_in(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Runner], owner: Any, name: str) -> None:
    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(Killed):
            make().run()


@pytest.mark.parametrize(
    ("owner", "name"),
    [(ledger, "append_lines"), (FileOracle, "received"), (FileOracle, "price")],
    ids=["answers read, not in the ledger", "in the ledger, query.csv still there", "query.csv removed, not trained on"],
)
def test_a_kill_around_the_ledger_loses_nothing_and_nobody_is_asked_twice(
    owner: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    person, simulated = tmp_path / "person", tmp_path / "simulated"

    def make() -> Runner:
        return Runner.of(a_config(), person)

    questions = []
    for _ in range(3):
        with pytest.raises(AwaitingLabels):
            make().run()
        before = len(questions)
        questions += fill_in(person)
        kill_in(monkeypatch, make, owner, name)
        assert len(purchases(person)) == (before if owner is ledger else len(questions))
        assert (person / "query.csv").exists() == (name != "price")  # the answers are in one place at least
    make().run()
    Runner.of(a_config(oracle="simulated"), simulated).run()
    assert len(questions) == len(set(questions)) == 24
    assert rounds(person) == rounds(simulated)
    assert nobody(purchases(person)) == nobody(purchases(simulated))
    assert not (person / "query.csv").exists()
    assert not (person / "asked.json").exists()


def test_a_kill_while_the_question_is_written_asks_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_in(monkeypatch, lambda: Runner.of(a_config(), tmp_path), ledger, "write_atomically")  # query.csv without asked.json
    ids = fill_in(tmp_path)
    with pytest.raises(AwaitingLabels, match="6 labels wanted"):
        Runner.of(a_config(), tmp_path).run()
    assert [row["id"] for row in purchases(tmp_path)] == ids


def test_an_answered_question_stands_whatever_would_be_asked_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is not deterministic may choose otherwise in the second process; the person's work counts."""
    from alenv.campaign import Campaign

    for _ in range(2):
        with pytest.raises(AwaitingLabels):
            Runner.of(a_config(), tmp_path).run()
        ids = fill_in(tmp_path)
    real = Campaign.choose

    def otherwise(self: Campaign, action: Any) -> Any:
        query = real(self, action)
        others = self.round.candidates[-6:]
        return query if self.index != 1 else query._replace(indices=others, ids=tuple(self.task.ids[i] for i in others.tolist()))

    monkeypatch.setattr(Campaign, "choose", otherwise)
    with pytest.raises(AwaitingLabels):
        Runner.of(a_config(), tmp_path).run()
    assert rounds(tmp_path)[1]["queried"] == ids
    assert set(asked(tmp_path)).isdisjoint(row["id"] for row in purchases(tmp_path))


def test_a_checkpoint_lost_while_a_question_waits_keeps_the_question(tmp_path: Path) -> None:
    for _ in range(3):
        with pytest.raises(AwaitingLabels):
            Runner.of(a_config(), tmp_path).run()
        ids = fill_in(tmp_path)
    (tmp_path / "checkpoint" / "state.safetensors").unlink()
    Runner.of(a_config(), tmp_path).run()
    assert [row["id"] for row in purchases(tmp_path)][-6:] == ids
    assert len(purchases(tmp_path)) == len({row["id"] for row in purchases(tmp_path)}) == 24


def test_a_file_oracle_needs_a_run_directory() -> None:
    with pytest.raises(ValueError, match="oracle=file needs a run directory"):
        Runner.of(a_config()).run()
