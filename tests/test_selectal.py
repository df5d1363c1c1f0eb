"""SelectAL: who is removed, how regimes are judged, and what budgets make of it."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from alenv.runner import Runner
from alenv.selectors.selectal import SelectAL, _choose
from alenv.streams import Streams


def started(initial=40, dataset="digits", seed=0, **options):
    config = {
        "selector": {"name": "selectal", **options}, "strategies": ["kmeans"], "dataset": dataset, "seed": seed, "device": "cpu",
        "budget": {"initial": initial, "batch": 10, "rounds": 1},
    }  # fmt: skip
    runner = Runner.of(config)
    runner.env.reset(seed=seed)
    runner.selector.begin(runner._context(runner.env.campaign))
    return runner.selector, runner.env.ballot


def test_candidates_are_the_strategies_of_the_three_regimes():
    selector, ballot = started(high="entropy")
    assert set(selector.requires) == {"uniform", "typiclust", "entropy"} <= set(ballot.names)


def test_surrogates_take_the_most_or_the_least_typical_of_each_cluster():
    # two clusters on a line; the middle of each is typical, the outlier of each is not
    x = torch.tensor([[0.0], [0.1], [0.2], [0.3], [1.0], [10.0], [10.1], [10.2], [10.3], [11.0]])
    lot = Streams(0)("lot")
    typical, untypical = (sorted(_choose(x, 2, regime, lot).tolist()) for regime in (1, 2))
    assert typical[0] in (1, 2)
    assert typical[1] in (6, 7)
    assert untypical == [4, 9]
    assert len(set(_choose(x, 6, 0, lot).tolist())) == 6


@pytest.mark.parametrize("regime", [0, 1, 2])
def test_points_that_coincide_can_be_chosen(regime):
    assert sorted(_choose(torch.zeros(5, 2), 3, regime, Streams(0)("lot")).unique().tolist())[-1] < 5
    assert len(_choose(torch.zeros(5, 2), 3, regime, Streams(0)("lot")).unique()) == 3
    assert _choose(torch.zeros(1, 2), 1, regime, Streams(0)("lot")).tolist() == [0]


@pytest.mark.parametrize(("initial", "share", "each"), [(40, 0.05, 1), (200, 0.1, 2)])
def test_every_class_loses_as_many_examples_and_held_out_ones_are_shared(initial, share, each):
    selector, ballot = started(initial, share=share, random_draws=3)
    round = ballot.round
    trials = selector.trials(round, 0)
    assert [t.regime for t in trials] == [0, 0, 0, 1, 2]
    assert all(torch.equal(t.held, trials[0].held) for t in trials)
    assert len(trials[0].held) == initial * 0.05
    rest = torch.ones(initial, dtype=torch.bool).index_fill(0, trials[0].held, False)
    for trial in trials:
        removed = rest & ~trial.kept
        assert not (trial.kept & ~rest).any()
        counts = torch.bincount(round.labels[rest], minlength=10)
        expected = torch.where(counts > 0, each, 0)
        assert torch.bincount(round.labels[removed], minlength=10).tolist() == expected.tolist()
    assert not torch.equal(trials[0].held, selector.trials(round, 1)[0].held)


def test_never_more_than_the_smallest_class_is_removed():
    selector, ballot = started(60, share=0.9)
    rest = torch.ones(60, dtype=torch.bool).index_fill(0, selector.trials(ballot.round, 0)[0].held, False)
    smallest = int(torch.bincount(ballot.round.labels[rest], minlength=10).min())
    removed = rest & ~selector.trials(ballot.round, 0)[0].kept
    assert torch.bincount(ballot.round.labels[removed], minlength=10).tolist() == [smallest] * 10


def test_accuracies_are_those_of_models_trained_without_the_removed():
    selector, ballot = started(60, repeats=1, random_draws=2)
    round = ballot.round
    trials = selector.trials(round, 0)
    found = selector.accuracies(round, trials)
    from sklearn.linear_model import LogisticRegression

    x, y = round.labeled_inputs.flatten(1).double() / 16, round.labels
    expected = [[], [], []]
    for t in trials:
        model = LogisticRegression(max_iter=2000).fit(x[t.kept], y[t.kept])
        expected[t.regime].append(model.score(x[t.held], y[t.held]))
    held = len(trials[0].held)
    for value, plain in zip(found.tolist(), expected, strict=True):
        assert value == pytest.approx(sum(plain) / len(plain), abs=1.01 / held)


def test_the_regime_whose_removal_hurts_most_decides():
    selector, ballot = started()
    for hurt, name in enumerate(("uniform", "typiclust", "badge")):
        accuracy = torch.tensor([0.5, 0.5, 0.5], dtype=torch.float64)
        accuracy[hurt] = 0.4
        selector.accuracies = lambda round, trials, accuracy=accuracy: accuracy
        assert ballot.names[selector.act({}, ballot)] == name
        assert selector.update(None)[f"accuracy/{('random', 'low', 'high')[hurt]}"] == pytest.approx(0.4)


def test_surrogates_that_hurt_alike_are_chosen_uniformly():
    selector, ballot = started()
    selector.accuracies = lambda round, trials: torch.full((3,), 0.5, dtype=torch.float64)
    selector.trials = lambda round, repeat: []
    rounds = [SimpleNamespace(names=ballot.names, round=SimpleNamespace(index=i)) for i in range(900)]
    counts = Counter(ballot.names[selector.act({}, one)] for one in rounds)
    assert set(counts) == {"uniform", "typiclust", "badge"}
    assert sum((n - 300) ** 2 / 300 for n in counts.values()) < 13.8  # chi-square, 2 degrees, one in a thousand


@pytest.mark.parametrize("regime", [0, 1, 2])
def test_two_examples_of_a_class_are_equally_typical_and_every_surrogate_removes_either_by_lot(regime):
    removed = [int(_choose(torch.tensor([[0.0], [1.0]]), 1, regime, Streams(seed)("lot"))) for seed in range(400)]
    assert 160 <= sum(removed) <= 240


def test_too_few_labels_to_lose_any_leave_it_to_the_lot():
    selector, ballot = started(initial=2, dataset="wine")
    assert selector.trials(ballot.round, 0) == []
    assert ballot.names[selector.act({}, ballot)] in ("uniform", "typiclust", "badge")


def test_a_run_repeats_by_seed_and_logs_its_trials():
    config = {
        "selector": {"name": "selectal", "repeats": 2, "random_draws": 1}, "strategies": ["margin"], "dataset": "wine",
        "budget": {"initial": 18, "batch": 6, "rounds": 3}, "device": "cpu",
    }  # fmt: skip
    runs = [Runner.of(config).run() for _ in range(2)]
    assert [r.queried for r in runs[0].rounds] == [r.queried for r in runs[1].rounds]
    assert set(runs[0].rounds[1].selector) == {"accuracy/random", "accuracy/low", "accuracy/high"}


@pytest.mark.parametrize("bad", [{"share": 0.0}, {"held_out": 1.0}, {"repeats": 0}, {"random_draws": 0}])
def test_impossible_parameters_are_refused(bad):
    with pytest.raises(ValueError, match="selectal: expected"):
        SelectAL(**bad)


@pytest.mark.parametrize(
    ("dataset", "initial", "seeds"), [("wine", 86, 24), pytest.param("digits", 200, 16, marks=pytest.mark.slow)]
)
def test_many_labels_call_for_uncertain_or_random_ones(dataset, initial, seeds):
    """86 are four in five of wine's pool. By lot alone each regime would have a third."""
    chosen = Counter()
    for seed in range(seeds):
        selector, ballot = started(initial, dataset, seed, repeats=10, held_out=0.2)
        chosen[ballot.names[selector.act({}, ballot)]] += 1
    assert chosen["badge"] > seeds / 2
    assert chosen["typiclust"] < seeds / 4
