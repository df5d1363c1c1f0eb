"""Initial sets: by lot, by hidden labels in simulation, by strategies that read embeddings alone."""

from typing import Any

import pytest
import torch

from alenv import initial
from alenv.campaign import Plan
from alenv.pool import OUTSIDE
from alenv.problem import Problem, assemble
from alenv.streams import Streams

TARGETS = torch.tensor([0] * 60 + [1] * 30 + [2] * 8 + [OUTSIDE] * 2)


def a_problem(first: Any, size: int = 20, dataset: Any = "digits", **options: Any) -> Problem:
    plan = Plan(initial=size, batch=5, rounds=1)
    return assemble(dataset=dataset, initial=first, plan=plan, strategies=["uniform"], device="cpu", **options)


def first_purchase(first: Any, seed: int = 0, **options: Any) -> list[str]:
    return list(a_problem(first, **options).campaign(seed).begin().ids)


def counts(rows: torch.Tensor) -> list[int]:
    return [int((TARGETS[rows] == c).sum()) for c in (0, 1, 2, OUTSIDE)]


# by hidden labels


def test_a_stratified_set_has_the_shares_of_the_pool_and_one_of_each_class() -> None:
    generator = Streams(0)("x")
    assert counts(initial.stratified(TARGETS, 50, generator)) == [30, 15, 4, 1]
    assert counts(initial.stratified(TARGETS, 4, generator)) == [1, 1, 1, 1]
    assert counts(initial.stratified(TARGETS, 100, generator)) == [60, 30, 8, 2]
    assert sum(counts(initial.stratified(TARGETS, 3, generator))) == 3


def test_a_balanced_set_has_as_many_of_each_class_until_a_class_runs_out_and_no_outsider() -> None:
    assert counts(initial.balanced(TARGETS, 21, Streams(0)("x"))) == [7, 7, 7, 0]
    assert counts(initial.balanced(TARGETS, 50, Streams(0)("x"))) == [21, 21, 8, 0]


def test_a_one_class_set_is_of_one_class_that_the_seed_draws() -> None:
    kinds = {tuple(counts(initial.one_class(TARGETS, 5, Streams(seed)("x")))) for seed in range(12)}
    assert kinds == {(5, 0, 0, 0), (0, 5, 0, 0), (0, 0, 5, 0)}


@pytest.mark.parametrize("kind", list(initial.LABELLED))
def test_labelled_draws_are_distinct_and_a_matter_of_the_seed(kind: str) -> None:
    draws = [initial.LABELLED[kind](TARGETS, 25, Streams(seed)("x")) for seed in (0, 0, 1)]
    assert len(draws[0].unique()) == 25
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_hidden_labels_are_for_simulations_only_and_a_run_says_that_they_were_used() -> None:
    problem = a_problem("stratified", validation=50)
    assert "look at hidden labels" in problem.note(problem.task(0))
    assert a_problem("typiclust", validation=50).note(problem.task(0)) == ""
    with pytest.raises(ValueError, match="only oracle=simulated knows"):
        a_problem("stratified", oracle="file")


# by strategies


@pytest.mark.parametrize("name", ["typiclust", "kmeans", "coreset", "probcover", "max_herding"])
def test_a_strategy_that_reads_embeddings_can_choose_the_initial_set(name: str) -> None:
    ids = first_purchase(name)
    assert len(set(ids)) == 20
    assert ids == first_purchase(name)
    assert set(ids) != set(first_purchase("random"))


def test_a_core_set_covers_the_inputs_better_than_a_random_one() -> None:
    problem = a_problem("coreset", size=60)
    x = problem.task(0).inputs[:].flatten(1).float()

    def radius(first: str) -> float:
        rows = a_problem(first, size=60).campaign(0).begin().indices
        return float(torch.cdist(x, x[rows]).amin(1).max())

    assert radius("coreset") < 0.9 * radius("random")


def test_the_initial_set_does_not_change_with_who_selects_later() -> None:
    plans = [{"strategies": ["margin", "badge"]}, {"strategies": ["uniform"], "reward": "level"}]
    ids = [
        assemble(initial="typiclust", plan=Plan(initial=10, batch=5, rounds=1), device="cpu", **p).campaign(3).begin().ids
        for p in plans
    ]
    assert ids[0] == ids[1]


@pytest.mark.parametrize("name", ["random", "stratified", "kmeans"])
def test_a_seed_of_its_own_keeps_the_choice_apart_from_the_campaigns_other_draws(name: str) -> None:
    own = [first_purchase({"name": name, "seed": 5}, validation=0, seed=seed) for seed in (0, 1)]
    assert own[0] == own[1]
    assert own[0] == first_purchase(name, validation=0, seed=5)
    assert own[0] != first_purchase({"name": name, "seed": 6}, validation=0)


def test_features_of_a_provider_can_take_the_place_of_the_inputs() -> None:
    features = {"same": "raw"}
    assert first_purchase({"name": "coreset", "features": "same"}, features=features) == first_purchase("coreset")
    with pytest.raises(ValueError, match="no features 'sam'; did you mean 'same'"):
        first_purchase({"name": "coreset", "features": "sam"}, features=features)


def test_parameters_reach_the_strategy() -> None:
    problem = a_problem({"name": "probcover", "delta": 0.3})
    assert isinstance(problem.initial, initial.ByStrategy)
    assert problem.initial.strategy.delta == 0.3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ("margin", "it needs probs, and before the first purchase there is no model"),
        ("typiclus", "unknown initial 'typiclus'; did you mean 'typiclust'"),
        ({"name": "random", "size": 3}, "initial=random has no parameter size"),
        ({"features": "x"}, "expected initial as a name, a list of ids, or a mapping with 'name'"),
        (["nobody"], r"initial ids \['nobody'\] are not in the pool"),
    ],
)
def test_what_cannot_be_an_initial_set_is_said_in_one_sentence(first: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        first_purchase(first)


def test_too_few_of_one_class_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"initial=one_class: 1\d\d examples can be drawn so, 400 are wanted; lower budget.initial"
    ):
        first_purchase("one_class", size=400)
