"""Covers and herding: exact gains, radii by purity; ProbCover, MaxHerding, UHerding and DCoM by hand and by plain twins."""

import math

import numpy as np
import pytest
import torch

from alenv import coverage, geometry
from alenv.coverage import Coverage, ball, gaussian
from alenv.round import Round
from alenv.strategies.dcom import DCoM
from alenv.strategies.max_herding import MaxHerding
from alenv.strategies.probcover import ProbCover
from alenv.strategies.uncertainty_herding import UncertaintyHerding
from alenv.streams import Streams

KERNELS = {"ball": (ball, lambda d: (d < 1).double()), "gaussian": (gaussian, lambda d: (-d * d).exp())}
COVERS = [ProbCover(), ProbCover(delta=0.3), MaxHerding(), UncertaintyHerding(), DCoM()]


def draw(name="coverage", seed=0):
    return Streams(seed)(name)


def clouds(n, d=4, seed=0):
    """Points of length 1 around four centres."""
    generator = draw("clouds", seed)
    centres = torch.randn(4, d, generator=generator)
    points = centres[torch.arange(n) % 4] + 0.4 * torch.randn(n, d, generator=generator)
    return torch.nn.functional.normalize(points)


def circle(*degrees):
    angles = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], 1).float()


def chord(degrees):
    return 2 * math.sin(degrees * math.pi / 360)


def a_round(embeddings, labeled=None, labels=None, probs=None, seed=0, **more):
    labeled = torch.zeros(0, embeddings.shape[1]) if labeled is None else labeled
    labels = torch.zeros(len(labeled), dtype=torch.int64) if labels is None else labels
    probs = torch.full((len(embeddings), 2), 0.5) if probs is None else probs
    head = (torch.zeros(probs.shape[1], embeddings.shape[1]), torch.zeros(probs.shape[1]))
    given = {"logits": probs.log(), "head": head} | more
    return Round.from_arrays(embeddings=embeddings, labeled_embeddings=labeled, labels=labels, seed=seed, **given)


def plain_greedy(similar, to_labeled, weight, count):
    """Greedy maximisation of sum u max k over a full kernel matrix, from scratch for every pick."""
    level, gains, picks = to_labeled.clone(), [], []
    for _ in range(count):
        gain = ((similar - level[:, None]).clamp(min=0) * weight[:, None]).sum(0)
        gain[picks] = -torch.inf
        picks.append(int(gain.argmax()))
        gains.append(gain)
        level = torch.maximum(level, similar[:, picks[-1]])
    return picks, gains, level


# Coverage


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("labeled", [0, 1, 9])
@pytest.mark.parametrize("filtered", [True, False])
def test_gains_and_levels_stay_those_of_a_full_kernel_matrix(kernel, labeled, filtered, monkeypatch):
    monkeypatch.setattr(coverage, "SIDE", 32)
    monkeypatch.setattr(coverage, "has_native_bfloat16", lambda device: filtered)
    x, marks, bandwidth = clouds(150) + 3.0, clouds(9, seed=1)[:labeled] + 3.0, 0.45
    weight = torch.rand(150, generator=draw("weight"))
    fast, plain = KERNELS[kernel]
    similar = plain(torch.cdist(x.double(), x.double()) / bandwidth)
    start = plain(torch.cdist(x.double(), marks.double()) / bandwidth).amax(1) if labeled else torch.zeros(150).double()
    picks, gains, level = plain_greedy(similar, start, weight.double(), 40)
    cover = Coverage(x, marks, bandwidth, fast, weight)
    for pick, gain in zip(picks, gains, strict=True):
        assert torch.allclose(cover.gain, gain, atol=1e-4)
        cover.add(torch.tensor(pick))
    assert torch.allclose(cover.level.double(), level, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_taking_many_rows_is_taking_the_largest_gain_again_and_again(kernel, monkeypatch):
    monkeypatch.setattr(coverage, "LEADERS", 5)
    x, weight = clouds(120, seed=2), torch.rand(120, generator=draw("weight"))
    fast, plain = KERNELS[kernel]
    _, gains, _ = plain_greedy(plain(torch.cdist(x.double(), x.double()) / 0.5), torch.zeros(120).double(), weight.double(), 1)
    cover = Coverage(x, x[:0], 0.5, fast, weight)
    picks = cover.take(30, draw())
    assert gains[0][picks[0]] == pytest.approx(float(gains[0].max()), rel=1e-5)
    again = Coverage(x, x[:0], 0.5, fast, weight)
    for pick in picks:
        assert again.gain[pick] >= again.gain.max() - 1e-4
        again.add(pick)


def test_the_bfloat16_filter_gives_the_balls_of_float32(monkeypatch):
    monkeypatch.setattr(coverage, "SIDE", 64)
    x = clouds(300, d=24, seed=3)
    radius = float(torch.pdist(x).median())
    pairs = [Coverage.__new__(Coverage) for _ in range(2)]
    for cover, filtered in zip(pairs, (True, False), strict=True):
        monkeypatch.setattr(coverage, "has_native_bfloat16", lambda device, answer=filtered: answer)
        cover.__init__(x, x[:0], radius, ball)
    assert torch.equal(pairs[0].gain, pairs[1].gain)
    assert pairs[0].gain.sum() == pytest.approx(int((torch.cdist(x, x) < radius).sum()), abs=4)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("bandwidth", [0.15, 0.8])
def test_groups_are_passed_over_without_a_trace(kernel, filtered, bandwidth, monkeypatch):
    monkeypatch.setattr(coverage, "SIDE", 16)
    monkeypatch.setattr(coverage, "has_native_bfloat16", lambda device: filtered)
    x = clouds(200, d=6, seed=20)
    order = coverage.near_together(x, draw())
    assert sorted(order.tolist()) == list(range(200))
    fast, plain = KERNELS[kernel]
    seen = []
    fall = Coverage._fall
    monkeypatch.setattr(Coverage, "_fall", lambda self, some, lifted: seen.append(len(lifted)) or fall(self, some, lifted))
    for rows in (x[order], x):
        similar = plain(torch.cdist(rows.double(), rows.double()) / bandwidth)
        cover = Coverage(rows, rows[:5], bandwidth, fast)
        picks = cover.take(30, draw())
        level = similar[:, torch.cat([torch.arange(5), picks])].amax(1)
        gain = (similar - level[:, None]).clamp(min=0).sum(0)
        left = torch.ones(200, dtype=torch.bool)
        left[picks] = False
        assert torch.allclose(cover.level.double(), level, atol=1e-5)
        assert torch.allclose(cover.gain[left].double(), gain[left], atol=1e-4)
    assert seen.count(0) > 0


def test_near_rows_stand_together(monkeypatch):
    monkeypatch.setattr(coverage, "SIDE", 25)
    x = clouds(100, d=8, seed=21)
    alone = (x[1:] - x[:-1]).norm(dim=1).mean()
    ordered = x[coverage.near_together(x, draw())]
    assert (ordered[1:] - ordered[:-1]).norm(dim=1).mean() < 0.8 * alone
    assert coverage.near_together(x[:25], draw()).tolist() == list(range(25))


def test_a_filter_that_is_rarely_sure_gives_the_same_balls(monkeypatch):
    x = clouds(200, d=24, seed=22)
    radius = float(torch.pdist(x).median())
    rows = coverage._augmented((x - x.mean(0)) * 2**0.5 / radius)
    found = []
    for share in (1, 10**9):  # pair by pair; all again
        monkeypatch.setattr(coverage, "DENSE", share)
        found.append(coverage._Filter(rows)(slice(None), slice(None)))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], (torch.cdist(x.double(), x.double()) < radius).float())
    apart = coverage._Filter(coverage._augmented(torch.cat([x[:100], x[100:] + 3]) * 2**0.5 / radius))
    assert apart(slice(0, 90), torch.arange(100, 200)) is None


@pytest.mark.parametrize("sizes", [(1, 5), (40, 70), (70, 40), (300, 0), (64, 64)])
def test_products_are_those_of_float64(sizes):
    a, b = (torch.randn(size, 33, generator=draw(f"products/{size}")) for size in sizes)
    assert torch.allclose(geometry.products(a, b), (a.double() @ b.double().T).float(), atol=1e-4)
    assert torch.allclose(geometry.products(a[:, ::2], b[:, ::2]), a[:, ::2] @ b[:, ::2].T, atol=1e-4)
    assert geometry.products(a.double(), b.double()).dtype == torch.float64


def test_squared_distances_come_block_by_block(monkeypatch):
    monkeypatch.setattr(coverage, "SIDE", 32)
    x, centres = clouds(70, seed=23) + 100.0, clouds(40, seed=24) + 100.0
    whole = torch.full((40, 70), torch.nan)
    for rows, some, block in coverage.squared_distances(x, centres):
        whole[some, rows] = block
    assert torch.allclose(whole, torch.cdist(centres.double(), x.double()).square().float(), atol=1e-3)


def test_equal_gains_fall_by_lot():
    x = circle(0, 90, 180, 270)
    first = {int(Coverage(x, x[:0], 0.5, ball).take(1, draw(seed=seed))) for seed in range(40)}
    assert first == {0, 1, 2, 3}


def test_rows_are_covered_strictly_inside_their_centres_radius():
    x, centres = torch.tensor([[0.0], [1.0], [5.0], [7.0]]), torch.tensor([[0.0], [5.5]])
    assert coverage.covered(x, centres, torch.tensor([1.0, 1.0])).tolist() == [True, False, True, False]
    assert coverage.covered(x, centres, torch.tensor([1.5, 2.0])).tolist() == [True, True, True, True]
    assert coverage.covered(x, centres[:0], torch.zeros(0)).tolist() == [False] * 4


def test_the_pure_radius_is_the_largest_that_leaves_enough_balls_pure():
    x = torch.tensor([[0.0], [1.0], [2.0], [5.0], [7.0]])
    cluster = torch.tensor([0, 0, 0, 1, 1])  # nearest strangers: 5, 4, 3, 3, 5
    radius = [coverage.pure_radius(x, cluster, share, draw()) for share in (1.0, 0.8, 0.6, 0.4, 0.2)]
    assert radius == pytest.approx([3.0, 3.0, 4.0, 5.0, 5.0])


def test_the_pure_radius_agrees_with_a_search_over_radii(monkeypatch):
    monkeypatch.setattr("alenv.geometry.CHUNK_ELEMENTS", 500)
    x = clouds(80, seed=4)
    cluster = torch.arange(80) % 4
    distances, strangers = torch.cdist(x, x), cluster[:, None] != cluster
    grid = np.linspace(0.01, 2, 400)
    pure = [1 - ((distances < radius) & strangers).any(1).float().mean() for radius in grid]
    best = max(radius for radius, share in zip(grid, pure, strict=True) if share >= 0.95)
    assert coverage.pure_radius(x, cluster, 0.95, draw()) == pytest.approx(best, abs=0.006)


def test_one_cluster_is_pure_at_any_radius():
    assert coverage.pure_radius(clouds(9), torch.zeros(9, dtype=torch.int64), 0.95, draw()) == math.inf


def test_the_smallest_gap_passes_over_rows_that_coincide():
    x = circle(0, 0, 40, 70, 200)
    assert coverage.smallest_gap(x) == pytest.approx(chord(30), rel=1e-4)
    assert coverage.smallest_gap(circle(5, 5)) is None
    assert coverage.smallest_gap(x[:1]) is None
    assert coverage.smallest_gap(x[:0]) is None


# Every cover


@pytest.mark.parametrize("strategy", COVERS, ids=lambda s: type(s).__name__)
def test_degenerate_pools_are_bought_all_the_same(strategy):
    alike = torch.ones(6, 3)
    for embeddings in (alike, torch.zeros(6, 3), clouds(6, d=3), torch.cat([clouds(3, d=3), alike[:3]])):
        for labeled in (embeddings[:0], embeddings[:1], embeddings[:4]):
            picks = strategy.select(a_round(embeddings, labeled), 6)
            assert sorted(picks.tolist()) == list(range(6))
    assert strategy.select(a_round(clouds(1)), 3).tolist() == [0]


@pytest.mark.parametrize("strategy", COVERS, ids=lambda s: type(s).__name__)
def test_the_scale_of_the_features_is_irrelevant(strategy):
    x, marks = clouds(60, seed=5), clouds(6, seed=6)
    stretched = x * (1 + torch.arange(60.0)[:, None])
    picks = strategy.select(a_round(x, marks), 3)
    assert torch.equal(picks, strategy.select(a_round(stretched, 7 * marks), 3))


@pytest.mark.parametrize("make", [ProbCover, MaxHerding, UncertaintyHerding, DCoM])
def test_features_of_a_provider_are_used_by_name(make):
    assert "features:semantic" in make(features="semantic").needs
    x, marks, noise = clouds(60, seed=5), clouds(6, seed=6), torch.randn(66, 4, generator=draw("noise"))
    named = a_round(noise[:60], noise[60:], features={"semantic": (x, marks)})
    assert torch.equal(make(features="semantic").select(named, 3), make().select(a_round(x, marks), 3))


# ProbCover


def test_probcover_takes_the_ball_with_most_uncovered_points():
    x = circle(0, 5, 10, 15, 20, 90, 95, 100, 200, 205, 300)
    picks = ProbCover(delta=chord(11)).select(a_round(x), 4)
    assert picks[0] == 2, "10 degrees covers five"
    assert picks[1] in (5, 6, 7), "each covers three"
    assert picks[2] in (8, 9), "either covers two"
    assert picks[3] == 10, "one of its own is left"


def test_probcover_counts_no_point_twice():
    x = circle(0, 2, 4, 6, 8, 14, 90, 94, 98)
    picks = ProbCover(delta=chord(7)).select(a_round(x), 2)
    assert picks[0] in (1, 2, 3, 4), "each covers five, and leaves one of the first six"
    assert picks[1] in (6, 7, 8), "each still covers two or three"


def test_probcover_leaves_out_what_labelled_examples_cover():
    x = circle(0, 1, 2, 3, 90, 91)
    assert ProbCover(delta=chord(10)).select(a_round(x, circle(1.5)), 1).tolist()[0] in (4, 5)


def test_probcover_buys_the_rest_by_lot_once_all_is_covered():
    x = circle(0, 1, 2, 3, 4)
    rests = {tuple(ProbCover(delta=1.0).select(a_round(x, seed=seed), 5).tolist()) for seed in range(30)}
    assert len(rests) > 15
    assert all(sorted(rest) == [0, 1, 2, 3, 4] for rest in rests)


def test_probcover_covers_as_a_graph_does():
    """The authors' form: a list of edges, those to covered points removed pick by pick."""
    x, marks, delta = clouds(200, seed=7), clouds(5, seed=8), 0.4
    picks = ProbCover(delta=delta).select(a_round(x, marks), 12).tolist()
    edges = torch.cdist(x.double(), x.double()) < delta
    edges[:, (torch.cdist(x.double(), marks.double()) < delta).any(1)] = False
    for pick in picks:
        degrees = edges.sum(1)
        assert degrees[pick] == degrees.max()
        edges[:, edges[pick].clone()] = False


def test_probcover_finds_a_radius_between_clusters_and_the_gap_that_parts_them():
    x = circle(*range(0, 20), *range(120, 140), *range(240, 260))
    radius = ProbCover()._radius(x, a_round(x, probs=torch.full((60, 3), 1 / 3)))
    assert chord(99) < radius < chord(122)
    assert ProbCover().select(a_round(x, probs=torch.full((60, 3), 1 / 3)), 3).div(
        20, rounding_mode="floor"
    ).sort().values.tolist() == [0, 1, 2]


@pytest.mark.parametrize(("make", "message"), [
    (lambda: ProbCover(delta=0.0), "delta > 0"), (lambda: ProbCover(purity=0.0), "purity in"),
    (lambda: MaxHerding(sigma=0.0), "sigma > 0"), (lambda: UncertaintyHerding(temperature=0.0), "temperature > 0"),
    (lambda: DCoM(resolution=0.0), "resolution"),
])  # fmt: skip
def test_impossible_parameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Herding


def test_max_herding_takes_the_middle_first_then_what_is_far_from_it():
    x = circle(0, 20, 40, 60, 80, 200)
    assert MaxHerding().select(a_round(x), 2).tolist() == [2, 5]


def test_max_herding_by_hand():
    """Three points at 0, 60 and 90 degrees: squared chords 1, 2 and 0.268."""
    a, b, c = math.exp(-1), math.exp(-2), math.exp(-(chord(30) ** 2))
    cover = Coverage(circle(0, 60, 90), circle(0)[:0], 1.0, gaussian)
    assert cover.gain.tolist() == pytest.approx([1 + a + b, 1 + a + c, 1 + b + c], rel=1e-5)
    cover.add(torch.tensor(1))
    assert cover.gain[[0, 2]].tolist() == pytest.approx([1 - a, 1 - c], rel=1e-5)


@pytest.mark.parametrize("labeled", [0, 7])
def test_max_herding_is_the_plain_greedy(labeled):
    x, marks = clouds(150, seed=9), clouds(7, seed=10)[:labeled]
    similar = (-torch.cdist(x.double(), x.double()).square()).exp()
    start = (-torch.cdist(x.double(), marks.double()).square()).exp().amax(1) if labeled else torch.zeros(150).double()
    picks, _, _ = plain_greedy(similar, start, torch.ones(150).double(), 15)
    assert MaxHerding().select(a_round(x, marks), 15).tolist() == picks


def test_herding_of_a_large_pool_takes_a_random_part_of_it():
    x = clouds(90, seed=11)
    picks = [MaxHerding(candidates=10).select(a_round(x, seed=seed), 4).tolist() for seed in range(3)]
    assert len({tuple(p) for p in picks}) == 3
    assert len(MaxHerding(candidates=1).select(a_round(x), 90)) == 90


def test_uncertainty_herding_is_the_plain_greedy_with_its_weights_and_width():
    x, marks = clouds(120, seed=12), clouds(9, seed=13)
    probs = (2 * torch.randn(120, 3, generator=draw("probs"))).softmax(1)
    top = probs.double().topk(2).values
    sigma = torch.pdist(marks.double()).min()
    similar = (-(torch.cdist(x.double(), x.double()) / sigma).square()).exp()
    start = (-(torch.cdist(x.double(), marks.double()) / sigma).square()).exp().amax(1)
    picks, _, _ = plain_greedy(similar, start, 1 - (top[:, 0] - top[:, 1]), 12)
    assert UncertaintyHerding().select(a_round(x, marks, probs=probs), 12).tolist() == picks


def test_uncertainty_herding_without_labels_is_max_herding():
    x = clouds(80, seed=14)
    probs = (2 * torch.randn(80, 3, generator=draw("probs"))).softmax(1)
    assert torch.equal(UncertaintyHerding().select(a_round(x, probs=probs), 5), MaxHerding().select(a_round(x, probs=probs), 5))


def test_uncertainty_herding_with_a_narrow_kernel_is_margin_sampling():
    x, marks = circle(*range(0, 300, 10)), circle(351.0, 351.3)
    first = torch.rand(30, generator=draw("probs")) / 2 + 0.5
    picks = UncertaintyHerding().select(a_round(x, marks, probs=torch.stack([first, 1 - first], 1)), 8)
    assert picks.tolist() == first.argsort()[:8].tolist()


def test_a_higher_temperature_levels_the_weights():
    x, marks = circle(0, 90, 91, 92), circle(200, 290)
    probs = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    narrow = circle(200, 200.5)
    assert UncertaintyHerding().select(a_round(x, narrow, probs=probs), 1).tolist() == [0]
    assert UncertaintyHerding().select(a_round(x, marks, probs=probs), 1).tolist() == [0]
    assert UncertaintyHerding(temperature=50.0).select(a_round(x, marks, probs=probs), 1).tolist() == [2]


# DCoM


def test_competence_is_logistic_in_the_covered_share():
    dcom = DCoM()
    assert dcom.competence(1.0) == pytest.approx(1.0)
    assert dcom.competence(0.8) == pytest.approx((1 + math.exp(-10)) / 2)
    assert dcom.competence(0.0) == pytest.approx(0.0, abs=1e-15)


def test_radii_are_the_largest_of_the_grid_that_are_pure_enough():
    x = torch.tensor([[0.0], [0.12], [0.22], [0.31], [0.34], [0.9]])
    predicted = torch.tensor([0, 0, 1, 1, 0, 0])
    labeled = torch.tensor([[0.0], [0.9]])
    dcom = DCoM(max_delta=0.5, resolution=0.1)
    # around 0, by radius .1 .2 .3 .4 .5: shares 1, 1, 2/3, 3/5, 3/5
    for purity, radius in ((1.0, 0.2), (0.65, 0.3), (0.6, 0.5)):
        assert dcom.radii(x, predicted, labeled, torch.tensor([0, 0]), purity).tolist() == pytest.approx([radius, 0.5])
    assert dcom.radii(x, predicted, labeled, torch.tensor([1, 1]), 0.6).tolist() == pytest.approx([0.1, 0.1])


def test_radii_agree_with_a_plain_loop(monkeypatch):
    monkeypatch.setattr("alenv.geometry.CHUNK_ELEMENTS", 1000)
    x, labels, predicted = clouds(100, seed=15), torch.arange(7) % 3, torch.arange(100) % 3
    found = DCoM().radii(x, predicted, x[:7] + 0.01, labels, 0.5)
    for mark, label, radius in zip(x[:7] + 0.01, labels, found, strict=True):
        pure = [0.05]
        for step in range(1, 23):
            inside = (x - mark).norm(dim=1) < 0.05 * step
            if inside.any() and (predicted[inside] == label).float().mean() >= 0.5:
                pure.append(0.05 * step)
        assert radius == pytest.approx(max(pure))


def test_dcom_without_competence_covers_and_with_it_asks_where_the_margin_is_small():
    x = circle(*range(0, 40, 2), 120, 121, 240)
    first = torch.full((23,), 0.95)
    first[22] = 0.5
    probs = torch.stack([first, 1 - first], 1)
    cold = DCoM().select(a_round(x, probs=probs), 2)
    assert int(cold[0]) < 20, "nothing is covered: density decides"
    warm = DCoM(a=-1.0).select(a_round(x, probs=probs), 1)
    assert warm.tolist() == [22], "competence 1: the margin decides"


def test_dcom_is_a_plain_loop_over_its_formula():
    x, marks = clouds(90, seed=16), clouds(6, seed=17)
    generator = draw("dcom")
    labels = torch.arange(6) % 3
    weight, bias = 4 * torch.randn(3, 4, generator=generator), torch.zeros(3)
    logits = x @ weight.T
    dcom = DCoM(k=5.0, a=0.5)
    round_ = a_round(x, marks, labels, logits.softmax(1), head=(weight, bias))
    picks = dcom.select(round_, 10).tolist()
    everyone = torch.cat([x, marks]).double()
    predicted = torch.cat([logits, marks @ weight.T]).argmax(1)
    to_marks = torch.cdist(everyone, marks.double())
    purity = 0.4 + 0.2 * float((to_marks < 0.6).any(1).double().mean())
    radii = dcom.radii(everyone.float(), predicted, marks, labels, purity)
    assert radii.unique().numel() > 1, "a case in which radii differ"
    covered = (to_marks < radii).any(1)
    share = float(covered.double().mean())
    s = (1 + math.exp(-5 * 0.5)) / (1 + math.exp(-5 * (share - 0.5)))
    assert 0.05 < s < 0.95, "a case in which both halves count"
    top = logits.double().softmax(1).topk(2).values
    unsure = top[:, 1] - top[:, 0]
    unsure = (unsure - unsure.min()) / (unsure.max() - unsure.min())
    near, open_ = torch.cdist(x.double(), x.double()) < radii.mean(), ~covered[:90]
    taken: list[int] = []
    for pick in picks:
        count = (near & open_).sum(1).double()
        count[taken] = 0
        score = s * unsure + (1 - s) * (count - count.min()) / (count.max() - count.min()).clamp(min=1e-9)
        score[taken] = -1
        assert score[pick] == pytest.approx(float(score.max()), abs=1e-5)
        taken.append(pick)
        open_ &= ~near[pick]
