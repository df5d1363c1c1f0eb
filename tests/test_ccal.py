"""CCAL: scores against a plain twin, quotas of the classes, and what comes before what."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from alenv.checks import check_strategy
from alenv.round import Round
from alenv.strategies import ccal
from alenv.strategies.ccal import CCAL
from alenv.streams import Streams


def random(*shape: int, name: str = "x", seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=Streams(seed)(name), dtype=torch.float64)


def a_round(labels: list[int], views: int = 4, candidates: int = 30, seed: int = 0) -> Round:
    known = len(labels)
    semantic = (random(candidates, 5, seed=seed), random(known, 5, name="y", seed=seed))
    distinctive = (random(candidates, views, 3, name="d", seed=seed), random(known, views, 3, name="e", seed=seed))
    features = {"semantic": semantic, "distinctive": distinctive}
    return Round.from_arrays(labels=labels, features=features, num_classes=max(labels, default=1) + 1, seed=seed)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b))


def scaled(values: list[float]) -> list[float]:
    return [(v - min(values)) / (max(values) - min(values)) for v in values]


def plain(now: Round, k: float = 100.0, t: float = 0.9) -> tuple[np.ndarray, list[int]]:
    """Scores (U, classes) and semantic classes by loops over candidates, classes and views."""
    labels = now.labels.tolist()
    semantic, distinctive = now.features("semantic"), now.features("distinctive")
    views = distinctive.views
    x, z = semantic.candidates.numpy(), semantic.labeled.numpy()
    d, e = (part.numpy().reshape(len(part), views, -1) for part in (distinctive.candidates, distinctive.labeled))
    alike = [[cosine(a, b) for b in z] for a in x]
    likeness = [math.tanh(k * (u - t) / 2) for u in scaled([max(row) for row in alike])]
    columns = []
    for c in sorted(set(labels)):
        members = [i for i, label in enumerate(labels) if label == c]
        typical = []
        for a in d:
            total = 0.0
            for v in range(views):
                order = sorted(members, key=lambda i: -cosine(a[v], e[i, v]))
                c1 = cosine(a[v], e[order[0], v])
                second = order[1] if len(order) > 1 else None
                c2 = 0.0 if second is None else cosine(a[v], e[second, v])
                between = 0.0 if second is None else cosine(e[order[0], v], e[second, v])
                total += (c1 - c2) + between + c1
            typical.append(total / views)
        columns.append([s + 1 - value for s, value in zip(likeness, scaled(typical), strict=True)])
    return np.array(columns).T, [labels[int(np.argmax(row))] for row in alike]


@pytest.mark.parametrize("views", [1, 4])
@pytest.mark.parametrize("labels", [[0, 1, 0, 1, 2, 2, 2], [3, 3, 0, 1], [1, 1]])
def test_scores_are_those_of_plain_loops(labels: list[int], views: int) -> None:
    now = a_round(labels, views)
    scores, nearest = CCAL().class_scores(now, torch.unique(now.labels))
    expected, expected_nearest = plain(now)
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-9)
    assert nearest.tolist() == expected_nearest


def test_the_size_of_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = a_round([0, 1, 0, 1, 2])
    whole = CCAL().class_scores(now, torch.unique(now.labels))
    monkeypatch.setattr(ccal, "CHUNK_ELEMENTS", 7)
    for a, b in zip(whole, CCAL().class_scores(now, torch.unique(now.labels)), strict=True):
        torch.testing.assert_close(a, b)


def corner(semantic: list[list[float]], labeled: list[list[float]], labels: list[int]) -> Round:
    pair = (torch.tensor(semantic), torch.tensor(labeled))
    return Round.from_arrays(labels=labels, features={"semantic": pair, "distinctive": pair}, num_classes=2)


def test_a_labelled_points_twin_is_as_like_as_can_be_and_a_far_point_as_unlike() -> None:
    now = corner([[1.0, 0.0], [-1.0, -1.0], [0.9, 0.5]], [[1.0, 0.0], [0.0, 1.0]], [0, 1])
    scores, nearest = CCAL().class_scores(now, torch.tensor([0, 1]))
    # with one anchor D follows the cosine: 1 for the twin, 0 for the far point
    assert scores[0, 0] == pytest.approx(math.tanh(5) + 1 - 1, abs=1e-4)
    assert scores[1, 0] == pytest.approx(-1 + 1 - 0, abs=1e-4)
    assert nearest[0] == 0


def test_what_is_near_a_class_is_bought_before_what_is_far_from_all() -> None:
    near = [[math.cos(a), math.sin(a)] for a in (0.02, 0.05, 1.5)]
    far = [[math.cos(a), math.sin(a)] for a in (3.6, 4.0, 4.4)]
    now = corner(near + far, [[1.0, 0.0], [0.0, 1.0]], [0, 1])
    assert set(CCAL().select(now, 3).tolist()) == {0, 1, 2}


@pytest.mark.parametrize("filter", [True, False])
@pytest.mark.parametrize("budget", [3, 7, 12])
def test_every_class_buys_its_share_and_the_best_of_all_come_first(filter: bool, budget: int) -> None:
    now = a_round([0, 1, 2] * 4, candidates=300)
    picks = CCAL(filter=filter).select(now, budget)
    scores, nearest = CCAL().class_scores(now, torch.arange(3))
    if not filter:
        assert len(set(picks.tolist())) == budget
        return
    counts = torch.bincount(nearest[picks], minlength=3)
    assert int(counts.max() - counts.min()) <= 1
    for c in range(3):
        own = torch.nonzero(nearest == c).flatten()
        best = own[scores[own, c].argsort(descending=True)][: int(counts[c])]
        assert picks[nearest[picks] == c].tolist() == best.tolist()
    assert sorted(nearest[picks[:3]].tolist()) == [0, 1, 2]


def test_without_the_filter_a_class_may_buy_any_candidate() -> None:
    now = a_round([0, 0, 1], candidates=40)
    scores, _ = CCAL().class_scores(now, torch.tensor([0, 1]))
    picks = CCAL(filter=False).select(now, 2).tolist()
    first = int(scores[:, 0].argmax())
    assert first in picks
    rest = scores[:, 1].clone()
    rest[first] = -9
    assert int(rest.argmax()) in picks


def test_classes_without_candidates_of_their_own_leave_their_share_to_the_best_left() -> None:
    near_zero = [[math.cos(a), math.sin(a)] for a in (0.1, 0.2, 0.3, 0.4)]
    now = corner(near_zero, [[1.0, 0.0], [-1.0, 0.0]], [0, 1])
    assert sorted(CCAL().select(now, 4).tolist()) == [0, 1, 2, 3]
    assert len(CCAL().select(now, 3)) == 3


def test_a_single_label_or_none_at_all_is_enough() -> None:
    assert len(set(CCAL().select(a_round([1]), 9).tolist())) == 9
    semantic = (random(6, 3), torch.zeros(0, 3, dtype=torch.float64))
    nobody = Round.from_arrays(labels=[], features={"semantic": semantic, "distinctive": semantic}, num_classes=2)
    assert len(set(CCAL().select(nobody, 4).tolist())) == 4


def test_equal_candidates_fall_by_lot() -> None:
    same = (torch.ones(30, 2), torch.ones(2, 2))
    picks = [
        CCAL().select(
            Round.from_arrays(labels=[0, 1], features={"semantic": same, "distinctive": same}, num_classes=2, seed=seed), 5
        ).tolist()
        for seed in (0, 0, 1)
    ]  # fmt: skip
    assert picks[0] == picks[1] != picks[2]
    assert sorted(picks[0]) != [0, 1, 2, 3, 4]


def test_the_order_of_candidates_is_irrelevant() -> None:
    now = a_round([0, 1, 2, 0, 1, 2])
    lot = torch.randperm(30, generator=Streams(0)("lot"))
    assert torch.equal(lot[CCAL().select(now.subset(lot), 8)], CCAL().select(now, 8))


def test_providers_go_by_names_of_ones_own() -> None:
    strategy = CCAL(semantic="a", distinctive="a")
    assert strategy.needs == {"labels", "features:a"}
    check_strategy(strategy)
