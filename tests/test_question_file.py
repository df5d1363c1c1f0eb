"""What a person is asked: the images' paths beside the ids, and never a label that the data set holds already."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alenv import library
from alenv.campaign import Plan
from alenv.datasets.image_folder import image_folder
from alenv.oracle import AwaitingLabels, FileOracle
from alenv.problem import Problem, assemble
from alenv.rundir import RunDirectory
from alenv.runner import Runner
from alenv.streams import Streams
from alenv.task import Task


def a_folder(root: Path) -> Path:
    """Eight labelled images, 22 without a label; one name has a comma."""
    for i in range(30):
        path = root / ("ab"[i % 2] if i < 8 else "unlabeled") / ("9, nine.png" if i == 9 else f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), 8 * i, dtype=np.uint8)).save(path)
    return root


def a_problem(root: Path, initial: str = "random", size: int = 6) -> Problem:
    source = image_folder(str(a_folder(root)), cache=None)
    return assemble(
        dataset=source, strategies=["margin"], oracle="file", plan=Plan(size, 5, 2), initial=initial, validation=0, device="cpu"
    )


def asked_of(directory: Path) -> list[dict[str, str]]:
    with (directory / "query.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def answer(directory: Path, label: str = "b") -> None:
    rows = asked_of(directory)
    with (directory / "query.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, "label": label} for row in rows)


def known_of(task: Task) -> set[str]:
    return {id_ for id_, target in zip(task.ids, task.targets.tolist(), strict=True) if target >= 0}


def test_a_question_about_images_names_files_that_can_be_opened(tmp_path: Path) -> None:
    problem, run = a_problem(tmp_path / "data"), tmp_path / "run"
    run.mkdir()
    task, oracle = problem.task(0), FileOracle()
    oracle.begin(task, Streams(0), run)
    wanted = torch.nonzero(task.targets < 0).flatten()
    with pytest.raises(AwaitingLabels, match="22 labels wanted"):
        oracle.label(wanted)
    rows = asked_of(run)
    assert [row["id"] for row in rows] == [task.ids[i] for i in wanted.tolist()]
    for row, index in zip(rows, wanted.tolist(), strict=True):
        assert Path(row["path"]).is_absolute()
        assert int(np.asarray(Image.open(row["path"]))[0, 0, 0]) == int(task.inputs[index].max())
    answer(run)
    assert oracle.label(wanted) == [1] * 22


def test_labels_of_the_data_set_are_neither_asked_for_nor_charged(tmp_path: Path) -> None:
    task, oracle = a_problem(tmp_path / "data").task(0), FileOracle(unit_price=2.0)
    oracle.begin(task, Streams(0), tmp_path)
    known, unknown = (torch.nonzero(mask).flatten() for mask in (task.targets >= 0, task.targets < 0))
    assert oracle.label(known) == task.targets[known].tolist()
    assert not (tmp_path / "query.csv").exists()
    mixed = torch.stack([known[:3], unknown[:3]], 1).flatten()
    with pytest.raises(AwaitingLabels, match="3 labels wanted"):
        oracle.label(mixed)
    assert [row["id"] for row in asked_of(tmp_path)] == [task.ids[i] for i in unknown[:3].tolist()]
    answer(tmp_path, "a")
    truth = task.targets[known[:3]].tolist()
    assert oracle.label(mixed) == [truth[0], 0, truth[1], 0, truth[2], 0]
    assert (oracle.price(known), oracle.price(mixed)) == (0.0, 6.0)


def test_where_every_label_is_known_all_are_asked_for(tmp_path: Path) -> None:
    task, oracle = assemble(dataset="iris", plan=Plan(rounds=1)).task(0), FileOracle()
    oracle.begin(task, Streams(0), tmp_path)
    with pytest.raises(AwaitingLabels, match="4 labels wanted"):
        oracle.label(torch.arange(4))
    assert oracle.price(torch.arange(4)) == 4


def test_a_run_starts_from_the_labels_there_are_and_asks_for_others_once(tmp_path: Path) -> None:
    problem, run, questions = a_problem(tmp_path / "data", "known", 8), tmp_path / "run", []
    selector = {"name": "fixed", "strategy": "margin"}
    while True:
        runner = Runner(problem, library.build("selector", selector), directory=run, config={"a": 1})
        try:
            finished = runner.run()
            break
        except AwaitingLabels:
            questions += [row["id"] for row in asked_of(run)]
            answer(run)
    assert set(finished.rounds[0].queried) == known_of(problem.task(0))
    assert len(questions) == len(set(questions)) == 10
    assert not set(questions) & known_of(problem.task(0))
    assert finished.rounds[-1].cost == 10
    assert finished.summary["bought"] == 18


@pytest.mark.parametrize(("size", "dataset", "said"), [
    (20, None, r"initial=known: 8 examples of the pool have a label, 20 are wanted; set budget\.initial=8"),
    (6, "none", r"initial=known: 0 examples .* use initial=random"),
])  # fmt: skip
def test_an_initial_set_of_known_labels_needs_enough_of_them(size: int, dataset: str | None, said: str, tmp_path: Path) -> None:
    problem = a_problem(tmp_path / "data", "known", size)
    if dataset == "none":
        train = problem.source.train
        problem = replace(
            problem, source=replace(problem.source, train=replace(train, targets=torch.full_like(train.targets, -1)))
        )
    with pytest.raises(ValueError, match=said):
        problem.campaign(0, tmp_path)


def test_fresh_removes_a_question_that_nobody_has_answered_whatever_it_shows(tmp_path: Path) -> None:
    folder = RunDirectory(tmp_path, {}, fresh=True)
    question = tmp_path / "query.csv"
    question.write_text('id,label,text\n1,,"some words,\nin two lines"\n2,,more\n')
    folder.prepare()
    assert not question.exists()
    question.write_text("id,label,text\n1,,some words\n2,dog,more\n")
    with pytest.raises(ValueError, match="holds answers that fresh=true would delete"):
        folder.prepare()
    assert question.exists()
