"""BAIT against a plain form that makes every Fisher matrix and inverts at every step."""

import pytest
import torch
from torch import Tensor

from alenv import geometry
from alenv.round import Round
from alenv.strategies import bait
from alenv.strategies.bait import BAIT, _Design, _Factors
from alenv.streams import Streams


def a_round(size: int = 18, classes: int = 3, width: int = 4, labeled: int = 5, rank: int | None = None, seed: int = 0) -> Round:
    draw, kind = Streams(seed)("bait"), torch.float64
    h = torch.randn(size + labeled, width, generator=draw, dtype=kind)
    if rank is not None:  # all features, the constant one included, span `rank` directions
        h = torch.cat([h[:, : rank - 1], h[:, : rank - 1] @ torch.ones(rank - 1, width - rank + 1, dtype=kind)], 1)
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
    factors = _Factors.of(now.embeddings, now.probs, None, 3)
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


def test_the_projection_changes_nothing_where_features_span_no_more() -> None:
    now = a_round(width=7, rank=4)
    exact = BAIT().select(now, 4)
    assert BAIT(max_parameters=3 * 5)._axes(now).shape == (8, 5)
    assert torch.equal(BAIT(max_parameters=3 * 5).select(now, 4), exact)
    assert BAIT(max_parameters=3 * 8)._axes(now) is None


def test_fewer_dimensions_and_columns_still_buy_distinct_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    now = a_round(size=40, classes=5, width=9)
    assert len(set(BAIT(max_parameters=5).select(now, 8).tolist())) == 8
    monkeypatch.setattr(bait, "STATE_ELEMENTS", 40 * 4)  # two of five columns
    assert len(set(BAIT().select(now, 8).tolist())) == 8


def test_the_columns_of_the_likeliest_labels_nearly_hold_the_whole_of_confident_candidates() -> None:
    now = a_round(classes=5)
    probs = (6 * now.logits).softmax(1)
    all_, some = (_Factors.of(now.embeddings, probs, None, columns).fisher() for columns in (5, 3))
    assert (all_ - some).norm() < 0.05 * all_.norm()


@pytest.mark.parametrize("chunk", [1, 100])
def test_the_size_of_blocks_changes_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = a_round()
    whole = BAIT().select(now, 4)
    assert bait.CHUNK_ELEMENTS == geometry.CHUNK_ELEMENTS
    monkeypatch.setattr(bait, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(bait, "BLOCK", 4)
    monkeypatch.setattr(bait, "PENDING", 5)
    assert torch.equal(BAIT().select(now, 4), whole)


def test_another_order_of_the_pool_gives_the_same_candidates() -> None:
    now, order = a_round(), torch.randperm(18, generator=Streams(0)("order"))
    moved = Round.from_arrays(embeddings=now.embeddings[order], labeled_embeddings=now.labeled_embeddings, head=now.head)
    assert torch.equal(order[BAIT().select(moved, 4)], BAIT().select(now, 4))


def test_one_candidate_copies_and_the_whole_pool_are_bought() -> None:
    assert BAIT().select(a_round(size=1), 3).tolist() == [0]
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
