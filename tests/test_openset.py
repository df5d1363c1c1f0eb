"""The open-set setting: its rate, its sizes, what is labelled, and what purchases of no class do to a campaign."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alenv import library
from alenv.campaign import Plan
from alenv.pool import OUTSIDE
from alenv.problem import Problem, assemble
from alenv.runner import Runner
from alenv.streams import Streams
from alenv.task import Examples, Source, Task, number_ids


def a_source(counts: tuple[int, ...] = (30, 40, 50, 60), test: int = 40, unknown: int = 0) -> Source:
    targets = torch.cat([torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)), torch.full((unknown,), -1)])
    inputs = torch.randn(len(targets), 3, generator=Streams(0)("x"))
    held = Examples(inputs[:test], torch.arange(test) % len(counts), number_ids(test, "t"))
    return Source("made", Examples(inputs, targets, number_ids(len(targets))), held, tuple("abcd"[: len(counts)]))


def a_task(seed: int = 0, source: Source | None = None, validation: int | float = 0, **options: Any) -> Task:
    source = source or a_source()
    split = library.build("setting", "openset", **options)(source, validation, Streams(seed))
    return Task.build(source, split, "openset")


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.4, 0.6, 0.8])
@pytest.mark.parametrize("classes", [[1, 3], [0, 1, 2]])
def test_the_rate_is_the_one_asked_for_whatever_the_classes(rate: float, classes: list[int]) -> None:
    task = a_task(rate=rate, classes=classes)
    outside = int((task.targets == OUTSIDE).sum())
    assert outside / len(task) == pytest.approx(rate, abs=0.5 / len(task) + 1e-3)
    assert task.facts["outside_rate"] == pytest.approx(outside / len(task), abs=1e-6)
    counts = (30, 40, 50, 60)
    mine = sum(counts[c] for c in classes)
    left = mine - (len(task) - outside), sum(counts) - mine - outside
    assert 0 <= min(left) <= 1, "one of the two parts is used up"


def test_classes_are_renumbered_and_test_and_validation_hold_no_others() -> None:
    source = a_source()
    task = a_task(source=source, classes=[3, 1], rate=0.3, validation=10)
    assert task.classes == ("b", "d")
    truth = dict(zip(source.train.ids, source.train.targets.tolist(), strict=True))
    expected = {0: OUTSIDE, 1: 0, 2: OUTSIDE, 3: 1}
    assert [expected[truth[id_]] for id_ in task.ids] == task.targets.tolist()
    assert len(task.validation) == 10
    assert set(task.validation.targets.tolist()) <= {0, 1}
    assert not set(task.validation.ids) & set(task.ids)
    assert len(task.test) == 20
    assert set(task.test.targets.tolist()) == {0, 1}


def test_drawn_classes_differ_between_seeds_and_sizes_do_not() -> None:
    tasks = [a_task(seed, classes=2, rate=0.4) for seed in range(8)]
    assert len({task.classes for task in tasks}) > 1
    assert len({(len(task), task.facts["outside"]) for task in tasks}) == 1
    assert a_task(3).classes == a_task(3).classes


def test_examples_without_a_known_label_take_no_part() -> None:
    task = a_task(source=a_source(unknown=25), classes=[0, 1])
    assert set(task.targets.tolist()) == {0, 1, OUTSIDE}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, "expected setting.rate between 0 and 1"),
        ({"classes": 4}, "needs 2..3 of the 4 classes"),
        ({"classes": [0]}, "expected setting.classes to be 2..3"),
        ({"classes": [0, 9]}, "expected setting.classes"),
        ({"validation": 500}, "lower it"),
    ],
)
def test_what_is_no_open_set_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        a_task(**options)


def test_the_standard_setting_is_unchanged_by_classes() -> None:
    source = a_source()
    task = Task.build(source, library.build("setting", "standard")(source, 0, Streams(0)))
    assert task.targets.tolist() == source.train.targets.tolist()
    assert task.classes == source.classes
    assert task.facts == {}


def a_problem(**options: Any) -> Problem:
    plan = Plan(initial=20, batch=10, rounds=3)
    return assemble(setting={"name": "openset", "rate": 0.5}, strategies=["uniform", "lfosa"], plan=plan, device="cpu", **options)


def test_outsiders_cost_budget_leave_the_pool_and_are_never_trained_on() -> None:
    problem = a_problem()
    campaign = problem.campaign(0)
    query = campaign.begin()
    for _ in range(3):
        answers = problem.oracle.label(query.indices)
        job = campaign.receive(answers)
        assert bool((job.targets >= 0).all())
        campaign.advance(problem.trainer.fit(job))
        query = campaign.choose(0)
    outside = campaign.pool.labels == OUTSIDE
    assert int(outside.sum()) > 0
    record = campaign.records[-1]
    assert record.bought == record.cost == 40
    assert record.labels == 40 - int(outside.sum())
    assert torch.equal(campaign.round.discarded_inputs, campaign.task.inputs[outside])
    assert bool(campaign.round.outside.all())
    assert not set(campaign.round.candidates.tolist()) & set(torch.nonzero(outside).flatten().tolist())


def test_a_run_on_disk_says_what_was_outside_and_continues(tmp_path: Path) -> None:
    config = {
        "setting": {"name": "openset", "rate": 0.5}, "selector": {"name": "fixed", "strategy": "uniform"}, "device": "cpu",
        "budget": {"initial": 20, "batch": 10, "rounds": 2},
    }  # fmt: skip
    run = Runner.of(config, tmp_path / "run").run()
    assert run.summary["setting"]["outside_rate"] == pytest.approx(0.5, abs=1e-3)
    bought = [json.loads(line) for line in (tmp_path / "run" / "purchases.jsonl").read_text().splitlines()]
    outsiders = [row for row in bought if row["label"] == "outside"]
    assert len(outsiders) == run.summary["bought"] - run.summary["labels"] > 0
    assert Runner.of(config, tmp_path / "run").run().summary == run.summary
