"""EntropyCB, CoresetCB and the program they share: brute force, limits of the weight, a certificate that holds."""

import functools
import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from alenv import balance, ops
from alenv.round import Round
from alenv.strategies import coreset_cb
from alenv.strategies.coreset import Coreset
from alenv.strategies.coreset_cb import CoresetCB
from alenv.strategies.entropy import Entropy
from alenv.strategies.entropy_cb import EntropyCB
from alenv.streams import Streams


def simplex(n, classes, seed=0, sharpness=2.0):
    return (sharpness * torch.randn(n, classes, generator=Streams(seed)("simplex"))).softmax(1)


def cost(costs, shares, target, weight, picks):
    picks = torch.as_tensor(picks)
    return float(costs[picks].double().sum() + weight * (shares[picks].double().sum(0) - target).abs().sum())


def cheapest(costs, shares, target, weight, count):
    """The least cost over every choice of `count` rows, one after the other."""
    return min(cost(costs, shares, target, weight, picks) for picks in itertools.combinations(range(len(costs)), count))


def solve(costs, shares, target, weight, count, seed=0, **numbers):
    return balance.balanced_minimum(costs, shares, target, weight, count, Streams(seed)("solve"), **numbers)


# The shortfall


def test_the_shortfall_is_what_a_class_lacks_of_an_equal_share_after_the_purchase():
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    assert ops.class_shortfall(labels, 3, 6).tolist() == [0, 2, 4]  # share floor(13 / 3) = 4
    assert ops.class_shortfall(labels[:0], 3, 7).tolist() == [2, 2, 2]


# The program


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("weight", [0.3, 1.0, 10.0])
def test_a_small_program_is_solved_within_its_gap_of_brute_force_and_no_better_than_its_bound(seed, weight):
    p = simplex(13, 4, seed)
    costs, target = -ops.entropy(p), torch.tensor([2.0, 0.0, 1.0, 2.0])
    found, best = solve(costs, p, target, weight, 5), cheapest(costs, p, target, weight, 5)
    assert found.objective == pytest.approx(cost(costs, p, target, weight, found.picks), abs=1e-6)
    assert found.bound <= best + 1e-6
    assert best - 1e-6 <= found.objective <= best + (found.objective - found.bound) + 1e-6
    greedy = costs.topk(5, largest=False).indices
    assert found.objective <= cost(costs, p, target, weight, greedy) + 1e-6


def test_exchanges_reach_the_optimum_of_most_small_programs():
    gaps = []
    for seed in range(10):
        p = simplex(12, 3, seed)
        costs, target = -ops.entropy(p), torch.tensor([3.0, 1.0, 0.0])
        gaps.append(solve(costs, p, target, 2.0, 4).objective - cheapest(costs, p, target, 2.0, 4))
    assert sum(gap < 1e-6 for gap in gaps) >= 7


def test_the_bound_is_the_value_of_the_linear_relaxation():
    p = simplex(60, 3)
    costs, target, weight, count = -ops.entropy(p), torch.tensor([5.0, 4.0, 9.0]), 1.5, 18
    shares, eye = p.double().numpy(), torch.eye(3).numpy()
    over, under = np.hstack([shares.T, -eye]), np.hstack([-shares.T, -eye])  # |sum - target| <= t, both ways
    plain = linprog(
        np.append(costs.numpy(), [weight] * 3), A_ub=np.vstack([over, under]), b_ub=np.append(target, -target),
        A_eq=np.append(np.ones(60), np.zeros(3))[None], b_eq=[count], bounds=[(0, 1)] * 60 + [(0, None)] * 3,
    )  # fmt: skip
    assert solve(costs, p, target, weight, count).bound == pytest.approx(plain.fun, abs=1e-5)
    assert solve(costs, p, target, weight, count, columns=8).bound == pytest.approx(plain.fun, abs=1e-5)


def test_sifting_a_larger_pool_leaves_a_gap_below_a_thousandth():
    p = simplex(4000, 20, sharpness=3.0)
    target = torch.tensor([40.0] * 5 + [0.0] * 15)
    found = solve(-ops.entropy(p), p, target, 2.0, 200, columns=128)
    assert 0 <= found.objective - found.bound < 1e-3 * abs(found.bound)
    assert len(set(found.picks.tolist())) == 200


def test_a_program_that_takes_every_row_or_one_works():
    p = simplex(6, 3)
    costs, target = -ops.entropy(p), torch.ones(3)
    assert sorted(solve(costs, p, target, 1.0, 6).picks.tolist()) == list(range(6))
    best = min(range(6), key=lambda i: cost(costs, p, target, 1.0, [i]))
    assert solve(costs, p, target, 1.0, 1).picks.tolist() == [best]
    with pytest.raises(ValueError, match=r"1\.\.6 rows to choose, got 7"):
        solve(costs, p, target, 1.0, 7)


# EntropyCB


@pytest.mark.parametrize("seed", range(4))
def test_without_weight_entropy_cb_is_entropy(seed):
    now = Round.from_arrays(probs=simplex(40, 4, seed), labels=torch.tensor([0, 0, 1]), seed=seed)
    assert set(EntropyCB(0.0).select(now, 9).tolist()) == set(Entropy().select(now, 9).tolist())


def test_a_large_weight_buys_the_share_each_class_lacks():
    probs = torch.full((40, 4), 0.004)
    probs[torch.arange(40), torch.arange(40) % 4] = 0.988
    labels = torch.tensor([0] * 6 + [1] * 2 + [2] * 2)
    now = Round.from_arrays(probs=probs, labels=labels)  # share floor((10 + 10) / 4) = 5
    picks = EntropyCB(100.0).select(now, 10)
    assert (
        probs[picks].argmax(1).bincount(minlength=4) - torch.tensor([0, 3, 3, 5])
    ).abs().sum() == 1  # ten bought, eleven lacked


def test_expected_counts_of_a_large_weight_round_to_what_is_lacking_where_the_batch_can_hold_it():
    probs = simplex(60, 4, sharpness=4.0)
    now = Round.from_arrays(probs=probs, labels=torch.tensor([0] * 5 + [1] * 2 + [2] * 2 + [3]))
    assert ops.class_shortfall(now.labels, 4, 10).tolist() == [0, 3, 3, 4]  # of ten
    assert probs[EntropyCB(100.0).select(now, 10)].sum(0).round().tolist() == [0, 3, 3, 4]
    assert probs[EntropyCB(0.0).select(now, 10)].sum(0).round().tolist() != [0, 3, 3, 4]


def test_a_class_nobody_has_labelled_and_no_labels_at_all_are_handled():
    probs = torch.cat([torch.tensor([[0.6, 0.3, 0.1]]).expand(10, 3), torch.tensor([[0.1, 0.1, 0.8]]).expand(3, 3)])
    now = Round.from_arrays(probs=probs, labels=torch.tensor([0, 0, 1, 1]))
    assert sorted(EntropyCB(50.0).select(now, 2).tolist())[-1] >= 10
    bare = Round.from_arrays(probs=probs, labels=torch.zeros(0, dtype=torch.int64))
    assert len(set(EntropyCB().select(bare, 5).tolist())) == 5


def test_what_entropy_cb_solves_is_certified():
    now = Round.from_arrays(probs=simplex(300, 5), labels=torch.tensor([0, 0, 0, 1]))
    found = EntropyCB(2.0).solve(now, 20)
    assert found.bound <= found.objective <= found.bound + 0.02 * abs(found.bound)
    assert torch.equal(found.picks, EntropyCB(2.0).select(now, 20))


def test_equal_candidates_of_entropy_cb_fall_by_lot():
    flat = torch.full((50, 3), 1 / 3)
    picks = [EntropyCB().select(Round.from_arrays(probs=flat, labels=torch.tensor([0]), seed=s), 5).tolist() for s in (1, 1, 2)]
    assert picks[0] == picks[1] != picks[2]
    assert sorted(picks[0]) != list(range(5))


# CoresetCB


def plain_greedy(x, p, labeled, rest, weight, count, picks=()):
    """The rule as it is written: every distance and every sum anew at every step."""
    picks = list(picks)
    known, left = torch.cat([labeled, x[picks]]).double(), [i for i in range(len(x)) if i not in picks]
    while len(picks) < count:
        taken = p[picks].double().sum(0)
        scores = {
            i: float((known - x[i]).norm(dim=1).min()) - weight / p.shape[1] * float((rest - taken - p[i]).abs().sum())
            for i in left
        }
        best = max(scores, key=scores.__getitem__)
        picks.append(best)
        left.remove(best)
        known = torch.cat([known, x[best : best + 1].double()])
    return picks


@pytest.mark.parametrize("weight", [0.0, 2.0, 20.0])
@pytest.mark.parametrize("labels", [[], [0] * 9 + [1] * 2])
def test_coreset_cb_picks_what_the_plain_greedy_rule_picks(weight, labels, monkeypatch):
    monkeypatch.setattr(ops, "lazy_argmax", functools.partial(ops.lazy_argmax, width=3))
    monkeypatch.setattr(coreset_cb, "PENDING", 7)
    draw = Streams(1)("points")
    x, p = torch.randn(90, 4, generator=draw), simplex(90, 3)
    labeled, y = torch.randn(len(labels), 4, generator=draw), torch.tensor(labels, dtype=torch.int64)
    now = Round.from_arrays(probs=p, embeddings=x, labeled_embeddings=labeled, labels=y)
    picks = CoresetCB(weight).select(now, 40).tolist()
    start = [] if labels else picks[:1]  # nothing tells the first one apart
    assert picks == plain_greedy(x, p, labeled, ops.class_shortfall(y, 3, 40).double(), weight, 40, start)


@pytest.mark.parametrize("seed", range(3))
def test_without_weight_coreset_cb_is_coreset(seed):
    draw = Streams(seed)("points")
    x, labeled = torch.randn(80, 4, generator=draw), torch.randn(6, 4, generator=draw)
    now = Round.from_arrays(
        probs=simplex(80, 3), embeddings=x, labeled_embeddings=labeled, labels=torch.tensor([0, 0, 0, 0, 1, 1]), seed=seed
    )
    assert torch.equal(CoresetCB(0.0).select(now, 20), Coreset().select(now, 20))
    assert not torch.equal(CoresetCB(20.0).select(now, 20), Coreset().select(now, 20))


def test_a_class_that_lacks_labels_is_bought_though_it_lies_nearer():
    x = torch.tensor([[1.0], [1.1], [1.2], [9.0], [10.0], [11.0]])
    p = torch.tensor([[0.05, 0.95]] * 3 + [[0.95, 0.05]] * 3)
    now = Round.from_arrays(probs=p, embeddings=x, labeled_embeddings=torch.zeros(5, 1), labels=torch.zeros(5, dtype=torch.int64))
    assert CoresetCB(0.0).select(now, 2).tolist() == [5, 3]
    assert set(CoresetCB(100.0).select(now, 3).tolist()) == {0, 1, 2}


def test_coreset_cb_buys_identical_candidates_once_each_and_by_lot():
    def picks(seed):
        now = Round.from_arrays(
            probs=torch.full((200, 2), 0.5), embeddings=torch.ones(200, 3), labeled_embeddings=torch.zeros(1, 3),
            labels=torch.tensor([0]), seed=seed,
        )  # fmt: skip
        return CoresetCB().select(now, 9).tolist()

    assert len(set(picks(1))) == 9
    assert picks(1) == picks(1) != picks(2)


@pytest.mark.parametrize("strategy", [EntropyCB, CoresetCB])
def test_a_negative_weight_is_refused(strategy):
    with pytest.raises(ValueError, match="weight >= 0, got -1"):
        strategy(-1)
