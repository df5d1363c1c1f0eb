"""TypiClust and the schedule TCM: typicality by hand, one pick per uncovered cluster, a plain twin."""

import numpy as np
import pytest
import torch

from alenv import geometry
from alenv.round import Round
from alenv.runner import Runner
from alenv.selectors.tcm import TCM
from alenv.strategies.typiclust import TypiClust, _Cluster, _visits
from alenv.streams import Streams

CENTRES = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0], [50.0, 50.0]])


def islands(sizes, labeled=(), seed=0):
    """Round clouds of the given sizes, and labelled points at the centres of some of them."""
    generator = Streams(seed)("islands")
    parts = [CENTRES[i] + torch.randn(size, 2, generator=generator) for i, size in enumerate(sizes)]
    marks = CENTRES[list(labeled)] if labeled else torch.zeros(0, 2)
    return Round.from_arrays(
        embeddings=torch.cat(parts),
        labeled_embeddings=marks,
        labels=torch.zeros(len(marks), dtype=torch.int64),
        num_classes=2,
        seed=seed,
    )


def island(positions, sizes):
    return np.searchsorted(np.cumsum(sizes), positions.numpy(), side="right").tolist()


def test_typicality_is_one_over_the_mean_distance_to_the_nearest_neighbours():
    x = torch.tensor([[0.0], [1.0], [3.0], [10.0]])
    expected = [1 / ((1 + 3) / 2), 1 / ((1 + 2) / 2), 1 / ((2 + 3) / 2), 1 / ((7 + 9) / 2)]
    assert _Cluster(x, neighbors=20, spare=0).typicality().tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_each_uncovered_cluster_gives_one_pick_larger_ones_first(seed):
    sizes = [40, 30, 20, 10]
    picks = TypiClust().select(islands(sizes, seed=seed), 4)
    assert island(picks, sizes) == [0, 1, 2, 3]


def test_clusters_that_have_labels_wait():
    sizes = [40, 30, 20]
    picks = TypiClust(max_clusters=3).select(islands(sizes, labeled=(0, 1)), 2)
    assert island(picks, sizes) == [2, 0]


def test_outlier_clusters_come_last():
    sizes = [40, 30, 20, 3]
    picks = TypiClust(max_clusters=4).select(islands(sizes), 8)
    assert island(picks, sizes)[:6] == [0, 1, 2, 0, 1, 2]
    assert 3 not in island(picks, sizes)
    everyone = TypiClust(max_clusters=4).select(islands(sizes), 93)
    assert island(everyone, sizes)[-3:] == [3, 3, 3]


def test_the_pick_is_the_most_typical_of_its_cluster_by_a_plain_loop():
    round_ = islands([25])
    points = round_.embeddings.numpy()
    means = [np.sort(np.linalg.norm(points - p, axis=1))[1:13].mean() for p in points]
    assert TypiClust(max_clusters=1).select(round_, 1).tolist() == [int(np.argmin(means))]


@pytest.mark.parametrize("spare", [0, 1, 100])
@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_typicality_after_purchases_is_that_of_a_cluster_without_them(size, spare):
    x = torch.randn(size, 3, generator=Streams(0)("x"))
    cluster, left = _Cluster(x, neighbors=4, spare=spare), list(range(size))
    while left:
        anew = _Cluster(x[left], neighbors=4, spare=0).typicality()
        torch.testing.assert_close(cluster.typicality()[left], anew)
        pick = left.pop(int(anew.argmax()))
        cluster.remove(torch.tensor([pick]))
        assert cluster.typicality()[pick] == -torch.inf


def test_repeat_visits_do_not_search_neighbours_again(monkeypatch):
    searches, original = [], geometry.neighbors

    def watched(x, k):
        searches.append(len(x))
        return original(x, k)

    monkeypatch.setattr(geometry, "neighbors", watched)
    TypiClust(max_clusters=2).select(islands([200, 150]), 20)
    assert len(searches) == 2


def test_features_of_a_provider_are_used_by_name():
    strategy = TypiClust(features="semantic")
    assert strategy.needs == {"features:semantic"}
    base = islands([30, 30])
    round_ = Round.from_arrays(features={"semantic": (base.embeddings, base.labeled_embeddings)}, num_classes=2)
    assert sorted(island(strategy.select(round_, 2), [30, 30])) == [0, 1]


def test_visits_go_by_labels_then_size():
    counts, sizes = torch.tensor([1, 0, 0, 2]), torch.tensor([9, 3, 8, 99])
    assert _visits(counts, sizes, torch.tensor([True, True, True, True])) == [2, 1, 0, 3]
    assert _visits(counts, sizes, torch.tensor([True, True, False, False])) == [1, 0]


def test_tcm_buys_typical_then_uncertain_samples():
    run = Runner.of(
        {"selector": {"name": "tcm", "rounds": 2}, "budget": {"rounds": 4}, "strategies": ["entropy"], "device": "cpu"}
    ).run()
    chosen = [set(record.chosen_by) for record in run.rounds[1:]]
    assert chosen == [{"typiclust"}, {"typiclust"}, {"margin"}, {"margin"}]
    with pytest.raises(ValueError, match="rounds >= 0"):
        TCM(rounds=-1)
