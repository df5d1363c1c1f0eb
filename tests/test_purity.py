"""How well strategies tell a task's classes from others: the number by hand, who judges, and that labels stay with the oracle."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alenv import library
from alenv.campaign import Campaign, Plan
from alenv.metrics import auroc
from alenv.oracle import NoisyOracle, SimulatedOracle
from alenv.pool import OUTSIDE
from alenv.problem import Problem, assemble
from alenv.round import Round
from alenv.runner import Runner
from alenv.strategies.ccal import CCAL
from alenv.strategies.lfosa import LfOSA
from alenv.strategies.mqnet import MQNet
from alenv.strategies.ood_filter import OODFilter
from alenv.strategies.similar import Similar
from alenv.strategy import JudgesPurity, Strategy
from alenv.streams import Streams

# the number


def test_the_area_is_the_share_of_pairs_in_the_right_order() -> None:
    scores = torch.tensor([0.9, 0.8, 0.3, 0.1])
    assert auroc(scores, torch.tensor([True, True, False, False])) == 1
    assert auroc(scores, torch.tensor([False, False, True, True])) == 0
    assert auroc(scores, torch.tensor([True, False, True, False])) == 0.75  # of the pairs 9:8, 9:1, 3:8, 3:1 one is wrong


def test_ties_count_half() -> None:
    assert auroc(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([True, False, False])) == 0.75
    assert auroc(torch.ones(7), torch.arange(7) < 3) == 0.5


@pytest.mark.parametrize("kind", [True, False])
def test_one_kind_alone_has_no_area(kind: bool) -> None:
    assert auroc(torch.rand(4, generator=Streams(0)("x")), torch.full((4,), kind)) is None


def test_the_area_is_a_count_of_pairs_with_many_ties() -> None:
    generator = Streams(1)("auroc")
    for _ in range(5):
        positive = torch.rand(200, generator=generator) < 0.3
        scores = ((3 * torch.rand(200, generator=generator) + positive) * 10).round()
        gaps = scores[positive][:, None] - scores[~positive]
        assert auroc(scores, positive) == pytest.approx(float(((gaps > 0) + 0.5 * (gaps == 0)).double().mean()), abs=1e-12)


# who judges


def two_sides(**changes: Any) -> Round:
    """Two candidates near the labelled examples, two near what turned out to be of no class."""
    x = torch.tensor([[1.0, 0.1], [0.1, 1.0], [0.9, 0.2], [0.0, 1.0]])
    known, outside = torch.tensor([[1.0, 0.0], [0.9, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 0.8]])
    features = dict.fromkeys(("semantic", "distinctive"), (x, known))
    given = {
        "embeddings": x, "labeled_embeddings": known, "labels": [0, 1], "discarded_embeddings": outside, "features": features,
        "probs": torch.tensor([[0.6, 0.4]] * 4), "head": (torch.eye(2), torch.zeros(2)), "num_classes": 2,
    }  # fmt: skip
    return Round.from_arrays(**(given | changes))


class Uniform(Strategy):
    def select(self, round: Round, budget: int) -> Tensor:
        return torch.arange(budget)


JUDGES = {
    "ccal": CCAL(), "mqnet": MQNet(), "similar": Similar(kernel="embeddings"), "gradients": Similar(query="all"),
    "ood_filter": OODFilter(Uniform(), neighbors=1), "lfosa": LfOSA(detector="head", epochs=30, min_steps=60),
}  # fmt: skip


@pytest.mark.parametrize("name", JUDGES)
def test_what_is_like_the_labelled_examples_is_purer_than_what_is_like_outsiders(name: str) -> None:
    judge = JUDGES[name]
    assert isinstance(judge, JudgesPurity)
    purity = judge.purity(two_sides())
    assert purity is not None
    assert auroc(purity, torch.tensor([True, False, True, False])) == 1


def test_purity_by_hand() -> None:
    round = two_sides()
    cosines = torch.tensor([1 / 1.01**0.5, 0.1 / 1.01**0.5, 0.9 / 0.85**0.5, 0.0])  # with (1, 0)
    sines = torch.tensor([0.1 / 1.01**0.5, 1 / 1.01**0.5, 0.2 / 0.85**0.5, 1.0])  # with (0, 1)
    for judge in (CCAL(), MQNet()):
        torch.testing.assert_close(judge.purity(round), cosines)
    torch.testing.assert_close(Similar(kernel="embeddings").purity(round), (cosines - sines) / 2)
    half = Similar(kernel="embeddings", eta=0.5, nu=2.0).purity(round)
    torch.testing.assert_close(half, 0.5 * (1 + cosines) / 2 - 2 * (1 + sines) / 2)
    distance = (2 - 2 * sines).sqrt() - (2 - 2 * cosines).clamp(min=0).sqrt()
    torch.testing.assert_close(OODFilter(Uniform(), neighbors=2).purity(round), distance, atol=1e-3, rtol=1e-3)


def test_where_there_is_nothing_to_judge_by_there_is_no_purity() -> None:
    nothing = {"labeled_embeddings": torch.zeros(0, 2), "labels": [], "discarded_embeddings": torch.zeros(0, 2)}
    features = {name: (torch.ones(4, 2), torch.zeros(0, 2)) for name in ("semantic", "distinctive")}
    round = two_sides(**nothing, features=features)
    for name in ("ccal", "similar", "ood_filter"):
        judge = JUDGES[name]
        assert isinstance(judge, JudgesPurity)
        assert judge.purity(round) is None


def test_a_detector_is_trained_once_a_round() -> None:
    class Counted(LfOSA):
        trained = 0

        def _train(self, *arguments: Any) -> None:
            self.trained += 1

    judge, round = Counted(detector="head"), two_sides()
    assert torch.equal(judge.scores(round), judge.purity(round))
    judge.select(round, 2)
    assert judge.trained == 1
    judge.select(two_sides(), 2)
    Counted(detector="head").select(round, 2)
    assert judge.trained == 2, "another round, or another strategy, shares nothing"


# in campaigns


class Guess(Strategy):
    """Buys by lot and judges by lot."""

    def select(self, round: Round, budget: int) -> Tensor:
        return torch.randperm(len(round), generator=round.generator("guess"))[:budget]

    def purity(self, round: Round) -> Tensor:
        return torch.rand(len(round), generator=round.generator("guess/purity"))


def a_problem(strategies: dict[str, Any], **options: Any) -> Problem:
    plan = Plan(initial=20, batch=10, rounds=3)
    setting = {"name": "openset", "rate": 0.4, "classes": [0, 1, 2, 3, 4, 5]}
    options = {"setting": setting, "plan": plan, "device": "cpu"} | options
    return replace(assemble(strategies=["uniform"], **options), strategies=strategies)


def play(problem: Problem, actions: list[int]) -> Campaign:
    campaign = problem.campaign(0)
    query = campaign.begin()
    for action in [*actions, None]:
        campaign.advance(problem.trainer.fit(campaign.receive(problem.oracle.label(query.indices))))
        query = query if action is None else campaign.choose(action)
    return campaign


def strategies() -> dict[str, Any]:
    return {
        "guess": Guess(), "lfosa": LfOSA(detector="head", epochs=20), "uniform": library.build("strategy", "uniform"),
        "similar": Similar(),
    }  # fmt: skip


def test_records_say_how_well_those_who_were_asked_judged() -> None:
    records = play(a_problem(strategies()), [0, 1, 2]).records
    found = [{k: v for k, v in r.metrics.items() if k.startswith("purity")} for r in records]
    names = {"purity_auroc/guess", "purity_auroc/lfosa", "purity_auroc/similar"}
    assert all(set(row) == names for row in found), "the same names in every round; uniform judges nothing"
    known = [{name for name, value in row.items() if value is not None} for row in found]
    assert known == [set(), {"purity_auroc/guess"}, {"purity_auroc/lfosa"}, set()]
    assert found[1]["purity_auroc/guess"] == pytest.approx(0.5, abs=0.06), "a guess tells nothing"
    assert found[2]["purity_auroc/lfosa"] > 0.7


def test_the_number_is_that_of_the_candidates_before_the_purchase() -> None:
    problem = a_problem({"similar": Similar()})
    campaign = problem.campaign(0)
    query = campaign.begin()
    campaign.advance(problem.trainer.fit(campaign.receive(problem.oracle.label(query.indices))))
    query, round = campaign.choose(0), campaign.round
    expected = auroc(Similar().purity(round), campaign.task.targets[round.candidates] != OUTSIDE)
    record = campaign.advance(problem.trainer.fit(campaign.receive(problem.oracle.label(query.indices))))
    assert record.metrics["purity_auroc/similar"] == expected


def test_tasks_without_outsiders_record_no_purity() -> None:
    records = play(a_problem(strategies(), setting="standard"), [0, 1]).records
    assert not any(name.startswith("purity") for record in records for name in record.metrics)


def test_a_noisy_annotator_s_errors_do_not_move_the_number() -> None:
    one, other = SimulatedOracle(), NoisyOracle(rate=1.0)
    task = a_problem({"guess": Guess()}).task(0)
    for oracle in (one, other):
        oracle.begin(task, Streams(0))
    indices = torch.arange(0, len(task), 2)
    purity = torch.rand(len(indices), generator=Streams(0)("purity"))
    assert one.purity_auroc(indices, purity) == other.purity_auroc(indices, purity)


def test_an_oracle_that_cannot_know_leaves_the_number_out() -> None:
    class Person:
        def begin(self, task: Any, *_: Any) -> None:
            self._answers = task.targets

        def label(self, indices: Tensor) -> list[int | None]:
            return self._answers[indices].tolist()

    records = play(a_problem({"guess": Guess()}, oracle=Person()), [0]).records
    assert [record.metrics["purity_auroc/guess"] for record in records] == [None, None]


def test_a_purity_of_the_wrong_shape_is_refused() -> None:
    class Short(Guess):
        def purity(self, round: Round) -> Tensor:
            return torch.zeros(3)

    with pytest.raises(ValueError, match=r"short: expected purity of shape \(\d+,\) without NaN, got \(3,\)"):
        play(a_problem({"short": Short()}), [0])


def test_a_run_writes_it_down(tmp_path: Path) -> None:
    config = {
        "setting": {"name": "openset", "rate": 0.5}, "selector": {"name": "fixed", "strategy": "similar"}, "device": "cpu",
        "budget": {"initial": 20, "batch": 10, "rounds": 2},
    }  # fmt: skip
    Runner.of(config, tmp_path).run()
    rows = [json.loads(line)["metrics"] for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert rows[0]["purity_auroc/similar"] is None
    assert all(0 < row["purity_auroc/similar"] < 1 for row in rows[1:])
