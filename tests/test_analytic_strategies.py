"""BASE, MASE, CAL and dynamicAL: cases by hand, and slow twins that optimise, search and differentiate."""

import math

import pytest
import torch
import torch.nn.functional as F

from alenv import coverage
from alenv.round import Round
from alenv.strategies.base import BASE
from alenv.strategies.cal import CAL
from alenv.strategies.dynamical import DynamicAL
from alenv.strategies.least_confidence import LeastConfidence
from alenv.strategies.mase import MASE
from alenv.streams import Streams

# classes 0, 1, 2 of a layer on the plane: boundaries x = 0 (0 | 1), and between 2 and each of them
WEIGHT, BIAS = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0]]), torch.zeros(3)
EVERY = [BASE(), MASE(), CAL(), DynamicAL(), DynamicAL(penalty=1.0, step=2)]


def a_round(embeddings, weight=WEIGHT, bias=BIAS, labeled=None, labels=None, seed=0, **more):
    labeled = embeddings[:0] if labeled is None else labeled
    labels = torch.zeros(len(labeled), dtype=torch.int64) if labels is None else labels
    return Round.from_arrays(
        embeddings=embeddings, head=(weight, bias), labeled_embeddings=labeled, labels=labels, seed=seed, **more
    )


def world(n=40, d=5, classes=4, labeled=12, seed=0, dtype=torch.float32):
    generator = Streams(seed)("world")
    weight, bias = torch.randn(classes, d, generator=generator).to(dtype), torch.randn(classes, generator=generator).to(dtype)
    marks, labels = torch.randn(labeled, d, generator=generator).to(dtype), torch.arange(labeled) % classes
    return a_round(torch.randn(n, d, generator=generator).to(dtype), weight, bias, marks, labels, seed)


@pytest.mark.parametrize("strategy", EVERY, ids=lambda s: type(s).__name__)
def test_degenerate_pools_are_bought_all_the_same(strategy):
    for embeddings in (torch.zeros(6, 2), torch.ones(6, 2), torch.randn(6, 2, generator=Streams(0)("x"))):
        for labeled in (0, 1, 4):
            picks = strategy.select(a_round(embeddings, labeled=embeddings[:labeled]), 6)
            assert sorted(picks.tolist()) == list(range(6))
    two = a_round(torch.ones(3, 2), WEIGHT[:2], BIAS[:2], torch.ones(1, 2))
    assert sorted(strategy.select(two, 9).tolist()) == [0, 1, 2]
    alike = a_round(torch.ones(3, 2), torch.ones(3, 2), torch.zeros(3), torch.ones(2, 2))
    assert sorted(strategy.select(alike, 3).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("strategy", EVERY, ids=lambda s: type(s).__name__)
def test_equal_candidates_fall_by_lot(strategy):
    first = {int(strategy.select(a_round(torch.ones(4, 2), labeled=torch.zeros(2, 2), seed=s), 1)) for s in range(40)}
    assert first == {0, 1, 2, 3}


# Distances to boundaries


def test_boundary_distances_by_hand():
    x = torch.tensor([[0.5, 0.0], [1.0, 3.0]])
    found = coverage.boundary_distances(x @ WEIGHT.T, WEIGHT)
    assert found[0].tolist() == pytest.approx([math.inf, 0.5, 1 / math.sqrt(5)])
    assert found[1].tolist() == pytest.approx([1 / math.sqrt(5), 5 / math.sqrt(5), math.inf])


def test_a_step_of_the_distance_reaches_the_boundary():
    round_ = world(dtype=torch.float64)
    weight, bias = round_.head
    distances = coverage.boundary_distances(round_.logits, weight)
    for x, logits, row in zip(round_.embeddings, round_.logits, distances, strict=True):
        y = int(logits.argmax())
        for c in {0, 1, 2, 3} - {y}:
            towards = F.normalize(weight[c] - weight[y], dim=0)
            there = (x + row[c] * towards) @ weight.T + bias
            assert abs(float(there[c] - there[y])) < 1e-10


def test_classes_of_equal_weights_have_no_boundary():
    weight = torch.cat([WEIGHT, WEIGHT[:1]])
    x = torch.tensor([[0.5, 0.0]])
    found = coverage.boundary_distances(x @ weight.T, weight)
    assert found[0].tolist() == pytest.approx([math.inf, 0.5, 1 / math.sqrt(5), math.inf])


def test_mase_buys_what_is_nearest_a_boundary_not_what_has_the_smallest_margin():
    """Logits (1, -1, -4), weights of the first two 20 apart: distance .1; logits (30, -30, 29), nearest weights 1 apart: 1."""
    weight = torch.tensor([[10.0, 0.0], [-10.0, 0.0], [10.0, 1.0]])
    round_ = a_round(torch.tensor([[0.1, -5.0], [3.0, -1.0]]), weight)
    assert MASE().score(round_).tolist() == pytest.approx([-0.1, -1.0])


STRIP = torch.tensor([[0.01, -5.0], [-0.02, -5.0], [0.03, -5.0], [-0.04, -5.0], [0.0, 1.0]])  # one of them in class 2


def test_base_looks_at_the_boundary_of_every_class_where_mase_does_not():
    """The strip lies |x| from the boundary 0 | 1, over 2.2 from class 2; the last point 1 / sqrt 5 from 0 and 1."""
    assert MASE().select(a_round(STRIP), 3).tolist() == [0, 1, 2]
    assert set(BASE().select(a_round(STRIP), 3).tolist()) == {0, 1, 4}


@pytest.mark.parametrize("seed", range(4))
def test_with_two_classes_base_buys_what_mase_buys(seed):
    round_ = world(classes=2, seed=seed)
    assert set(BASE().select(round_, 10).tolist()) == set(MASE().select(round_, 10).tolist())


def test_base_buys_more_evenly_than_mase_from_a_long_tail():
    """Ten unit Gaussians in twenty dimensions, the rarest a twentieth of the commonest, and the best linear classifier."""

    def evenness(strategy, seed):
        draw = Streams(seed)("tail")
        centres = torch.randn(10, 20, generator=draw)
        classes = torch.arange(10).repeat_interleave((200 * 0.05 ** (torch.arange(10) / 9)).long())
        x = centres[classes] + torch.randn(len(classes), 20, generator=draw)
        bought = strategy.select(a_round(x, centres, -centres.square().sum(1) / 2, seed=seed), 60)
        share = classes[bought].bincount(minlength=10) / 60
        return float(torch.special.entr(share).sum()) / math.log(10)

    base, mase = ([evenness(strategy, seed) for seed in range(10)] for strategy in (BASE(), MASE()))
    assert sum(base) > sum(mase)
    assert sum(b > m for b, m in zip(base, mase, strict=True)) >= 8


def test_the_remainder_of_a_batch_falls_to_classes_by_lot():
    assert {int(BASE().select(a_round(STRIP, seed=s), 1)) for s in range(20)} == {0, 4}


@pytest.mark.parametrize("budget", [1, 3, 4, 10, 12, 40])
def test_base_is_a_plain_loop_over_the_classes(budget):
    round_ = world(seed=budget)
    weight, _ = round_.head
    order = torch.randperm(4, generator=round_.generator("base")).tolist()
    taken: dict[int, list[int]] = {}
    for turn, c in enumerate(order):
        distance = {}
        for i, logits in enumerate(round_.logits):
            y = int(logits.argmax())
            to = {k: float((logits[y] - logits[k]) / (weight[y] - weight[k]).norm()) for k in range(4) if k != y}
            distance[i] = min(to.values()) if y == c else to[c]
        free = [i for i in sorted(distance, key=distance.get) if not any(i in bought for bought in taken.values())]
        taken[c] = free[: budget // 4 + (turn < budget % 4)]
    expected = [bought[rank] for rank in range(budget) for bought in taken.values() if rank < len(bought)]
    assert BASE().select(round_, budget).tolist() == expected


# CAL


def test_cal_by_hand():
    """p = (.5, .5) beside a labelled (.9, .1): KL = .9 log 1.8 + .1 log .2; beside one that agrees: 0."""
    weight, bias = torch.tensor([[math.log(9.0), 0.0], [0.0, 0.0]]), torch.zeros(2)
    labeled = torch.tensor([[1.0, 0.0], [0.0, 50.0]])
    x = torch.tensor([[0.0, 0.0], [0.0, 49.0], [1.0, 1.0]])
    scores = CAL(neighbors=1).score(a_round(x, weight, bias, labeled))
    assert scores.tolist() == pytest.approx([0.9 * math.log(1.8) + 0.1 * math.log(0.2), 0.0, 0.0], abs=1e-6)
    both = CAL().score(a_round(x, weight, bias, labeled))
    assert both[0] == pytest.approx((0.9 * math.log(1.8) + 0.1 * math.log(0.2)) / 2, abs=1e-6)


def test_cal_is_a_plain_loop_over_neighbours(monkeypatch):
    monkeypatch.setattr("alenv.strategies.cal.CHUNK_ELEMENTS", 50)
    round_ = world(labeled=25)
    weight, bias = round_.head
    known = (round_.labeled_embeddings @ weight.T + bias).log_softmax(1)
    for x, logits, score in zip(round_.embeddings, round_.logits, CAL().score(round_), strict=True):
        near = (round_.labeled_embeddings - x).norm(dim=1).argsort()[:10]
        divergences = F.kl_div(logits.log_softmax(0).expand(10, -1), known[near], log_target=True, reduction="none").sum(1)
        assert score == pytest.approx(float(divergences.mean()), abs=1e-5)


def test_cal_is_infinite_where_a_neighbour_holds_possible_what_the_candidate_excludes():
    round_ = a_round(torch.zeros(2, 2), labeled=torch.ones(1, 2), logits=torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -torch.inf]]))
    scores = CAL().score(round_)
    assert torch.isfinite(scores[0])
    assert scores[1] == torch.inf


def test_neighbours_equally_far_are_taken_by_lot():
    labeled = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    x = torch.tensor([[0.0, 0.0]])
    bias = torch.tensor([1.0, 0.0, -1.0])
    scores = {round(float(CAL(neighbors=1).score(a_round(x, bias=bias, labeled=labeled, seed=s))), 4) for s in range(20)}
    assert len(scores) == 2


# dynamicAL


def autograd_gradients(x, labels, weight, bias):
    """One row per example: the gradient of its cross-entropy by weight and bias."""
    rows = []
    for h, label in zip(x, labels, strict=True):
        w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        loss = F.cross_entropy((h @ w.T + b)[None], label[None])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, [w, b])]))
    return torch.stack(rows)


def gradients_of(round_):
    weight, bias = round_.head
    mine = autograd_gradients(round_.embeddings, round_.probs.argmax(1), weight, bias)
    return mine, autograd_gradients(round_.labeled_embeddings, round_.labels, weight, bias)


def test_dynamical_by_hand():
    """One input of 1, two classes, no evidence: p - onehot = (-.5, .5), |g|^2 = .5 * (1 + 1); its twin of class 1 opposes it."""
    weight, bias, x = torch.zeros(2, 1), torch.tensor([1e-6, 0.0]), torch.ones(1, 1)
    for label, score in ((0, 1 + 2), (1, 1 - 2)):
        round_ = a_round(x, weight, bias, x, torch.tensor([label]))
        assert DynamicAL().score(round_).tolist() == pytest.approx([score], abs=1e-5)
    assert DynamicAL().score(a_round(x, weight, bias)).tolist() == pytest.approx([1.0], abs=1e-5)


def test_dynamical_is_the_change_of_the_squared_norm_of_the_training_gradient():
    round_ = world(dtype=torch.float64)
    mine, known = gradients_of(round_)
    total = known.sum(0)
    expected = (total + mine).square().sum(1) - total.square().sum()
    torch.testing.assert_close(DynamicAL().score(round_), expected, atol=1e-6, rtol=0)


def test_dynamical_at_an_optimum_is_the_gradients_norm_and_least_confidence_on_a_circle():
    """Beside two labelled examples at one place, of either class, the best prediction is a half: their gradients cancel."""
    angles = torch.rand(30, generator=Streams(0)("angles"), dtype=torch.float64) * 2 * math.pi
    x = torch.stack([angles.cos(), angles.sin()], 1)
    weight, there = torch.tensor([[3.0, 0.0], [-3.0, 0.0]]).double(), torch.tensor([[0.0, 1.0], [0.0, 1.0]]).double()
    round_ = a_round(x, weight, torch.zeros(2).double(), there, torch.tensor([0, 1]))
    mine, known = gradients_of(round_)
    assert known.sum(0).abs().max() < 1e-12
    torch.testing.assert_close(DynamicAL().score(round_), mine.square().sum(1), atol=1e-12, rtol=0)
    assert DynamicAL().select(round_, 30).tolist() == LeastConfidence().select(round_, 30).tolist()


def test_of_two_copies_the_second_is_bought_too_without_a_penalty_and_drops_with_one():
    x = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.1, 0.9], [-0.4, 0.5], [0.6, -0.5]])
    round_ = a_round(x, torch.tensor([[3.0, 0.2], [-3.0, 0.0]]), torch.zeros(2))
    assert set(DynamicAL().select(round_, 2).tolist()) == {0, 1}
    assert len({0, 1} & set(DynamicAL(penalty=2.0, step=1).select(round_, 2).tolist())) == 1


def test_the_penalty_takes_off_the_mean_gradient_of_each_step_before():
    round_ = world(seed=3)
    mine, known = gradients_of(round_)
    scores = mine.square().sum(1) + 2 * mine @ known.sum(0)
    expected: list[int] = []
    while len(expected) < 10:
        free = [i for i in range(len(mine)) if i not in expected]
        step = sorted(free, key=lambda i: -scores[i])[: min(4, 10 - len(expected))]
        scores = scores - 3.0 * mine @ mine[step].mean(0)
        expected += step
    assert DynamicAL(penalty=3.0, step=4).select(round_, 10).tolist() == expected
    assert DynamicAL().select(round_, 10).tolist() != expected


@pytest.mark.parametrize(("make", "message"), [
    (lambda: CAL(neighbors=0), "neighbors >= 1"), (lambda: DynamicAL(penalty=-1.0), "penalty >= 0"),
    (lambda: DynamicAL(step=0), "step >= 1"),
])  # fmt: skip
def test_impossible_parameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
