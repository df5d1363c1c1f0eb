"""Seeds, covers and trees of points against slow twins."""

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage

from alenv import geometry
from alenv.geometry import Rows
from alenv.streams import Streams


def normal(*shape, name="x", dtype=torch.float32):
    return torch.randn(shape, generator=Streams(0)(name), dtype=dtype)


def islands(count=40, each=50, width=0.2, dim=16):
    draw = Streams(0)("islands")
    middle = torch.randn(count, 1, dim, generator=draw)
    return (middle + width * torch.randn(count, each, dim, generator=draw)).flatten(0, 1)


def potential(x, rows):
    return float(geometry.nearest(x, x[rows])[0].sum())


# Points


def test_gaps_are_squared_distances_less_the_own_norm():
    a, b = Rows(normal(5, 3)), Rows(normal(4, 3, name="b"))
    expected = (a.x[:, None] - b.x).square().sum(2) - a.norms[:, None]
    torch.testing.assert_close(a.gaps(b), expected)
    torch.testing.assert_close(a.at(slice(1, 3)).gaps(b.at(torch.tensor([2]))), expected[1:3, [2]])


@pytest.mark.parametrize("elements", [1, 7, 2**21])
def test_to_nearest_is_the_same_whatever_the_block_and_zero_for_twins(elements, monkeypatch):
    x = normal(23, 40)
    x[7] = x[2]
    monkeypatch.setattr(geometry, "CHUNK_ELEMENTS", elements)
    distance = Rows(x).to_nearest(Rows(x[[2, 5]]))
    torch.testing.assert_close(distance, torch.cdist(x, x[[2, 5]]).square().amin(1), rtol=1e-4, atol=1e-4)
    assert distance[[2, 5, 7]].tolist() == [0, 0, 0]


@pytest.mark.parametrize("elements", [1, 50, 2**21])
def test_neighbors_are_the_nearest_others_by_a_full_sort(elements, monkeypatch):
    monkeypatch.setattr(geometry, "CHUNK_ELEMENTS", elements)
    x = normal(25, 4)
    x[9] = x[3]
    distance, which = geometry.neighbors(x, 6)
    full = torch.cdist(x, x).fill_diagonal_(torch.inf).sort(1)
    torch.testing.assert_close(distance, full.values[:, :6], rtol=1e-4, atol=1e-4)
    assert which[9, 0] == 3
    assert torch.equal(which[:3], full.indices[:3, :6])


# Seeds


def test_greedy_seeds_have_less_potential_than_plain_ones_and_no_more_than_sklearns():
    from sklearn.cluster import kmeans_plusplus

    x = islands(each=25)
    plain, greedy, theirs = [], [], []
    for seed in range(3):
        plain.append(potential(x, geometry.kmeans_plus_plus(x, 40, Streams(seed)("seeds"))))
        greedy.append(potential(x, geometry.kmeans_plus_plus(x, 40, Streams(seed)("seeds"), trials=5)))
        theirs.append(potential(x, kmeans_plusplus(x.numpy(), 40, random_state=seed)[1]))
    assert max(greedy) < min(plain)
    assert np.mean(greedy) < 1.05 * np.mean(theirs)


def test_greedy_gains_are_those_of_judging_every_proposal_anew_each_time():
    distance, between = normal(60).abs(), normal(12, 60, name="between").abs()
    left, expected, now = list(range(12)), [], distance.clone()
    for _ in range(6):
        best = max(left, key=lambda j: float((now - between[j]).clamp(min=0).sum()))
        expected.append(best)
        left.remove(best)
        now = torch.minimum(now, between[best])
    assert geometry._greedy_gains(between, distance, 6).tolist() == expected
    assert sorted(geometry._greedy_gains(between, torch.zeros(60), 12).tolist()) == list(range(12))  # nothing to gain


@pytest.mark.parametrize("trials", [1, 5])
def test_seeds_are_distinct_where_rows_repeat(trials):
    x = torch.tensor([[0.0, 0.0]] * 10 + [[1.0, 0.0]] * 10 + [[0.0, 2.0]])
    for seed in range(10):
        picks = geometry.kmeans_plus_plus(x, 6, Streams(seed)("seeds"), trials)
        assert len(set(picks.tolist())) == 6
        assert len(x[picks[:3]].unique(dim=0)) == 3
    assert sorted(geometry.kmeans_plus_plus(x, 21, Streams(0)("seeds"), trials).tolist()) == list(range(21))


def test_greedy_seeds_are_judged_by_a_sample_of_large_pools(monkeypatch):
    x = islands()
    monkeypatch.setattr(geometry, "SAMPLE", 500)
    sampled = potential(x, geometry.kmeans_plus_plus(x, 40, Streams(0)("seeds"), trials=5))
    plain = potential(x, geometry.kmeans_plus_plus(x, 40, Streams(0)("seeds")))
    assert sampled < plain


def test_a_common_offset_does_not_eat_the_digits_of_seeds_or_clusters():
    x = islands(count=4, each=10)
    shifted = (x.double() + 10_000).float()
    for rows in (x, shifted):
        centres, cluster, _ = geometry.kmeans(rows, 4, Streams(0)("kmeans"))
        assert len(cluster.view(4, 10).unique(dim=0)) == 4
        assert (cluster.view(4, 10) == cluster.view(4, 10)[:, :1]).all()
        torch.testing.assert_close(centres[cluster[::10]], rows.view(4, 10, -1).mean(1), rtol=1e-5, atol=1e-2)


def test_coarse_assignments_end_with_exact_clusters_of_the_same_inertia(monkeypatch):
    x = islands()
    exact = geometry.kmeans(x, 40, Streams(0)("kmeans"))
    monkeypatch.setattr(geometry, "COARSE_WORK", 1)
    monkeypatch.setattr(geometry, "has_native_bfloat16", lambda device: True)
    centres, cluster, distance = geometry.kmeans(x, 40, Streams(0)("kmeans"))
    true = torch.cdist(x.double(), centres.double()).square().min(1)
    assert torch.equal(cluster, true.indices)
    torch.testing.assert_close(distance.double(), true.values, rtol=1e-3, atol=1e-4)
    assert float(distance.sum()) == pytest.approx(float(exact[2].sum()), rel=0.01)


# The k-centre greedy


def plain_kcenter(x, k, covered):
    distance = torch.cdist(x, covered).square().amin(1)
    picks = []
    for _ in range(k):
        picks.append(int(distance.argmax()))
        distance = torch.minimum(distance, (x - x[picks[-1]]).square().sum(1))
        distance[picks[-1]] = -1
    return picks


@pytest.mark.parametrize("leaders", [8, 32, 1024])
@pytest.mark.parametrize("kind", ["islands", "isotropic"])
def test_lazy_picks_are_those_of_the_plain_greedy(kind, leaders, monkeypatch):
    x = (islands() if kind == "islands" else normal(2000, 16)).double()
    monkeypatch.setattr(geometry, "LEADERS", leaders)
    picks = geometry.kcenter(x[20:], 100, Streams(0)("kcenter"), x[:20])
    assert picks.tolist() == plain_kcenter(x[20:], 100, x[:20])


def test_lazy_picks_read_few_rows_again(monkeypatch):
    x, read, original = islands(each=500), [], geometry._farthest

    def watched(near, distance, bound, count):
        read.append(len(near))
        return original(near, distance, bound, count)

    monkeypatch.setattr(geometry, "_farthest", watched)
    geometry.kcenter(x, 200, Streams(0)("kcenter"), x[:20])
    assert sum(read) < 4 * len(x)  # the plain greedy reads 200 times as many


def test_kcenter_of_the_whole_pool_takes_every_row_once_and_repeats_last():
    x = normal(30, 4)
    x[20:] = x[:10]
    for covered in (None, x[:0], x[:3]):
        picks = geometry.kcenter(x, 30, Streams(0)("kcenter"), covered)
        assert sorted(picks.tolist()) == list(range(30))
        fresh = len(x.unique(dim=0)) - (0 if covered is None else len(covered))
        assert len(x[picks[:fresh]].unique(dim=0)) == fresh


def test_kcenter_starts_nearest_the_mean_where_nothing_is_covered():
    x = torch.tensor([[-9.0], [0.5], [4.0], [9.0]])  # mean 1.125
    assert geometry.kcenter(x, 3, Streams(0)("kcenter")).tolist() == [1, 0, 3]


def test_kcenter_breaks_ties_by_lot():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    firsts = [int(geometry.kcenter(x, 1, Streams(seed)("kcenter"), torch.zeros(1, 2))) for seed in range(200)]
    assert all(25 < firsts.count(i) < 75 for i in range(4))


@pytest.mark.parametrize("k", [0, 6])
def test_kcenter_refuses_an_impossible_number(k):
    with pytest.raises(ValueError, match=f"expected 1..5 centres, got {k}"):
        geometry.kcenter(normal(5, 2), k, Streams(0)("kcenter"))


# Average linkage


def scipy_tree(x):
    between = torch.cdist(x, x).square().numpy()
    return linkage(between[np.triu_indices(len(x), 1)], method="average")


def same_partition(a, b):
    return len(set(zip(a.tolist(), b.tolist(), strict=True))) == len(set(a.tolist())) == len(set(b.tolist()))


@pytest.mark.parametrize("refreshed", [1, 16, 256])
@pytest.mark.parametrize("clusters", [1, 2, 17, 119, 120])
def test_average_linkage_cut_by_number_is_scipys(clusters, refreshed, monkeypatch):
    monkeypatch.setattr(geometry, "REFRESHED", refreshed)
    x = normal(120, 5, dtype=torch.float64)
    ours = geometry.average_linkage(x, clusters)
    assert int(ours.max()) + 1 == clusters
    assert same_partition(ours, fcluster(scipy_tree(x), clusters, "maxclust"))


@pytest.mark.parametrize("threshold", [0.0, 1.0, 4.0, 9.0, 1e9])
def test_average_linkage_cut_by_distance_is_scipys(threshold):
    x = normal(120, 5, dtype=torch.float64)
    ours = geometry.average_linkage(x, threshold=threshold)
    assert same_partition(ours, fcluster(scipy_tree(x), threshold, "distance"))


def test_average_linkage_of_one_row_or_of_twins_ends():
    assert geometry.average_linkage(torch.ones(1, 3), 1).tolist() == [0]
    assert len(geometry.average_linkage(torch.ones(50, 3), 7).unique()) == 7
    assert len(geometry.average_linkage(torch.ones(50, 3), threshold=0.1).unique()) == 1


def test_average_linkage_wants_a_number_or_a_threshold():
    with pytest.raises(ValueError, match="either clusters= or threshold="):
        geometry.average_linkage(torch.ones(3, 3))
