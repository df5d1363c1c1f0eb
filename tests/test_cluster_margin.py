"""Cluster-Margin: turns by hand, the margin set, and what the clusters are made of."""

import pytest
import torch

from alenv.round import Round
from alenv.strategies.cluster_margin import ClusterMargin, _in_turns
from alenv.streams import Streams


def a_round(centres, sizes, margins=None, seed=0):
    """Candidates in tight clusters, with two classes and the given margins (default: all small)."""
    draw = Streams(0)("clusters")
    x = torch.cat([10.0 * c + 0.01 * torch.randn(n, 2, generator=draw) for c, n in zip(centres, sizes, strict=True)])
    margins = torch.zeros(len(x)) if margins is None else margins
    probs = torch.stack([(1 + margins) / 2, (1 - margins) / 2], dim=1)
    return Round.from_arrays(probs=probs, embeddings=x, seed=seed)


CORNERS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


@pytest.mark.parametrize("seed", range(5))
def test_turns_go_from_the_smallest_cluster_to_the_largest_until_each_is_used_up(seed):
    sizes = [5, 1, 3, 2]
    cluster = torch.arange(4).repeat_interleave(torch.tensor(sizes))
    order = _in_turns(cluster, Streams(seed)("turns"))
    assert cluster[order].tolist() == [1, 3, 2, 0, 3, 2, 0, 2, 0, 0, 0]
    assert sorted(order.tolist()) == list(range(11))


def test_members_and_clusters_of_one_size_follow_by_lot():
    cluster = torch.tensor([0, 0, 1, 1])
    firsts = torch.stack([_in_turns(cluster, Streams(seed)("turns"))[0] for seed in range(300)]).bincount(minlength=4)
    assert firsts.min() > 45


@pytest.mark.parametrize("seed", range(5))
def test_each_cluster_gives_one_pick_smaller_ones_first(seed):
    sizes = [40, 30, 20, 10]
    picks = ClusterMargin(factor=25).select(a_round(CORNERS, sizes, seed=seed), 4)
    assert torch.bucketize(picks, torch.tensor([40, 70, 90]), right=True).tolist() == [3, 2, 1, 0]


def test_only_the_smallest_margins_are_in_play():
    margins = torch.cat([torch.full((40,), 0.9), torch.linspace(0.0, 0.5, 60)])
    picks = ClusterMargin(factor=3).select(a_round(CORNERS, [40, 30, 20, 10], margins), 8)
    assert set(picks.tolist()) <= set(range(40, 64))


def test_the_margin_set_is_bounded_but_never_below_the_batch():
    margins = torch.linspace(0.0, 0.9, 100)
    picks = ClusterMargin(max_points=5).select(a_round(CORNERS, [25] * 4, margins), 3)
    assert set(picks.tolist()) <= set(range(5))
    assert sorted(ClusterMargin(max_points=5).select(a_round(CORNERS, [25] * 4, margins), 30).tolist()) == list(range(30))


def test_a_threshold_decides_how_many_clusters_there_are():
    round_ = a_round(CORNERS, [10, 10, 10, 10])
    near = ClusterMargin(threshold=1.0).select(round_, 4) // 10
    far = ClusterMargin(threshold=1e6).select(round_, 40)
    assert sorted(near.tolist()) == [0, 1, 2, 3]
    assert sorted(far.tolist()) == list(range(40))


def test_a_factor_below_one_is_refused():
    with pytest.raises(ValueError, match=r"factor >= 1, got 0\.5"):
        ClusterMargin(factor=0.5)
