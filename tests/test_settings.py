"""Imbalanced, noisy and composed settings: which examples they keep, what they say of themselves, and what is measured."""

from typing import Any

import pytest
import torch

from alenv import library
from alenv.campaign import Plan
from alenv.metrics import classification, purchase
from alenv.pool import OUTSIDE
from alenv.problem import assemble
from alenv.streams import Streams
from alenv.task import Examples, Source, Split, Task, number_ids

EVEN = (100, 100, 100, 100, 100)


def a_source(counts: tuple[int, ...] = EVEN, test: tuple[int, ...] = (20, 20, 20, 20, 20), unknown: int = 0) -> Source:
    def part(sizes: tuple[int, ...], missing: int, prefix: str) -> Examples:
        targets = torch.cat([torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)), torch.full((missing,), -1)])
        targets = targets[torch.randperm(len(targets), generator=Streams(7)(prefix))]
        return Examples(torch.randn(len(targets), 3, generator=Streams(0)(prefix)), targets, number_ids(len(targets), prefix))

    return Source("made", part(counts, unknown, "a"), part(test, 0, "t"), tuple("abcde"[: len(counts)]))


def a_split(name: str, source: Source | None = None, validation: float | int = 0, seed: int = 0, **options: Any) -> Split:
    return library.build("setting", name, **options)(source or a_source(), validation, Streams(seed))


def sizes(source: Source, rows: torch.Tensor) -> list[int]:
    return torch.bincount(source.train.targets[rows], minlength=len(source.classes)).tolist()


# class sizes


def test_a_long_tail_keeps_the_integer_part_of_base_times_factor_to_the_power_of_the_rank() -> None:
    assert sizes(a_source(), a_split("longtail", factor=0.1).pool) == [100, 56, 31, 17, 10]  # 100 x 0.1^(i/4)
    assert sizes(a_source(), a_split("longtail", factor=0.1, base=50).pool) == [50, 28, 15, 8, 5]
    assert sizes(a_source(), a_split("longtail", factor=1.0).pool) == list(EVEN)


def test_steps_keep_the_first_half_whole_and_make_the_others_rare() -> None:
    assert sizes(a_source(), a_split("step", factor=0.1).pool) == [100, 100, 10, 10, 10]


def test_the_base_is_as_large_as_the_smallest_class_allows_for_its_rank() -> None:
    source = a_source((80, 300, 30, 200, 5))
    assert sizes(source, a_split("longtail", source, factor=0.1).pool) == [50, 28, 15, 8, 5]  # the last class has 5 = 0.1 x 50
    assert sizes(source, a_split("longtail", source, factor=0.02).pool)[0] == 80


@pytest.mark.parametrize("name", ["longtail", "step"])
def test_an_imbalanced_pool_is_a_function_of_the_seed_and_its_size_is_not(name: str) -> None:
    splits = [a_split(name, seed=seed, validation=25, order="drawn") for seed in (0, 0, 1, 2, 3)]
    assert torch.equal(splits[0].pool, splits[1].pool)
    assert not torch.equal(splits[0].pool, splits[2].pool)
    assert len({(len(s.pool), len(s.validation)) for s in splits}) == 1
    assert len({tuple(s.groups["tail_recall"]) for s in splits}) > 1, "drawn: other classes are rare"
    assert not set(splits[0].pool.tolist()) & set(splits[0].validation.tolist())


def test_examples_without_a_known_label_take_no_part_in_an_imbalanced_setting() -> None:
    source = a_source(unknown=40)
    assert sizes(source, a_split("longtail", source).pool) == [100, 56, 31, 17, 10]


@pytest.mark.parametrize(
    ("test", "counts", "expected"),
    [
        ("balanced", (20, 30, 25, 20, 40), [20] * 5),
        ("whole", (20, 30, 25, 20, 40), [20, 30, 25, 20, 40]),
        ("matched", (20, 30, 25, 20, 40), [20, 11, 6, 3, 2]),
        ("balanced", (20, 0, 25, 20, 40), [20, 0, 20, 20, 20]),
    ],
)
def test_the_test_split_is_balanced_or_matched_or_left_as_it_is(test: str, counts: tuple[int, ...], expected: list[int]) -> None:
    source = a_source(test=counts)
    rows = a_split("longtail", source, test=test).test
    assert source.test is not None
    assert torch.bincount(source.test.targets[rows], minlength=5).tolist() == expected


def test_the_realised_sizes_and_the_thirds_are_among_the_facts() -> None:
    facts = a_split("longtail", factor=0.1).facts
    assert facts["class_sizes"] == {"a": 100, "b": 56, "c": 31, "d": 17, "e": 10}
    assert (facts["factor"], facts["imbalance"]) == (0.1, 0.1)
    assert (facts["head"], facts["medium"], facts["tail"]) == (["a", "b"], ["c", "d"], ["e"])
    assert {k: a_split("step").facts[k] for k in ("head", "tail")} == {"head": ["a", "b"], "tail": ["c", "d", "e"]}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("longtail", {"factor": 0.0}, r"expected setting.factor .* in \(0, 1\], got 0.0"),
        ("longtail", {"factor": 0.001}, "leaves no example of class 'd'.*raise setting.factor or setting.base"),
        ("step", {"base": 101}, "class 'a' has 100 examples but should keep 101; lower setting.base"),
        ("longtail", {"test": "even"}, "expected setting.test=balanced, matched or whole, got 'even'"),
        ("longtail", {"order": "random"}, "expected setting.order=given or drawn"),
        ("longtail", {"validation": 500}, "validation=500 asks for 500 of the 214 examples"),
        ("noisy", {"rate": 1.0}, r"expected setting.rate in \[0, 1\)"),
        ("noisy", {"kind": "odd"}, "expected setting.kind=uniform or pair"),
        ("openset", {"profile": "odd"}, "expected setting.profile=longtail or step"),
    ],
)
def test_what_a_setting_cannot_do_is_said_in_one_sentence(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        a_split(name, **options)


# label noise


def test_noise_changes_the_labels_of_pool_and_validation_and_not_those_of_the_test_split() -> None:
    source = a_source((400,) * 5)
    task = Task.build(source, a_split("noisy", source, 100, rate=0.3), "noisy")
    true = dict(zip(source.train.ids, source.train.targets.tolist(), strict=True))
    wrong = [true[id_] != label for id_, label in zip(task.ids, task.targets.tolist(), strict=True)]
    assert sum(wrong) / len(wrong) == pytest.approx(task.facts["noise_rate"], abs=1e-6)
    assert task.facts["noise_rate"] == pytest.approx(0.3, abs=0.03)
    held = [true[i] != label for i, label in zip(task.validation.ids, task.validation.targets.tolist(), strict=True)]
    assert 0.1 < sum(held) / len(held) < 0.5
    assert source.test is not None
    assert torch.equal(task.test.targets, source.test.targets)


def test_pair_noise_goes_to_the_next_class_and_unknown_labels_stay_unknown() -> None:
    source = a_source((200,) * 5, unknown=50)
    split = a_split("noisy", source, rate=0.4, kind="pair")
    true, noisy = source.train.targets, split.targets
    assert noisy is not None
    changed = noisy != true
    assert torch.equal(noisy[changed], (true[changed] + 1) % 5)
    assert bool((noisy[true < 0] == -1).all())


# an open set with a long tail


def test_open_set_and_long_tail_compose() -> None:
    source = a_source()
    split = a_split("openset", source, rate=0.4, classes=[1, 2, 4], factor=0.1)
    task = Task.build(source, split, "openset")
    inside = task.targets[task.targets >= 0]
    assert torch.bincount(inside).tolist() == [100, 31, 10] == list(task.facts["class_sizes"].values())
    assert int((task.targets == OUTSIDE).sum()) == round(0.4 / 0.6 * 141)
    assert task.groups["tail_recall"] == (2,)
    assert task.groups["recall/c"] == (1,), "classes are numbered as in the task"
    assert len({len(a_split("openset", source, 10, seed, classes=3, factor=0.1).pool) for seed in range(5)}) == 1


# what is measured


def test_recall_of_classes_and_of_thirds_is_a_mean_over_the_classes_that_occur() -> None:
    targets, predicted = torch.tensor([0, 0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 0, 1, 1, 0, 2])
    logits = torch.nn.functional.one_hot(predicted, 4).float()
    groups = {"head_recall": (0, 1), "tail_recall": (2, 3), "recall/d": (3,), "recall/a": (0,)}
    found = classification(logits, targets, groups)
    assert {name: found.get(name) for name in groups} == pytest.approx(
        {"head_recall": (0.75 + 0.5) / 2, "tail_recall": 1.0, "recall/d": None, "recall/a": 0.75}
    )
    assert classification(logits, targets) == {name: found[name] for name in list(found)[:5]}


def test_precision_and_recall_of_a_purchase() -> None:
    assert purchase(torch.tensor([1, OUTSIDE, 0, OUTSIDE]), labeled=12, inside=60) == {
        "query_precision": 0.5, "query_recall": 0.2,
    }  # fmt: skip


def records_of(setting: Any, dataset: Any = "digits") -> list[Any]:
    plan = Plan(initial=20, batch=10, rounds=2)
    problem = assemble(dataset=dataset, setting=setting, strategies=["uniform"], plan=plan, device="cpu")
    campaign = problem.campaign(0)
    query = campaign.begin()
    while True:
        campaign.advance(problem.trainer.fit(campaign.receive(problem.oracle.label(query.indices))))
        if campaign.done:
            return [campaign.task, *campaign.records]
        query = campaign.choose(0)


def test_a_long_tailed_run_records_the_recall_of_every_class_and_of_the_thirds() -> None:
    task, *records = records_of({"name": "longtail", "factor": 0.2})
    last = records[-1].metrics
    assert [name for name in last if name.startswith("recall/")] == [f"recall/{c}" for c in task.classes]
    recalls = [last[f"recall/{c}"] for c in task.classes]
    assert sum(recalls) / 10 == pytest.approx(last["balanced_accuracy"])
    assert last["head_recall"] == pytest.approx(sum(recalls[:4]) / 4)
    assert last["tail_recall"] == pytest.approx(sum(recalls[7:]) / 3)


def test_an_open_set_run_records_precision_and_recall_of_its_purchases() -> None:
    task, *records = records_of({"name": "openset", "rate": 0.5})
    inside = int((task.targets >= 0).sum())
    truth = dict(zip(task.ids, task.targets.tolist(), strict=True))
    bought = 0
    for record in records:
        usable = sum(truth[id_] >= 0 for id_ in record.queried)
        bought += usable
        assert record.metrics["query_precision"] == pytest.approx(usable / len(record.queried))
        assert record.metrics["query_recall"] == pytest.approx(bought / inside)
    assert "query_recall" not in records_of("standard")[-1].metrics
