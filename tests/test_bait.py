"""BAIT against a plain form that makes every Fisher matrix and inverts at every step."""

import pytest
import torch
from torch import Tensor

from alenv import geometry
from alenv.round import Round
from alenv.strategies import bait
from alenv.strategies.bait import BAIT, _Axes, _Columns, _Design, _Factors
from alenv.streams import Streams


def a_round(size: int = 18, classes: int = 3, width: int = 4, labeled: int = 5, seed: int = 0) -> Round:
    draw, kind = Streams(seed)("bait"), torch.float64
    h = torch.randn(size + labeled, width, generator=draw, dtype=kind)
    head = 1.5 * torch.randn(classes, width, generator=draw, dtype=kind), torch.randn(classes, generator=draw, dtype=kind)
    return Round.from_arrays(embeddings=h[:size], labeled_embeddings=h[size:], head=head, seed=seed)


def fisher(h: Tensor, p: Tensor) -> Tensor:
    """I(x) of one candidate by the definition."""
    h = torch.cat([h, h.new_ones(1)])
    return torch.kron(torch.diag(p) - torch.outer(p, p), torch.outer(h, h))


def matrices(now: Round) -> tuple[list[Tensor], Tensor]:
    weight, bias = now.head
    mine = [fisher(h, p) for h, p in zip(now.embeddings, now.probs, strict=True)]
    known = now.labeled_embeddings
    theirs = [fisher(h, p) for h, p in zip(known, (known @ weight.T + bias).softmax(1), strict=True)]
    return mine, sum(theirs, torch.eye(len(mine[0]), dtype=torch.float64))


def plain_bait(now: Round, budget: int) -> list[int]:
    mine, precision = matrices(now)
    goal = sum(mine) / len(mine)

    def trace(chosen: list[int]) -> float:
        return float(torch.trace(torch.linalg.inv(precision + sum(mine[x] for x in chosen)) @ goal))

    chosen: list[int] = []
    for _ in range(min(2 * budget, len(mine))):
        chosen.append(min((x for x in range(len(mine)) if x not in chosen), key=lambda x: trace([*chosen, x])))
    while len(chosen) > budget:
        chosen.remove(min(chosen, key=lambda x: trace([c for c in chosen if c != x])))
    return chosen


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("classes", "labeled", "budget"), [(3, 5, 4), (2, 0, 3), (4, 2, 12)])
def test_the_picks_are_those_of_inverting_every_fisher_matrix(seed: int, classes: int, labeled: int, budget: int) -> None:
    now = a_round(classes=classes, labeled=labeled, seed=seed)
    assert BAIT().select(now, budget).tolist() == plain_bait(now, budget)


def test_the_first_pick_is_the_one_worked_out_by_hand() -> None:
    # two classes at p = 1/2: I(x) = [[1, -1], [-1, 1]] / 4 (x) [h, 1][h, 1]^T, so that only |[h, 1]| and its direction
    # count: of h = 0, 3, 3, 3 the three alike carry most of the pool's information, and one of them is bought
    h = torch.tensor([[0.0], [3.0], [3.0], [3.0]])
    head = torch.zeros(2, 1), torch.zeros(2)
    rounds = [Round.from_arrays(embeddings=h, labeled_embeddings=h[:0], head=head, seed=seed) for seed in range(12)]
    picks = {BAIT().select(now, 1).item() for now in rounds}
    assert picks == {1, 2, 3}


def test_updates_of_the_inverse_and_of_every_candidate_equal_fresh_ones() -> None:
    now = a_round()
    mine, precision = matrices(now)
    factors = _Factors.of(now.embeddings, now.probs, 3)
    goal = sum(mine) / len(mine)
    torch.testing.assert_close(factors.fisher(), sum(mine))
    design = _Design.of(factors, goal, torch.linalg.inv(precision))
    for pick, sign in ((3, 1), (7, 1), (3, -1)):
        before = torch.trace(design.solve(goal))
        fall = design.change(sign)[pick] * sign
        design.move(torch.tensor([pick]), sign)
        torch.testing.assert_close(before - torch.trace(design.solve(goal)), fall)
    design.settle()
    fresh = _Design.of(factors, goal, torch.linalg.inv(precision + mine[7]))
    torch.testing.assert_close(design.inverse, fresh.inverse)
    torch.testing.assert_close(design.inner, fresh.inner)
    torch.testing.assert_close(design.outer, fresh.outer)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_projection_changes_nothing_where_it_leaves_nothing_out(classes: int) -> None:
    now = a_round(classes=classes)
    reduced = BAIT(max_parameters=classes * 5 - 1, columns=classes)
    assert torch.equal(reduced.select(now, 4), BAIT().select(now, 4))


def test_nothing_is_projected_up_to_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(BAIT, "_projected")
    now = a_round()  # 3 classes, 4 features and a bias
    assert torch.equal(BAIT(max_parameters=15).select(now, 4), BAIT().select(now, 4))
    with pytest.raises(AttributeError, match="_projected"):
        BAIT(max_parameters=14).select(now, 4)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("reduced", "share"), [({}, 0.9), ({"projected": 24, "columns": 2}, 0.6), ({"candidates": 50}, 0.6)])
def test_beyond_the_cap_the_trace_falls_nearly_as_far_as_exactly(reduced: dict[str, int], share: float, seed: int) -> None:
    now = a_round(size=200, classes=5, width=12, labeled=10, seed=seed)
    mine, precision = matrices(now)

    def trace(picks: Tensor) -> float:
        return float(torch.trace(torch.linalg.inv(precision + sum(mine[x] for x in picks)) @ sum(mine) / len(mine)))

    lots = [torch.randperm(200, generator=Streams(seed)(f"lot/{i}"))[:12] for i in range(10)]
    by_lot = sum(map(trace, lots)) / len(lots)
    exact, found = trace(BAIT().select(now, 12)), trace(BAIT(max_parameters=64, **reduced).select(now, 12))
    assert by_lot - found > share * (by_lot - exact)


def test_principal_columns_hold_as_much_of_the_information_as_so_many_can() -> None:
    now = a_round(classes=5)
    p = now.probs
    whole = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    a = _Columns.of(now.embeddings, p, 4).a
    torch.testing.assert_close(a.mT @ a, whole)
    a = _Columns.of(now.embeddings, p, 2).a
    torch.testing.assert_close(torch.linalg.matrix_norm(whole - a.mT @ a), torch.linalg.eigvalsh(whole)[:, :-2].norm(dim=1))


def test_columns_are_of_the_likeliest_labels_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bait, "LABELS", 3)
    now = a_round(classes=6)
    p = (5 * now.logits).softmax(1)
    a = _Columns.of(now.embeddings, p, 3).a
    assert (a.mT @ a - torch.diag_embed(p) + p.unsqueeze(2) * p.unsqueeze(1)).norm() < 0.03 * p.norm()


def test_drawn_columns_stand_for_all_without_bias() -> None:
    now = a_round(size=100)
    columns = _Columns.of(now.embeddings, now.probs, 2)
    total = (columns.a.square().sum(2) * columns.h.square().sum(1, keepdim=True)).sum()
    drawn = [_Axes.of(columns, 20, Streams(seed)("axes")) for seed in range(200)]
    assert {len(axes.a) for axes in drawn} == {40}
    found = torch.stack([(axes.a.square().sum(1) * axes.h.square().sum(1)).sum() for axes in drawn])
    assert (found.mean() / total - 1).abs() < 4 * found.std() / total / 200**0.5 < 0.04


def test_axes_are_orthonormal_and_principal() -> None:
    now = a_round(size=60, classes=3)
    columns = _Columns.of(now.embeddings, now.probs, 2)
    axes = _Axes.of(columns, 60, Streams(0)("axes"))  # of twice as many columns: all
    projected = axes.project(columns).roots.flatten(0, 1)
    information = _Factors.of(now.embeddings, now.probs, 3).fisher()
    values = torch.linalg.eigvalsh(information)[-10:]
    torch.testing.assert_close((projected.T @ projected).diagonal()[-10:], values)
    torch.testing.assert_close(axes.fisher(now.embeddings, now.probs, 2), projected.T @ projected)


@pytest.mark.parametrize("reduced", [{}, {"candidates": 10}, {"projected": 3, "columns": 1}])
@pytest.mark.parametrize("budget", [1, 8, 40])
def test_beyond_the_cap_distinct_candidates_are_bought(reduced: dict[str, int], budget: int) -> None:
    now = a_round(size=40, classes=5, width=9, labeled=0)
    assert len(set(BAIT(max_parameters=1, **reduced).select(now, budget).tolist())) == budget


def test_no_directions_columns_or_candidates_are_refused() -> None:
    with pytest.raises(ValueError, match="projected, columns and candidates >= 1, got 512, 0, 4000"):
        BAIT(columns=0)


def test_beyond_the_cap_certain_candidates_are_bought_by_lot() -> None:
    now = a_round(size=40)
    head = 1e6 * now.head[0], now.head[1]
    sure = Round.from_arrays(embeddings=now.embeddings, labeled_embeddings=now.labeled_embeddings, head=head)
    assert len(set(BAIT(max_parameters=1, candidates=5).select(sure, 5).tolist())) == 5


def test_fewer_columns_still_buy_distinct_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bait, "STATE_ELEMENTS", 40 * 4)  # two of five columns
    assert len(set(BAIT().select(a_round(size=40, classes=5, width=9), 8).tolist())) == 8


def test_the_columns_of_the_likeliest_labels_nearly_hold_the_whole_of_confident_candidates() -> None:
    now = a_round(classes=5)
    probs = (6 * now.logits).softmax(1)
    all_, some = (_Factors.of(now.embeddings, probs, columns).fisher() for columns in (5, 3))
    assert (all_ - some).norm() < 0.05 * all_.norm()


@pytest.mark.parametrize("chunk", [1, 100])
def test_the_size_of_blocks_changes_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = a_round()
    whole, reduced = BAIT().select(now, 4), BAIT(max_parameters=1, columns=2).select(now, 4)
    assert bait.CHUNK_ELEMENTS == geometry.CHUNK_ELEMENTS
    monkeypatch.setattr(bait, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(bait, "BLOCK", 4)
    monkeypatch.setattr(bait, "PENDING", 5)
    assert torch.equal(BAIT().select(now, 4), whole)
    assert torch.equal(BAIT(max_parameters=1, columns=2).select(now, 4), reduced)


def test_another_order_of_the_pool_gives_the_same_candidates() -> None:
    now, order = a_round(), torch.randperm(18, generator=Streams(0)("order"))
    moved = Round.from_arrays(embeddings=now.embeddings[order], labeled_embeddings=now.labeled_embeddings, head=now.head)
    assert torch.equal(order[BAIT().select(moved, 4)], BAIT().select(now, 4))


def test_one_candidate_copies_and_the_whole_pool_are_bought() -> None:
    assert BAIT().select(a_round(size=1), 3).tolist() == BAIT(max_parameters=1).select(a_round(size=1), 3).tolist() == [0]
    assert sorted(BAIT().select(a_round(), 18).tolist()) == list(range(18))
    now = a_round()
    copies = Round.from_arrays(
        embeddings=now.embeddings[:1].repeat(9, 1), labeled_embeddings=now.labeled_embeddings, head=now.head
    )
    assert len(set(BAIT().select(copies, 4).tolist())) == 4


def test_single_and_double_precision_agree() -> None:
    now = a_round()
    single = Round.from_arrays(
        embeddings=now.embeddings.float(), labeled_embeddings=now.labeled_embeddings.float(),
        head=(now.head[0].float(), now.head[1].float()),
    )  # fmt: skip
    assert torch.equal(BAIT().select(single, 4), BAIT().select(now, 4))
