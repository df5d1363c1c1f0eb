"""Shared tensor functions against slow twins."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alenv import geometry, ops
from alenv.streams import Streams


def normal(*shape, name="x", dtype=torch.float32):
    return torch.randn(shape, generator=Streams(0)(name), dtype=dtype)


def assert_frequencies(counts, probs):
    """Chi-square statistic against its mean + 5 standard deviations; cells of probability 0 must be empty."""
    counts, probs = np.asarray(counts, float), np.asarray(probs, float)
    assert (counts[probs == 0] == 0).all()
    expected = counts.sum() * probs[probs > 0]
    statistic = ((counts[probs > 0] - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom), (counts, expected)


# entropy and top_two


def test_entropy_is_the_sum_of_minus_p_log_p_and_zero_times_log_zero_is_zero():
    probs = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    expected = [sum(-p * math.log(p) for p in row if p > 0) for row in probs.tolist()]
    torch.testing.assert_close(ops.entropy(probs), torch.tensor(expected))
    assert ops.entropy(probs)[1] == 0


def test_entropy_keeps_leading_axes():
    probs = normal(4, 5, 3).softmax(-1)
    assert ops.entropy(probs).shape == (4, 5)
    torch.testing.assert_close(ops.entropy(probs)[2, 3], ops.entropy(probs[2, 3]))


def test_entropy_leaves_its_argument_alone_and_keeps_its_precision():
    probs = normal(5, 3, dtype=torch.float64).softmax(-1)
    before = probs.clone()
    torch.testing.assert_close(ops.entropy(probs), torch.special.entr(before).sum(-1), rtol=1e-14, atol=0)
    assert torch.equal(probs, before)


def test_entropy_of_a_nearly_certain_row_is_that_of_its_small_probabilities():
    found = ops.entropy(torch.tensor([[1.0, 1e-20, 0.0]], dtype=torch.float64))
    assert float(found) == pytest.approx(1e-20 * 20 * math.log(10), rel=1e-12)


@pytest.mark.parametrize("elements", [1, 8 * 30, 2**20])
def test_entropy_is_the_same_whatever_the_piece_and_the_layout(elements, monkeypatch):
    probs = normal(3, 17, 5, name="probs", dtype=torch.float64).softmax(-1)
    expected = torch.special.entr(probs).sum(-1)
    monkeypatch.setattr(ops, "NEAR_ELEMENTS", elements)
    torch.testing.assert_close(ops.entropy(probs), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(ops.entropy(probs[0].T.contiguous().T), expected[0], rtol=1e-14, atol=0)
    assert ops.entropy(probs[0, 0]).shape == ()
    assert ops.entropy(probs[:, :0]).shape == (3, 0)


def test_logarithms_are_those_of_torch_to_the_last_digits(monkeypatch):
    probs = torch.cat([normal(4000, 10).mul(20).softmax(1), torch.eye(10)])  # some are zero or denormal
    found = [ops.entropy(probs), ops.mutual_information(torch.stack([probs, probs.roll(1, 1)]))]
    monkeypatch.setattr(ops, "X86", False)
    expected = [ops.entropy(probs), ops.mutual_information(torch.stack([probs, probs.roll(1, 1)]))]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("elements", [1, 8 * 30, 2**20])
def test_mutual_information_is_the_same_whatever_the_piece(elements, monkeypatch):
    draws = normal(6, 17, 5, name="mc", dtype=torch.float64).softmax(-1)
    expected = torch.special.entr(draws.mean(0)).sum(-1) - torch.special.entr(draws).sum(-1).mean(0)
    monkeypatch.setattr(ops, "NEAR_ELEMENTS", elements)
    torch.testing.assert_close(ops.mutual_information(draws), expected, rtol=1e-12, atol=1e-15)
    assert ops.mutual_information(draws[:, :0]).shape == (0,)


@pytest.mark.parametrize("classes", [2, 3, 20])
def test_top_two_are_the_last_two_of_each_sorted_row(classes):
    values = normal(50, classes)
    first, second = ops.top_two(values)
    for row, a, b in zip(values.tolist(), first.tolist(), second.tolist(), strict=True):
        assert [b, a] == sorted(row)[-2:]


def test_top_two_of_a_tie_are_equal_even_when_all_values_are_negative():
    first, second = ops.top_two(torch.tensor([[-3.0, -1.0, -1.0], [-2.0, -2.0, -2.0]]))
    assert first.tolist() == second.tolist() == [-1.0, -2.0]


def test_top_two_of_one_class_says_that_a_margin_needs_two():
    with pytest.raises(ValueError, match="at least two classes, got 1"):
        ops.top_two(torch.ones(3, 1))


@pytest.mark.parametrize("classes", [3, 60])
def test_top_two_leaves_its_argument_alone_however_it_lies_in_memory(classes):
    for values in (normal(6, classes), normal(classes, 6).T):
        before = values.clone()
        ops.top_two(values)
        assert torch.equal(values, before)


@pytest.mark.parametrize("classes", [3, 60])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_top_two_are_the_same_whatever_the_piece_and_the_precision(classes, dtype, monkeypatch):
    values = normal(50, classes).to(dtype)
    expected = values.topk(2).values.T
    for elements in (1, 7 * classes, 2**17):
        monkeypatch.setattr(ops, "NEAR_ELEMENTS", elements)
        assert torch.equal(ops.top_two(values), expected)
    assert ops.top_two(values[:0]).shape == (2, 0)


# distances


def brute_distances(a, b):
    return np.array([[((p - q) ** 2).sum() for q in b.double().numpy()] for p in a.double().numpy()])


def test_squared_distances_match_a_double_loop():
    a, b = normal(13, 4), normal(7, 4, name="b")
    np.testing.assert_allclose(geometry.squared_distances(a, b).numpy(), brute_distances(a, b), rtol=1e-4, atol=1e-5)


def test_squared_distances_are_never_negative_where_rows_coincide():
    a = 100 * normal(64, 33)
    distance = geometry.squared_distances(a, a)
    assert (distance >= 0).all()
    assert distance.diagonal().max() <= 1e-6 * a.square().sum(1).max()


@pytest.mark.parametrize("elements", [1, 5, 7 * 4, 7 * 4 + 1, 2**24])
def test_nearest_is_the_same_whatever_the_block_size(elements, monkeypatch):
    a, b = normal(29, 3), normal(7, 3, name="b")
    monkeypatch.setattr(geometry, "CHUNK_ELEMENTS", elements)
    distance, which = geometry.nearest(a, b)
    expected = brute_distances(a, b)
    assert which.tolist() == expected.argmin(1).tolist()
    np.testing.assert_allclose(distance.numpy(), expected.min(1), rtol=1e-4, atol=1e-5)


def test_nearest_holds_one_block_of_the_distance_matrix_at_a_time(monkeypatch):
    sizes, original = [], geometry.squared_distances

    def watched(a, b):
        sizes.append(len(a) * len(b))
        return original(a, b)

    monkeypatch.setattr(geometry, "CHUNK_ELEMENTS", 30)
    monkeypatch.setattr(geometry, "squared_distances", watched)
    geometry.nearest(normal(50, 3), normal(7, 3, name="b"))
    assert len(sizes) == 13
    assert max(sizes) <= 30


def test_nearest_of_no_rows_is_empty():
    distance, which = geometry.nearest(torch.empty(0, 3), normal(7, 3))
    assert distance.shape == which.shape == (0,)


# draw


def draws_of(mass, count=4000):
    generator = Streams(1)("draw")
    return torch.stack([ops.draw(mass, generator) for _ in range(count)])


def test_draw_follows_its_mass_and_never_takes_a_row_without_any():
    mass = torch.tensor([0.0, 1.0, 3.0, 0.0, 6.0, 0.0])
    counts = draws_of(mass).bincount(minlength=6)
    assert_frequencies(counts, mass / mass.sum())


def test_draw_is_uniform_where_all_mass_is_zero():
    assert_frequencies(draws_of(torch.zeros(5)).bincount(minlength=5), np.full(5, 0.2))


def test_draw_of_one_row_is_that_row():
    assert ops.draw(torch.tensor([0.0]), Streams(0)("draw")) == 0
    assert ops.draw(torch.tensor([7.0]), Streams(0)("draw")) == 0


def test_draw_does_not_lose_small_masses_behind_a_large_one(monkeypatch):
    mass = torch.tensor([2.0**25, 1.0, 1.0, 1.0, 1.0])  # float32 cannot tell their partial sums apart
    for row in range(1, 5):
        u = (2**25 + row - 0.5) / (2**25 + 4)
        monkeypatch.setattr(torch, "rand", lambda size, dtype, u=u, **_: torch.full(size, u, dtype=dtype))
        assert ops.draw(mass, torch.Generator()) == row


@pytest.mark.parametrize(("u", "expected"), [(0.0, 1), (0.249, 1), (0.25, 3), (0.999999, 3)])
def test_draw_inverts_the_cumulative_mass(u, expected, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda size, dtype, **_: torch.full(size, u, dtype=dtype))
    assert ops.draw(torch.tensor([0.0, 1.0, 0.0, 3.0]), torch.Generator()) == expected


# k-means++


def test_kmeans_plus_plus_follows_the_squared_distance_law():
    x = torch.tensor([[0.0], [1.0], [3.0]])
    generator = Streams(2)("seeds")
    pairs = torch.stack([geometry.kmeans_plus_plus(x, 2, generator) for _ in range(1500)])
    counts = (3 * pairs[:, 0] + pairs[:, 1]).bincount(minlength=9)
    law = np.zeros(9)
    for first in range(3):
        mass = [float((x[j] - x[first]) ** 2) for j in range(3)]
        for second in range(3):
            law[3 * first + second] = mass[second] / sum(mass) / 3
    assert_frequencies(counts, law)


def test_kmeans_plus_plus_uses_the_nearest_of_all_earlier_seeds():
    x = torch.tensor([[0.0], [10.0], [10.5], [0.5]])
    generator = Streams(3)("seeds")
    thirds = torch.zeros(4)
    for _ in range(1000):
        picks = geometry.kmeans_plus_plus(x, 3, generator).tolist()
        if set(picks[:2]) == {0, 1}:
            thirds[picks[2]] += 1
    assert_frequencies(thirds, [0, 0, 0.5, 0.5])  # by distance to the first seed alone, one of them would have almost all


def test_kmeans_plus_plus_of_all_rows_is_a_permutation():
    picks = geometry.kmeans_plus_plus(normal(20, 3), 20, Streams(0)("seeds"))
    assert sorted(picks.tolist()) == list(range(20))


def test_kmeans_plus_plus_of_identical_rows_is_distinct_and_uniform():
    x = torch.ones(4, 3)
    generator = Streams(4)("seeds")
    picks = torch.stack([geometry.kmeans_plus_plus(x, 2, generator) for _ in range(1000)])
    assert (picks[:, 0] != picks[:, 1]).all()
    assert_frequencies((4 * picks[:, 0] + picks[:, 1]).bincount(minlength=16), (1 - np.eye(4)).flatten() / 12)


def test_kmeans_plus_plus_takes_every_distinct_row_before_it_repeats_one():
    x = torch.tensor([[0.0, 0.0]] * 10 + [[1.0, 0.0]] * 10 + [[0.0, 2.0]])
    for seed in range(20):
        picks = geometry.kmeans_plus_plus(x, 5, Streams(seed)("seeds"))
        assert len(set(picks.tolist())) == 5
        assert len(x[picks[:3]].unique(dim=0)) == 3


@pytest.mark.parametrize("k", [0, -1, 6])
def test_kmeans_plus_plus_refuses_an_impossible_number_of_seeds(k):
    with pytest.raises(ValueError, match=f"expected 1..5 seeds, got {k}"):
        geometry.kmeans_plus_plus(normal(5, 2), k, Streams(0)("seeds"))


# k-means


def blobs(centres=6, each=40, name="blobs"):
    generator = Streams(0)(name)
    middle = 4 * torch.randn(centres, 5, generator=generator)
    return (middle[:, None] + torch.randn(centres, each, 5, generator=generator)).flatten(0, 1)


def lloyd(x, centres, iterations):
    """Plain Lloyd in float64 from given centres; an empty cluster keeps its centre."""
    cluster = brute_distances(x, centres).argmin(1)
    for _ in range(iterations):
        rows = [x[torch.from_numpy(cluster == c)] for c in range(len(centres))]
        centres = torch.stack([r.double().mean(0) if len(r) else c for r, c in zip(rows, centres.double(), strict=True)])
        moved = brute_distances(x, centres).argmin(1)
        if (moved == cluster).all():
            break
        cluster = moved
    return centres, cluster


@pytest.mark.parametrize("iterations", [0, 1, 25])
def test_kmeans_is_lloyd_from_kmeans_plus_plus_seeds(iterations):
    x = blobs()
    centres, cluster, distance = geometry.kmeans(x, 6, Streams(0)("kmeans"), iterations)
    seeds = x[geometry.kmeans_plus_plus(x, 6, Streams(0)("kmeans"), trials=5)]
    expected, expected_cluster = lloyd(x, seeds, iterations)
    np.testing.assert_allclose(centres.numpy(), expected.numpy(), rtol=1e-4, atol=1e-4)
    assert cluster.tolist() == expected_cluster.tolist()
    np.testing.assert_allclose(distance.numpy(), brute_distances(x, centres).min(1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_from_the_same_seeds_kmeans_ends_where_sklearn_does(seed):
    from sklearn.cluster import KMeans

    x = blobs(centres=8, each=30)
    start = x[geometry.kmeans_plus_plus(x, 8, Streams(seed)("kmeans"), trials=5)].numpy()
    ours = float(geometry.kmeans(x, 8, Streams(seed)("kmeans"))[2].sum())
    theirs = KMeans(8, n_init=1, init=start).fit(x.numpy()).inertia_
    assert ours == pytest.approx(theirs, rel=0.01)


def test_seeds_drawn_in_blocks_have_the_potential_of_seeds_drawn_one_by_one():
    x = blobs(centres=8, each=30)

    def one_by_one(generator):
        picks = [int(torch.randint(len(x), (), generator=generator))]
        while len(picks) < 8:
            mass = geometry.nearest(x, x[picks])[0]
            picks.append(int(ops.draw(mass, generator)))
        return picks

    def potential(draw):
        return np.array([float(geometry.nearest(x, x[draw(Streams(seed)("potential"))])[0].sum()) for seed in range(200)])

    blocks, single = potential(lambda generator: geometry.kmeans_plus_plus(x, 8, generator)), potential(one_by_one)
    assert abs(blocks.mean() - single.mean()) < 4 * np.hypot(blocks.std(), single.std()) / np.sqrt(200)


def test_kmeans_with_a_cluster_per_row_puts_a_centre_on_every_row():
    x = normal(12, 3)
    centres, cluster, distance = geometry.kmeans(x, 12, Streams(0)("kmeans"))
    assert sorted(cluster.tolist()) == list(range(12))
    torch.testing.assert_close(centres[cluster], x)
    assert distance.max() < 1e-4


def test_kmeans_of_identical_rows_keeps_finite_centres():
    x = torch.full((9, 4), 3.0)
    centres, cluster, distance = geometry.kmeans(x, 4, Streams(0)("kmeans"))
    torch.testing.assert_close(centres, x[:4])
    assert cluster.unique().numel() == 1
    assert (distance == 0).all()


# representatives


def test_representatives_are_the_nearest_rows_of_their_clusters_larger_clusters_first():
    cluster = torch.tensor([0, 1, 1, 2, 2, 2, 0])
    distance = torch.tensor([0.3, 0.2, 0.1, 0.9, 0.5, 0.7, 0.4])
    picks = geometry.representatives(cluster, distance, 3, Streams(0)("reps")).tolist()
    assert picks[0] == 4
    assert set(picks[1:]) == {0, 2}


def test_representatives_replace_empty_clusters_by_the_farthest_rows_left():
    cluster = torch.tensor([1, 1, 1, 3, 3])  # clusters 0, 2 and 4 are empty
    distance = torch.tensor([0.1, 0.9, 0.5, 0.2, 0.7])
    assert geometry.representatives(cluster, distance, 5, Streams(0)("reps")).tolist() == [0, 3, 1, 4, 2]
    assert geometry.representatives(cluster, distance, 3, Streams(0)("reps")).tolist() == [0, 3, 1]


def test_rounding_does_not_choose_between_the_two_rows_of_a_cluster():
    cluster = torch.tensor([0, 0, 1, 1, 1])
    distance = torch.tensor([0.3, 0.3 + 1e-7, 0.2, 0.1, 0.4])
    picks = [set(geometry.representatives(cluster, distance, 2, Streams(seed)("reps")).tolist()) for seed in range(40)]
    assert {frozenset(pick) for pick in picks} == {frozenset({0, 3}), frozenset({1, 3})}


def test_representatives_break_ties_by_lot():
    cluster, distance = torch.zeros(6, dtype=torch.int64), torch.zeros(6)
    firsts = torch.stack([geometry.representatives(cluster, distance, 3, Streams(seed)("reps")) for seed in range(600)])
    assert all(len(set(row)) == 3 for row in firsts.tolist())
    assert_frequencies(firsts[:, 0].bincount(minlength=6), np.full(6, 1 / 6))
    assert_frequencies(firsts[:, 1].bincount(minlength=6), np.full(6, 1 / 6))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 25), data=st.data())
def test_representatives_are_k_distinct_rows_with_one_of_every_cluster(n, data):
    k = data.draw(st.integers(1, n))
    cluster = torch.tensor(data.draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n)))
    distance = torch.tensor(data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=n, max_size=n)))
    picks = geometry.representatives(cluster, distance, k, Streams(n)("reps"))
    assert len(set(picks.tolist())) == len(picks) == k
    assert set(cluster[picks].tolist()) == set(cluster.tolist())
    sizes = cluster.bincount(minlength=k)
    used = cluster.unique().numel()
    leaders = picks[:used]
    assert sizes[cluster[leaders]].tolist() == sorted(sizes[sizes > 0].tolist(), reverse=True)
    for row in leaders.tolist():
        assert distance[row] == distance[cluster == cluster[row]].min()
    left = sorted((distance[i].item() for i in set(range(n)) - set(leaders.tolist())), reverse=True)
    assert distance[picks[used:]].tolist() == left[: k - used]


# masks and quantiles


def test_mask_without_is_false_exactly_at_the_positions():
    assert ops.mask_without(5, torch.tensor([3, 0])).tolist() == [False, True, True, False, True]
    assert ops.mask_without(2, torch.tensor([], dtype=torch.int64)).all()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.74, 0.9, 1.0])
@pytest.mark.parametrize("n", [2, 3, 10, 41])
def test_upper_quantile_leaves_its_share_above_up_to_one_value(share, n):
    values = normal(n)
    threshold = ops.upper_quantile(values, share)
    above = int((values > threshold).sum())
    assert above == min(max(round(share * n), 1), n - 1)
    kept, rest = values[values > threshold].min(), values[values <= threshold].max()
    torch.testing.assert_close(threshold, (kept + rest) / 2)


def test_upper_quantile_of_one_value_or_of_equal_values_is_that_value():
    assert ops.upper_quantile(torch.tensor([4.0]), 0.5) == 4
    assert ops.upper_quantile(torch.full((7,), 2.0), 0.3) == 2


# Mixtures


def test_a_mixture_finds_well_separated_components():
    generator = Streams(0)("mixture")
    values = torch.cat([torch.randn(300, generator=generator), 20 + 0.5 * torch.randn(100, generator=generator)])
    weights, means, deviations = ops.gaussian_mixture(values, 2)
    order = means.argsort()
    assert weights[order].tolist() == pytest.approx([0.75, 0.25], abs=0.02)
    assert means[order].tolist() == pytest.approx([0.0, 20.0], abs=0.2)
    assert deviations[order].tolist() == pytest.approx([1.0, 0.5], abs=0.15)


def test_a_mixture_has_no_more_components_than_there_are_distinct_values():
    assert len(ops.gaussian_mixture(torch.tensor([0.0, 1.0, 0.0, 1.0]), 5)[0]) == 2
    assert len(ops.gaussian_mixture(torch.zeros(9), 5)[0]) == 1


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_the_mixture_quantile_leaves_the_share_above_by_numerical_integration(share):
    values = torch.randn(200, generator=Streams(1)("values"), dtype=torch.float64).exp()
    threshold = float(ops.mixture_upper_quantile(values, share, 3))
    weights, means, deviations = (part.numpy() for part in ops.gaussian_mixture(values, 3))
    grid = np.linspace(threshold, means.max() + 12 * deviations.max(), 400_001)
    density = sum(
        w * np.exp(-0.5 * ((grid - m) / d) ** 2) / (d * np.sqrt(2 * np.pi))
        for w, m, d in zip(weights, means, deviations, strict=True)
    )
    assert np.trapezoid(density, grid) == pytest.approx(share, abs=2e-3)
