"""A person who labels texts reads them in the question."""

import csv
from dataclasses import replace

import pytest
import torch

from alenv.campaign import Plan
from alenv.oracle import AwaitingLabels, FileOracle
from alenv.problem import assemble
from alenv.streams import Streams


def test_a_question_about_texts_shows_them_and_is_answered_in_place(tmp_path) -> None:
    task = assemble(dataset="iris", plan=Plan(rounds=1)).task(0)
    texts = tuple(f'number {i}, "quoted"\nand a second line' for i in range(len(task)))
    oracle, asked = FileOracle(), torch.tensor([3, 1])
    oracle.begin(replace(task, texts=texts), Streams(0), tmp_path)
    with pytest.raises(AwaitingLabels):
        oracle.label(asked)
    path = tmp_path / "query.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["label"], row["text"]) for row in rows] == [(task.ids[i], "", texts[i]) for i in (3, 1)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["id", "label", "text"])
        writer.writeheader()
        writer.writerows({**row, "label": label} for row, label in zip(rows, ("2", "0"), strict=True))
    assert oracle.label(asked) == [2, 0]


def test_a_question_without_texts_has_two_columns(tmp_path) -> None:
    task, oracle = assemble(dataset="iris", plan=Plan(rounds=1)).task(0), FileOracle()
    oracle.begin(task, Streams(0), tmp_path)
    with pytest.raises(AwaitingLabels):
        oracle.label(torch.tensor([0]))
    assert (tmp_path / "query.csv").read_text(encoding="utf-8").splitlines() == ["id,label", f"{task.ids[0]},"]
