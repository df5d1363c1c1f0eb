"""BatchBALD: the greedy choice by joint information, against one that scores everybody by the definition."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from alenv import ops
from alenv.round import Round
from alenv.strategies import batchbald
from alenv.strategies.batchbald import BatchBALD, _best, _bought, _bounds, _gains, _merged, _nothing
from alenv.streams import Streams


def draws(members: int, size: int, classes: int, sharpness: float = 2.0, seed: int = 0) -> Tensor:
    return (sharpness * torch.randn(members, size, classes, generator=Streams(seed)("mc"), dtype=torch.float64)).softmax(2)


def joint_information(p: np.ndarray, batch: list[int]) -> float:
    """I(y_batch; draw) by the definition: H(mean_t p_t(y)) - mean_t H(p_t(y)) over all C^n labels."""
    total = 0.0
    for labels in itertools.product(range(p.shape[2]), repeat=len(batch)):
        each = np.prod([p[:, x, y] for x, y in zip(batch, labels, strict=True)], axis=0)
        total += (each * np.log(each)).mean() - each.mean() * np.log(each.mean())
    return total


def plain_greedy(p: np.ndarray, budget: int) -> list[int]:
    picks: list[int] = []
    for _ in range(budget):
        left = [x for x in range(p.shape[1]) if x not in picks]
        picks.append(max(left, key=lambda x: joint_information(p, [*picks, x])))
    return picks


def bought(mc: Tensor, batch: list[int], limit: int = 10**6) -> batchbald._Known:
    known = _nothing(mc)
    for x in batch:
        known = _bought(known, mc[:, x], limit, Streams(0)("labels"))
    return known


def test_the_first_pick_is_balds_and_a_copy_of_it_is_not_the_second() -> None:
    sure, unsure = [[1.0, 0]] * 4, [[0.5, 0.5]] * 4
    split, other = [[1.0, 0], [1, 0], [0, 1], [0, 1]], [[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.1, 0.9]]
    mc = torch.tensor([split, split, other, sure, unsure]).transpose(0, 1)
    for seed in range(4):
        picks = BatchBALD().select(Round.from_arrays(mc_probs=mc, seed=seed), 2).tolist()
        assert picks[0] in (0, 1)
        assert picks[1] == 2
    torch.testing.assert_close(_gains(bought(mc, [0]), mc)[:2], torch.zeros(2))
    assert math.isclose(float(_gains(_nothing(mc), mc)[0]), math.log(2), rel_tol=1e-6)


@pytest.mark.parametrize(("members", "classes"), [(3, 2), (5, 3), (2, 4)])
def test_gains_are_differences_of_the_joint_information(members: int, classes: int) -> None:
    mc = draws(members, 6, classes)
    for batch in ([], [2], [2, 5], [2, 5, 0]):
        gains = _gains(bought(mc, batch), mc).numpy()
        plain = [joint_information(mc.numpy(), [*batch, x]) - joint_information(mc.numpy(), batch) for x in range(6)]
        left = [x for x in range(6) if x not in batch]
        np.testing.assert_allclose(gains[left], np.array(plain)[left], atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_the_picks_are_those_of_scoring_everybody_by_the_definition(seed: int) -> None:
    mc = draws(6, 40, 3, seed=seed)
    assert BatchBALD().select(Round.from_arrays(mc_probs=mc), 4).tolist() == plain_greedy(mc.numpy(), 4)


@pytest.mark.parametrize("limit", [27, 200, 10**6])
@pytest.mark.parametrize("seed", range(3))
def test_few_are_scored_and_the_picks_are_those_of_scoring_everybody(
    limit: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mc = draws(8, 700, 3, seed=seed)
    now = Round.from_arrays(mc_probs=mc, seed=seed)
    monkeypatch.setattr(batchbald, "RESOLVED", 0.0)
    monkeypatch.setattr(batchbald, "LEADERS", 4)
    seen = 0

    def counted(known: batchbald._Known, draws: Tensor) -> Tensor:
        nonlocal seen
        seen += draws.shape[1] if len(known.mass) > batchbald.FINE else 0
        return _gains(known, draws)

    def everybody(known: batchbald._Known, draws: Tensor, bound: Tensor) -> Tensor:
        return torch.where(bound > -torch.inf, counted(known, draws), -torch.inf).argmax()

    monkeypatch.setattr(batchbald, "_gains", counted)
    lazy = BatchBALD(limit).select(now, 8)
    few = seen
    monkeypatch.setattr(batchbald, "_best", everybody)
    monkeypatch.setattr(batchbald, "_bounds", lambda known, draws, bound, generator: bound)
    seen = 0
    assert torch.equal(lazy, BatchBALD(limit).select(now, 8))
    assert few <= seen * (0.5 if limit == 200 else 1)


def test_merged_configurations_give_upper_bounds() -> None:
    mc = draws(6, 60, 4)
    known = bought(mc, [0, 1, 2, 3, 4])  # 1,024 configurations
    gains = _gains(known, mc)
    for groups in (1, 8, 64):
        merged = _merged(known, groups, Streams(0)("merge"))
        assert len(merged.mass) <= groups
        assert (_gains(merged, mc) >= gains - 1e-12).all()
        torch.testing.assert_close(merged.mass.sum(), torch.tensor(1.0, dtype=torch.float64))
    bound = torch.zeros(60, dtype=torch.float64)
    bound[7] = -torch.inf
    bounds = _bounds(known, mc, bound, Streams(0)("bounds"))
    assert bounds[7] == -torch.inf
    assert (bounds >= gains - 1e-12)[bound == 0].all()
    assert _best(known, mc, bounds) == gains.masked_fill(bound < 0, 0).argmax()


def test_drawn_configurations_estimate_the_gains_without_bias() -> None:
    mc = draws(5, 20, 4)
    exact = _gains(bought(mc, [0, 1, 2, 3]), mc)
    estimates = []
    for seed in range(200):
        known = _nothing(mc)
        generator = Streams(seed)("labels")
        for x in range(4):
            known = _bought(known, mc[:, x], 30, generator)
        assert known.drawn
        assert len(known.mass) <= 30
        estimates.append(_gains(known, mc))
    mean, error = torch.stack(estimates).mean(0), torch.stack(estimates).std(0) / math.sqrt(200)
    assert ((mean - exact).abs() < 4.5 * error + 1e-12).all()


def test_configurations_hold_all_probability_and_drop_what_cannot_be() -> None:
    mc = torch.tensor([[[1.0, 0, 0]], [[0.5, 0, 0.5]]])
    known = bought(mc, [0])
    torch.testing.assert_close(known.mass, torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(known.weights, torch.tensor([[2 / 3, 1 / 3], [0, 1]]))
    assert not known.drawn


def test_once_the_draw_is_known_the_rest_is_bought_by_bald() -> None:
    certain = torch.eye(3).unsqueeze(1)  # its label names the draw
    rest = draws(3, 30, 3).float()
    picks = BatchBALD().select(Round.from_arrays(mc_probs=torch.cat([rest, certain], 1)), 10).tolist()
    assert picks[0] == 30
    assert picks[1:] == ops.mutual_information(rest).argsort(descending=True)[:9].tolist()


@pytest.mark.parametrize("piece", [1, 100])
def test_the_size_of_pieces_and_blocks_changes_nothing(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = Round.from_arrays(mc_probs=draws(5, 80, 3))
    whole = BatchBALD(50).select(now, 6)
    monkeypatch.setattr(ops, "PIECE_ELEMENTS", piece)
    monkeypatch.setattr("alenv.round.BLOCK_ELEMENTS", 15 * 7)
    assert torch.equal(BatchBALD(50).select(now, 6), whole)


def test_only_the_highest_bald_scores_are_in_the_running_of_a_large_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    mc = draws(5, 80, 3)
    monkeypatch.setattr(batchbald, "RUNNING_ELEMENTS", 12 * 15)
    rank = ops.mutual_information(mc).argsort(descending=True).argsort()
    assert rank[BatchBALD().select(Round.from_arrays(mc_probs=mc), 6)].max() < 12
    assert sorted(BatchBALD().select(Round.from_arrays(mc_probs=mc), 80).tolist()) == list(range(80))


def test_draws_that_all_agree_are_bought_by_lot() -> None:
    same = draws(1, 30, 3).float().expand(4, 30, 3)
    first, again, other = (BatchBALD().select(Round.from_arrays(mc_probs=same, seed=seed), 5).tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_one_candidate_one_draw_and_the_whole_pool_are_bought() -> None:
    assert BatchBALD().select(Round.from_arrays(mc_probs=draws(3, 1, 2)), 4).tolist() == [0]
    assert sorted(BatchBALD().select(Round.from_arrays(mc_probs=draws(1, 6, 2)), 6).tolist()) == list(range(6))
    assert sorted(BatchBALD(4).select(Round.from_arrays(mc_probs=draws(3, 9, 2)), 9).tolist()) == list(range(9))


def test_another_order_of_the_pool_gives_the_same_candidates() -> None:
    mc, order = draws(5, 50, 3), torch.randperm(50, generator=Streams(0)("order"))
    picks = BatchBALD().select(Round.from_arrays(mc_probs=mc), 5)
    assert torch.equal(order[BatchBALD().select(Round.from_arrays(mc_probs=mc[:, order]), 5)], picks)
