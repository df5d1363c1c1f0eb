"""TAILOR: posteriors by hand, and the planted arms of its specification."""

from types import SimpleNamespace

import pytest
import torch

from alenv import library
from alenv.campaign import Plan, action_weights
from alenv.mixing import allot
from alenv.rewards import class_values
from alenv.round import Round
from alenv.runner import Runner
from alenv.selector import Context
from alenv.selectors.tailor import Tailor
from alenv.streams import Streams


def began(tailor, arms=3, classes=4, batch=50, seed=0):
    plan = Plan(initial=1, batch=batch, rounds=30, action="mix")
    tailor.begin(Context(tuple("abcdefg"[:arms]), classes, 1000, plan, Streams(seed), None, None))
    return tailor


def bought(by, labels):
    return SimpleNamespace(query=SimpleNamespace(chosen_by=tuple(by)), labels=torch.tensor(labels))


def a_ballot(labels, budget=50, index=1):
    return SimpleNamespace(round=SimpleNamespace(labels=torch.tensor(labels), index=index), budget=budget)


def test_counts_fade_and_take_the_labels_of_the_purchases_of_each_strategy():
    tailor = began(Tailor(discount=0.9), arms=2, classes=3)
    logged = tailor.update(bought("abaa", [0, 2, 0, 1]))
    torch.testing.assert_close(tailor.counts, torch.tensor([[2.9, 1.9, 0.9], [0.9, 0.9, 1.9]]).double(), rtol=1e-6, atol=0)
    assert logged == {"pulls/a": 0.75, "pulls/b": 0.25}
    tailor.update(bought("bb", [1, -2]))  # one without a usable label
    expected = torch.tensor([[2.61, 1.71, 0.81], [0.81, 1.81, 1.71]], dtype=torch.float64)
    torch.testing.assert_close(tailor.counts, expected)


def test_a_label_is_worth_the_inverse_of_its_class_and_less_than_nothing_in_a_majority():
    assert class_values(torch.tensor([2, 0, 1])).tolist() == pytest.approx([-1 / 2, 1, 1])
    assert class_values(torch.tensor([2, 1, 1])).tolist() == pytest.approx([1 / 2, 1, 1])


def test_slots_are_won_with_the_probability_that_an_arm_is_best():
    tailor = began(Tailor(), arms=2, classes=2)
    tailor.counts = torch.tensor([[3.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    won = tailor.pulls(torch.tensor([5, 5]), 20000, Streams(0)("lot"))
    # v = (1/5, 1/5): all equal, by lot
    assert (won / 20000).tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    won = tailor.pulls(torch.tensor([2, 1]), 20000, Streams(0)("lot"))
    # v = (-1/2, 1): the smaller theta_1 wins, Beta(4, 1) against Beta(1, 1): P(theta_a < theta_b) = 1/5
    assert (won / 20000).tolist() == pytest.approx([0.2, 0.8], abs=0.02)


def test_positive_values_make_all_strategies_equal_where_a_sample_has_one_label():
    tailor = began(Tailor(values="pos"))
    tailor.counts[0] += torch.tensor([50.0, 0, 0, 0])
    won = tailor.pulls(torch.tensor([90, 1, 1, 1]), 6000, Streams(0)("lot"))
    assert (won / 6000).tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


def test_slots_are_drawn_alike_in_blocks(monkeypatch):
    monkeypatch.setattr("alenv.selectors.tailor.BLOCK_ELEMENTS", 12 * 7)
    tailor = began(Tailor())
    assert float(tailor.pulls(torch.tensor([3, 1, 1, 1]), 50, Streams(0)("lot")).sum()) == 50


def test_the_action_gives_every_strategy_exactly_its_slots():
    tailor = began(Tailor(), batch=50)
    ballot = a_ballot([0] * 9 + [1, 2, 3])
    won = tailor.pulls(torch.tensor([9, 1, 1, 1]), 50, Streams(0)("selector/tailor", 1))
    assert allot(action_weights("mix", tailor.act({}, ballot), 3, 1000), 50, Streams(0)("ties")) == won.tolist()


LAWS = {
    "majority": [0.94, 0.02, 0.02, 0.02],
    "balanced": [0.25, 0.25, 0.25, 0.25],
    "skewed": [0.6, 0.3, 0.05, 0.05],
}


def pulls_of(order, rounds, seed, classes=(0, 1, 2, 3), swap_at=None):
    """Shares of three arms in each round; arm k buys classes by the law order[k]."""
    tailor = began(Tailor(), seed=seed)
    draw = Streams(seed)("labels")
    labels = [classes[i] for i in (0, 0, 0, 1, 2, 3)]
    shares = []
    for t in range(1, rounds + 1):
        if t == swap_at:
            order = [order[1], order[0], order[2]]
        seats = allot(action_weights("mix", tailor.act({}, a_ballot(labels, index=t)), 3, 1000), 50, draw)
        by, fresh = [], []
        for k, seat in enumerate(seats):
            law = torch.tensor(LAWS[order[k]])
            drawn = torch.multinomial(law, max(1, seat), replacement=True, generator=draw)[:seat]
            fresh += [classes[i] for i in drawn.tolist()]
            by += ["abc"[k]] * seat
        labels = labels + fresh
        tailor.update(bought(by, fresh))
        shares.append([seat / 50 for seat in seats])
    return shares


def test_the_arm_that_finds_rare_classes_is_pulled_almost_always():
    runs = [pulls_of(["majority", "balanced", "skewed"], 8, seed) for seed in range(30)]
    mean = torch.tensor(runs).mean(0)
    assert mean[0].tolist() == pytest.approx([1 / 3] * 3, abs=0.05)
    assert float(mean[1, 1]) > 0.85
    assert float(mean[2:, 1].min()) > 0.93


def test_names_of_classes_do_not_matter():
    a = torch.tensor([pulls_of(["majority", "balanced", "skewed"], 6, s) for s in range(10)])[:, 2:, 1].mean()
    b = torch.tensor([pulls_of(["majority", "balanced", "skewed"], 6, s, (3, 1, 0, 2)) for s in range(10)])[:, 2:, 1].mean()
    assert float(a) == pytest.approx(float(b), abs=0.06)


def test_arms_that_change_places_are_found_out_within_a_few_rounds():
    runs = torch.tensor([pulls_of(["majority", "balanced", "skewed"], 20, seed, swap_at=12) for seed in range(10)])
    mean = runs.mean(0)
    assert float(mean[10, 1]) > 0.93  # round 11
    assert float(mean[12, 1]) > 0.5  # round 13: remembered still, though the first arm is the balanced one since round 12
    assert float(mean[15:, 0].min()) > 0.5  # from round 16 on


def test_arms_alike_share_the_slots():
    mean = torch.tensor([pulls_of(["balanced"] * 3, 8, seed) for seed in range(20)]).mean((0, 1))
    assert mean.tolist() == pytest.approx([1 / 3] * 3, abs=0.1)


@pytest.mark.parametrize("bad", [{"values": "neg"}, {"discount": 1.5}, {"prior": -1}])
def test_impossible_parameters_are_refused(bad):
    with pytest.raises(ValueError, match="tailor: expected"):
        Tailor(**bad)


def test_every_class_has_an_arm_of_its_own_and_rare_classes_are_found():
    config = {"strategies": ["uniform"], "dataset": "wine", "budget": {"initial": 9, "batch": 6, "rounds": 2}, "device": "cpu"}
    run = Runner.of({**config, "selector": "tailor"}).run()
    assert run.rounds[1].strategies == (
        "uniform", *(f"{arm}({c})" for arm in ("galaxy", "most_likely_positive") for c in range(3))
    )  # fmt: skip
    assert sum(value for name, value in run.rounds[1].selector.items() if name.startswith("pulls/")) == pytest.approx(1)
    plain = Runner.of({**config, "selector": {"name": "tailor", "per_class": []}}).run()
    assert plain.rounds[1].strategies == ("uniform",)


def test_most_likely_positives_are_those_of_one_class():
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.2, 0.5, 0.3]])
    strategy = library.build("strategy", "most_likely_positive", target=2)
    assert strategy.select(Round.from_arrays(probs=probs), 2).tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"target in 0..2, got 3"):
        library.build("strategy", "most_likely_positive", target=3).select(Round.from_arrays(probs=probs), 1)
    with pytest.raises(ValueError, match="number of a class"):
        library.build("strategy", "most_likely_positive", target=-1)
