"""CoreLog and CoreMSE, and EPIG, which scores what CoreLog sums: expected changes of predictions elsewhere."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from alenv import ops
from alenv.round import Round
from alenv.strategies.corelog import CoreLog
from alenv.strategies.coremse import CoreMSE, _gram, _moments, _spread
from alenv.strategies.epig import EPIG
from alenv.streams import Streams

TWO = torch.tensor([[[0.9, 0.1], [0.7, 0.3]], [[0.1, 0.9], [0.7, 0.3]]])  # (K=2, U=2, C=2)
BOTH = [CoreLog(), CoreLog(divergence="mean||updated", include_constant=True), CoreMSE(), CoreMSE(include_constant=True)]
EVERY = [*BOTH, EPIG()]


def named(strategy: object) -> str:
    return type(strategy).__name__ + ("Constant" if getattr(strategy, "include_constant", False) else "")


def everywhere(strategy: CoreLog | CoreMSE | EPIG, **changes: float) -> CoreLog | CoreMSE | EPIG:
    """The same strategy with every candidate in the estimation set; EPIG's targets are all of a small pool anyway."""
    return strategy if isinstance(strategy, EPIG) else type(strategy)(**{**vars(strategy), "estimation_share": 1.0, **changes})


def draws(members: int, size: int, classes: int, sharpness: float = 1.5, seed: int = 0) -> Tensor:
    return (sharpness * torch.randn(members, size, classes, generator=Streams(seed)("mc"), dtype=torch.float64)).softmax(2)


def updated(p: np.ndarray, x: int, y: int, there: int) -> np.ndarray:
    """The prediction at `there` once x is known to be y."""
    weights = p[:, x, y] / p[:, x, y].sum()
    return sum(w * member[there] for w, member in zip(weights, p, strict=True))


def changes(p: np.ndarray, distance: object, points: object = None) -> np.ndarray:
    """R(x, x') by the definition, without the constant of x', over T: sum_y p(y|x) distance(m, q)."""
    _, size, classes = p.shape
    points = range(size) if points is None else points
    found = np.zeros((size, len(points)))
    for x, (column, there), y in itertools.product(range(size), enumerate(points), range(classes)):
        found[x, column] += p[:, x, y].mean() * distance(p[:, there].mean(0), updated(p, x, y, there))
    return found


def square(m: np.ndarray, q: np.ndarray) -> float:
    return float(((m - q) ** 2).sum())


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * np.log(p / q)).sum())


def mse_rows(strategy: CoreMSE, now: Round) -> np.ndarray:
    """The rows of R at every candidate, from what the strategy computes with."""
    return (strategy._changes(now) @ _gram(_spread(now.mc_probs)).T).numpy()


# By hand


def test_the_change_matrices_of_two_candidates_are_those_worked_out_by_hand() -> None:
    torch.testing.assert_close(ops.predictive_change(TWO, TWO), torch.tensor([[0.22175, 0], [0, 0]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(ops.predictive_change(TWO, TWO, True), torch.tensor([[0.26349, 0], [0, 0]]), atol=1e-4, rtol=0)
    np.testing.assert_allclose(mse_rows(CoreMSE(), Round.from_arrays(mc_probs=TWO)) / 2, [[0.2048, 0], [0, 0]], atol=1e-6)


@pytest.mark.parametrize("strategy", EVERY, ids=named)
@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_members_that_disagree_are_bought_before_members_that_agree(strategy: CoreLog, order: list[int]) -> None:
    assert everywhere(strategy).select(Round.from_arrays(mc_probs=TWO[:, order]), 1).tolist() == [order.index(0)]


@pytest.mark.parametrize("strategy", [CoreLog(1.0), CoreMSE(1.0)], ids=["corelog", "coremse"])
@pytest.mark.parametrize("seed", range(5))
def test_of_two_twins_and_another_one_twin_and_the_other_are_bought(strategy: CoreLog, seed: int) -> None:
    one, other = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]]), torch.tensor([[0.5, 0.5], [0.2, 0.8], [0.8, 0.2]])
    flat = torch.full((3, 2), 0.5)
    mc = torch.stack([one, flat, other, one, flat, flat], 1)
    picks = set(strategy.select(Round.from_arrays(mc_probs=mc, seed=seed), 2).tolist())
    assert picks in ({0, 2}, {2, 3})


# Slow twins


@pytest.mark.parametrize(("members", "classes"), [(2, 2), (3, 5), (6, 3)])
def test_the_log_change_equals_the_definition_in_both_directions(members: int, classes: int) -> None:
    mc = draws(members, 7, classes)
    p = mc.numpy()
    ours = ops.predictive_change(mc, mc[:, 2:6])
    np.testing.assert_allclose(ours, changes(p, lambda m, q: divergence(q, m), range(2, 6)), atol=1e-10)
    theirs = ops.predictive_change(mc, mc[:, 2:6], reverse=True)
    np.testing.assert_allclose(theirs, changes(p, divergence, range(2, 6)), atol=1e-10)


@pytest.mark.parametrize("reverse", [False, True])
def test_small_changes_keep_their_digits(reverse):
    draws = (torch.randn(8, 30, 4, generator=Streams(0)("draws"), dtype=torch.float64) / 10).softmax(2)
    exact = ops.predictive_change(draws, draws[:, :9], reverse)
    assert float(exact.max()) < 1e-3
    single = draws.float()
    torch.testing.assert_close(
        ops.predictive_change(single, single[:, :9], reverse).double(), exact, rtol=0, atol=0.02 * float(exact.mean())
    )


@pytest.mark.parametrize(("members", "classes"), [(2, 2), (3, 5), (6, 3)])
def test_the_reduced_form_of_coremse_equals_the_definition(members: int, classes: int) -> None:
    now = Round.from_arrays(mc_probs=draws(members, 8, classes))
    p = now.mc_probs.numpy()
    plain = members * changes(p, square)
    np.testing.assert_allclose(mse_rows(CoreMSE(), now), plain, atol=1e-12)
    constant = ((p - p.mean(0)) ** 2).sum((0, 2))
    np.testing.assert_allclose(mse_rows(CoreMSE(include_constant=True), now), plain + constant, atol=1e-12)
    published = np.zeros((8, 8))  # sum_y p(y|x) sum_k |P_k - q|^2, as the code that came with the paper has it
    for x, there, y in itertools.product(range(8), range(8), range(classes)):
        gap = p[:, there] - updated(p, x, y, there)
        published[x, there] += p[:, x, y].mean() * (gap**2).sum()
    np.testing.assert_allclose(plain + constant, published, atol=1e-12)


def test_scores_of_coremse_are_sums_of_the_defined_changes_over_the_estimation_set() -> None:
    now = Round.from_arrays(mc_probs=draws(4, 12, 3))
    defined = 4 * changes(now.mc_probs.numpy(), square)  # T times the mean, as R is
    np.testing.assert_allclose(CoreMSE(estimation_share=1.0).scores(now).numpy(), defined.sum(1), rtol=1e-9)
    assert len(CoreMSE(estimation_share=0.01).scores(now)) == 12


def test_the_metric_of_coremse_gives_the_distances_between_rows() -> None:
    now = Round.from_arrays(mc_probs=draws(4, 9, 3))
    rows, change = mse_rows(CoreMSE(), now), CoreMSE()._changes(now).numpy()
    total, metric = _moments(now)
    np.testing.assert_allclose(rows.sum(1), change @ total.numpy(), atol=1e-12)
    np.testing.assert_allclose(rows @ rows.T, change @ metric.numpy() @ change.T, atol=1e-12)


@pytest.mark.parametrize("strategy", [CoreLog(1.0, kept_share=1.0), CoreMSE(1.0, kept_share=1.0)], ids=named)
def test_one_of_each_tight_kind_is_bought(strategy: CoreLog) -> None:
    mc = 0.98 * draws(4, 3, 3, sharpness=3.0).repeat(1, 10, 1) + 0.02 * draws(4, 30, 3, seed=1)
    assert sorted((strategy.select(Round.from_arrays(mc_probs=mc), 3) % 3).tolist()) == [0, 1, 2]


def test_epig_is_the_mutual_information_of_both_labels() -> None:
    mc = draws(5, 6, 3)
    p = mc.numpy()
    expected = np.zeros(6)
    for x, there in itertools.product(range(6), range(6)):
        joint = np.einsum("ka,kb->ab", p[:, x], p[:, there]) / 5
        expected[x] += (joint * np.log(joint / np.outer(p[:, x].mean(0), p[:, there].mean(0)))).sum() / 6
    now = Round.from_arrays(mc_probs=mc)
    np.testing.assert_allclose(EPIG(coverage=1.0).score(now), expected, atol=1e-12)  # all six are targets
    assert EPIG(coverage=1.0).select(now, 2).tolist() == np.argsort(-expected)[:2].tolist()


def test_epig_prefers_what_tells_of_the_many_to_what_is_merely_unsure_itself() -> None:
    common, rare = (
        torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.1, 0.9]]),
        torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]),
    )
    mc = torch.stack([rare] + 9 * [common], 1)
    now = Round.from_arrays(mc_probs=mc)
    assert ops.mutual_information(mc).argmax() == 0
    assert EPIG().select(now, 1).item() != 0


# Outcomes


def test_outcomes_that_are_joined_lose_no_more_than_stated() -> None:
    mc = draws(6, 40, 8, sharpness=3.0)
    full = ops.predictive_change(mc, mc[:, :5])
    for coverage in (0.5, 0.9, 0.99):
        joined = ops.predictive_change(mc, mc[:, :5], coverage=coverage)
        assert (joined <= full + 1e-12).all()
        assert (full - joined).max() <= (1 - coverage) * math.log(6)
        assert len(ops.outcomes(mc, coverage)[0]) < len(ops.outcomes(mc)[0])
    assert (full - joined).max() > 0


def test_outcomes_hold_all_probability_and_average_to_equal_weights() -> None:
    for coverage in (1.0, 0.8):
        row, mass, weights = ops.outcomes(draws(3, 4, 5), coverage)
        for x in range(4):
            torch.testing.assert_close(mass[row == x].sum(), torch.tensor(1.0, dtype=torch.float64))
            torch.testing.assert_close(mass[row == x] @ weights[row == x], torch.full((3,), 1 / 3, dtype=torch.float64))


def test_labels_that_cannot_be_are_no_outcomes() -> None:
    row, mass, weights = ops.outcomes(torch.tensor([[[1.0, 0, 0]], [[0.5, 0, 0.5]]]))
    assert row.tolist() == [0, 0]
    torch.testing.assert_close(mass, torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(weights, torch.tensor([[2 / 3, 1 / 3], [0, 1]]))


@pytest.mark.parametrize("reverse", [False, True])
def test_certain_members_give_finite_changes(reverse: bool) -> None:
    mc = torch.eye(3).unsqueeze(1).expand(3, 4, 3)  # every member certain of another class
    change = ops.predictive_change(mc, mc, reverse)
    assert change.isfinite().all()
    if not reverse:
        torch.testing.assert_close(change, torch.full((4, 4), math.log(3)))


# Blocks, pools, options


@pytest.mark.parametrize("side", [1, 7, 2**10])
def test_the_size_of_pieces_changes_nothing(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mc = draws(4, 20, 3)
    full = ops.predictive_change(mc, mc[:, :6])
    monkeypatch.setattr(ops, "SIDE", side)
    torch.testing.assert_close(ops.predictive_change(mc, mc[:, :6]), full)


@pytest.mark.parametrize("strategy", EVERY, ids=named)
def test_blocks_of_candidates_change_nothing(strategy: CoreLog, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = everywhere(strategy, kept_share=0.0)  # no clusters: their ties are settled by the last digit
    now = Round.from_arrays(mc_probs=draws(4, 60, 3))
    whole = strategy.select(now, 8)
    monkeypatch.setattr("alenv.round.BLOCK_ELEMENTS", 7 * 12)
    assert torch.equal(strategy.select(now, 8), whole)


@pytest.mark.parametrize("strategy", EVERY, ids=named)
def test_another_order_of_the_pool_gives_the_same_candidates(strategy: CoreLog) -> None:
    mc, order = draws(4, 40, 3), torch.randperm(40, generator=Streams(0)("order"))
    strategy = everywhere(strategy, kept_share=0.0)  # the top by total, without the clusters that start by lot
    picks = strategy.select(Round.from_arrays(mc_probs=mc), 6)
    moved = order[strategy.select(Round.from_arrays(mc_probs=mc[:, order]), 6)]
    assert sorted(picks.tolist()) == sorted(moved.tolist())


@pytest.mark.parametrize("strategy", BOTH, ids=named)
def test_only_the_kept_share_is_bought_largest_total_first(strategy: CoreLog) -> None:
    strategy = everywhere(strategy)
    mc = draws(4, 40, 3)
    reverse = getattr(strategy, "divergence", "") == "mean||updated"
    now = Round.from_arrays(mc_probs=mc)
    rows = ops.predictive_change(mc, mc, reverse) if isinstance(strategy, CoreLog) else torch.from_numpy(mse_rows(strategy, now))
    rank = rows.sum(1).argsort(descending=True).argsort()
    found = rank[strategy.select(now, 9)].tolist()
    assert max(found) < 20
    assert found == sorted(found)


@pytest.mark.parametrize("strategy", EVERY, ids=named)
def test_draws_that_all_agree_are_survived_and_bought_by_lot(strategy: CoreLog) -> None:
    same = draws(1, 30, 3).float().expand(4, 30, 3)
    first, other = (strategy.select(Round.from_arrays(mc_probs=same, seed=seed), 5).tolist() for seed in (0, 1))
    assert len(set(first)) == 5
    assert first != other


@pytest.mark.parametrize("strategy", EVERY, ids=named)
def test_one_candidate_one_draw_and_the_whole_pool_are_bought(strategy: CoreLog) -> None:
    assert strategy.select(Round.from_arrays(mc_probs=draws(3, 1, 2)), 4).tolist() == [0]
    assert sorted(strategy.select(Round.from_arrays(mc_probs=draws(1, 6, 2)), 6).tolist()) == list(range(6))
    assert sorted(strategy.select(Round.from_arrays(mc_probs=draws(3, 6, 2)), 6).tolist()) == list(range(6))


def test_an_unknown_divergence_is_refused() -> None:
    with pytest.raises(ValueError, match=r"divergence=updated\|\|mean or mean\|\|updated, got 'kl'"):
        CoreLog(divergence="kl")
