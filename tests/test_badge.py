"""BADGE and factored gradients: cases by hand, twins written out in full, the law of the draws."""

import math

import pytest
import torch
import torch.nn.functional as F

from alenv import geometry, ops
from alenv.gradients import Gradients, pseudo_gradients
from alenv.round import Round
from alenv.strategies.badge import Badge
from alenv.streams import Streams


def a_round(size=40, classes=5, dim=6, seed=0, **changes):
    draw = Streams(0)("badge")
    arrays = {"logits": 2 * torch.randn(size, classes, generator=draw), "embeddings": torch.randn(size, dim, generator=draw)}
    return Round.from_arrays(**(arrays | changes), seed=seed)


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_what_autograd_says_of_the_predicted_class(bias):
    weight = torch.randn(5, 6, generator=Streams(0)("w")).requires_grad_()
    offset = torch.randn(5, generator=Streams(0)("b")).requires_grad_()
    h = torch.randn(7, 6, generator=Streams(0)("h"))
    logits = h @ weight.T + offset
    dense = pseudo_gradients(Round.from_arrays(logits=logits.detach(), embeddings=h), bias).dense()
    for i, row in enumerate(dense):
        loss = F.cross_entropy(logits[i], logits[i].argmax())
        by_weight, by_offset = torch.autograd.grad(loss, (weight, offset), retain_graph=True)
        expected = torch.cat([by_weight, by_offset.unsqueeze(1)], dim=1) if bias else by_weight
        torch.testing.assert_close(row, expected.flatten(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_factored_norms_products_and_distances_are_those_written_out(bias):
    gradients = pseudo_gradients(a_round(), bias)
    dense = gradients.dense()
    torch.testing.assert_close(gradients.norms, dense.square().sum(1))
    torch.testing.assert_close(gradients.products(gradients.at(slice(3, 9))), dense @ dense[3:9].T, rtol=1e-4, atol=1e-5)
    expected = torch.cdist(dense, dense[[4, 2]]).square()
    torch.testing.assert_close(gradients.squared_distances(gradients.at(torch.tensor([4, 2]))), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(gradients.to_nearest(gradients.at(torch.tensor([4, 2]))), expected.amin(1), rtol=1e-3, atol=1e-4)


def test_a_sure_candidate_has_an_exact_small_gradient():
    logits = torch.tensor([[30.0, 0.0, 0.0]])
    gradients = pseudo_gradients(Round.from_arrays(logits=logits, embeddings=torch.ones(1, 2)))
    assert float(gradients.a[0, 0]) == pytest.approx(-2 * math.exp(-30), rel=1e-5, abs=0)  # p - 1 in float32 would be 0


def test_the_first_pick_has_the_largest_gradient():
    round_ = a_round(seed=3)
    residual = round_.probs - F.one_hot(round_.probs.argmax(1), 5)
    expected = int((residual.norm(dim=1) * (round_.embeddings.square().sum(1) + 1).sqrt()).argmax())
    assert int(Badge().select(round_, 4)[0]) == expected


def test_picks_written_out_are_the_factored_ones():
    for seed in range(5):
        round_ = a_round(seed=seed)
        dense = geometry.Rows(pseudo_gradients(round_).dense())
        first = dense.norms.argmax().view(1)
        generator = round_.generator("badge")
        torch.randperm(len(round_), generator=generator)  # the lot that breaks ties of the first pick
        assert Badge().select(round_, 12).tolist() == geometry.spread(dense, 12, generator, first).tolist()


@pytest.mark.parametrize("seed", range(10))
def test_two_gradients_fifty_times_each_give_one_of_each(seed):
    draw = Streams(1)("twins")
    logits, h = torch.randn(2, 3, generator=draw), torch.randn(2, 9, generator=draw)
    round_ = a_round(logits=logits.repeat_interleave(50, 0), embeddings=h.repeat_interleave(50, 0), seed=seed)
    assert sorted((Badge().select(round_, 2) // 50).tolist()) == [0, 1]


def test_once_all_distances_are_zero_the_rest_is_uniform_and_distinct():
    counts = torch.zeros(6)
    for seed in range(300):
        round_ = a_round(logits=torch.tensor([[0.0, 1.0]] * 6), embeddings=torch.ones(6, 4), seed=seed)
        picks = Badge().select(round_, 3)
        assert len(set(picks.tolist())) == 3
        counts[picks] += 1
    assert counts.min() > 110  # of 150 expected


def test_candidates_of_gradient_zero_come_after_all_but_one_other():
    logits = torch.zeros(20, 3)
    logits[5:, 0] = 500.0  # fifteen one-hot rows: gradient zero, coinciding
    round_ = a_round(logits=logits, embeddings=torch.randn(20, 8, generator=Streams(2)("h")))
    assert (Badge().select(round_, 6) < 5).sum() == 5


def test_draws_in_blocks_have_the_potential_of_draws_one_by_one():
    gradients = pseudo_gradients(a_round(size=120, classes=4))

    def one_by_one(generator):
        picks = [int(gradients.norms.argmax())]
        while len(picks) < 10:
            picks.append(int(ops.draw(gradients.to_nearest(gradients.at(torch.tensor(picks))), generator)))
        return torch.tensor(picks)

    first = gradients.norms.argmax().view(1)

    def in_blocks(generator):
        return geometry.spread(gradients, 10, generator, first)

    def potentials(draw):
        return torch.stack([gradients.to_nearest(gradients.at(draw(Streams(seed)("draw")))).sum() for seed in range(60)])

    blocks, single = potentials(in_blocks), potentials(one_by_one)
    assert (blocks.mean() - single.mean()).abs() < 4 * ((blocks.var() + single.var()) / 60).sqrt()


@pytest.mark.parametrize("leaders", [1, 2, 1024])
def test_the_law_of_the_second_pick_is_the_squared_distance(leaders, monkeypatch):
    monkeypatch.setattr(geometry, "LEADERS", leaders)
    gradients = Gradients(torch.tensor([[2.0], [1.0], [0.0], [-1.0]]), torch.ones(4, 1), bias=False)
    generator, first = Streams(0)("law"), torch.tensor([0])
    seconds = torch.stack([geometry.spread(gradients, 2, generator, first)[1] for _ in range(700)]).bincount(minlength=4)
    expected = 700 * torch.tensor([1.0, 4.0, 9.0]) / 14
    assert seconds[0] == 0
    assert ((seconds[1:] - expected).square() / expected).sum() < 16  # chi-square, 2 degrees


@pytest.mark.parametrize("leaders", [3, 16, 100])
def test_how_many_points_are_kept_up_to_date_changes_no_draw(leaders, monkeypatch):
    draw = Streams(5)("points")
    points = geometry.Rows(torch.randn(600, 5, generator=draw, dtype=torch.float64))
    first = torch.tensor([17])
    expected = geometry.spread(points, 80, Streams(0)("race"), first)
    monkeypatch.setattr(geometry, "LEADERS", leaders)
    assert geometry.spread(points, 80, Streams(0)("race"), first).tolist() == expected.tolist()


def test_the_race_is_that_of_points_all_kept_up_to_date():
    gradients = pseudo_gradients(a_round(size=200))
    points, first = geometry.Rows(gradients.dense().double()), torch.tensor([3])
    left = torch.empty(200, dtype=torch.float64).exponential_(generator=Streams(0)("race"))
    picks, rate = [3], (points.x - points.x[3]).square().sum(1)
    for _ in range(30):
        picks.append(int((left / rate).argmin()))
        left = left - rate * (left / rate)[picks[-1]]
        rate = torch.minimum(rate, (points.x - points.x[picks[-1]]).square().sum(1))
        left[picks[-1]] = 1.0
    assert geometry.spread(points, 31, Streams(0)("race"), first).tolist() == picks


def test_badge_never_holds_the_gradients_written_out(monkeypatch):
    monkeypatch.setattr(Gradients, "dense", lambda self: pytest.fail("written out"))
    largest, original = [0], Gradients.gaps

    def watched(self, others):
        gaps = original(self, others)
        largest[0] = max(largest[0], gaps.numel())
        return gaps

    monkeypatch.setattr(Gradients, "gaps", watched)
    monkeypatch.setattr(geometry, "CHUNK_ELEMENTS", 2000)
    monkeypatch.setattr(geometry, "LEADERS", 64)
    Badge().select(a_round(size=1000), 40)
    assert largest[0] <= 2000


@pytest.mark.parametrize("size", [1, 2, 9])
def test_the_whole_pool_is_a_permutation(size):
    assert sorted(Badge().select(a_round(size=size, classes=2), size).tolist()) == list(range(size))
