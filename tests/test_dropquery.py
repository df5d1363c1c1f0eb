"""DropQuery: who flips under dropped embeddings, and one pick per cluster of those."""

import pytest
import torch

from alenv import geometry
from alenv.round import Round
from alenv.strategies.dropquery import DropQuery
from alenv.streams import Streams


def a_round(embeddings, weight, bias=None, seed=0):
    bias = torch.zeros(len(weight)) if bias is None else bias
    return Round.from_arrays(embeddings=embeddings, head=(weight, bias), seed=seed)


def test_who_depends_on_one_component_flips_when_it_is_dropped():
    # the first predicts class 0 by its first component alone, and class 1 by the bias without it; the others never flip
    h = torch.tensor([[1.0, 0.0], [9.0, 0.0], [0.0, 0.0]]).repeat_interleave(4000, 0)
    now = a_round(h, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([0.0, 0.5]))
    flips = DropQuery().flips(now, Streams(0)("x")).view(3, 4000).float().mean(1)
    # of three independent passes at least two must drop the component: 3 (3/4)^2 (1/4) + (3/4)^3 = 27/32
    assert flips[0].item() == pytest.approx(27 / 32, abs=0.02)
    assert flips[1].item() == pytest.approx(27 / 32, abs=0.02)
    assert flips[2].item() == 0


def test_kept_components_are_scaled_so_that_the_mean_stays():
    h = torch.full((1000, 1), 1.0)
    now = a_round(h, torch.tensor([[0.0], [1.0]]), torch.tensor([1.5, 0.0]))  # class 0, unless h is scaled beyond 1.5
    assert DropQuery(passes=1, dropout=0.75).flips(now, Streams(0)("x")).float().mean() == pytest.approx(0.25, abs=0.05)
    assert not DropQuery(passes=1, dropout=0.25).flips(now, Streams(0)("x")).any()


def test_without_dropout_nobody_flips_and_the_batch_falls_by_lot():
    now = a_round(torch.randn(30, 4, generator=Streams(0)("h")), torch.randn(3, 4, generator=Streams(0)("w")))
    assert not DropQuery(dropout=0.0).flips(now, Streams(0)("x")).any()
    assert sorted(DropQuery(dropout=0.0).select(now, 30).tolist()) == list(range(30))
    with pytest.raises(ValueError, match="0 <= dropout < 1"):
        DropQuery(dropout=1.0)


def test_each_cluster_of_flipping_candidates_gives_one_and_who_never_flips_is_left():
    draw = Streams(0)("x")
    centres = torch.tensor([[20.0, 0.0, 0.0], [0.0, 20.0, 0.0], [0.0, 0.0, 20.0], [0.0, 0.0, 0.0]])
    h = (centres.repeat_interleave(30, 0) + 0.1 * torch.randn(120, 3, generator=draw)).abs()
    h[90:] *= 0.001
    now = a_round(h, torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]), torch.tensor([0.0, 1.0]))
    for seed in range(5):
        now._streams = Streams(seed)
        assert sorted(p // 30 for p in DropQuery().select(now, 3).tolist()) == [0, 1, 2]


def test_the_size_of_blocks_changes_no_draw(monkeypatch):
    now = a_round(torch.randn(300, 5, generator=Streams(0)("h")), torch.randn(3, 5, generator=Streams(0)("w")))
    whole = DropQuery().flips(now, Streams(0)("x"))
    assert 0 < int(whole.sum()) < 300
    for elements in (1, 37, 400):
        monkeypatch.setattr("alenv.geometry.CHUNK_ELEMENTS", elements)
        assert torch.equal(DropQuery().flips(now, Streams(0)("x")), whole)


def test_marked_rows_come_first_and_the_others_by_lot():
    marked = torch.tensor([False, True, False, True, False])
    x = torch.tensor([[0.0], [1.0]])
    picks = [geometry.one_per_cluster(x, marked, 4, Streams(s)("x")).tolist() for s in range(30)]
    assert all(sorted(p[:2]) == [1, 3] and len(set(p)) == 4 for p in picks)
    assert {p[2] for p in picks} == {0, 2, 4}
    assert geometry.one_per_cluster(x[:0], marked & False, 5, Streams(0)("x")).sort().values.tolist() == [0, 1, 2, 3, 4]


def test_of_each_cluster_of_marked_rows_the_nearest_to_its_centre_comes():
    x = torch.tensor([[0.0], [0.9], [2.0], [50.0], [51.2], [52.0]])
    marked = torch.tensor([True, True, True, False, True, True, True, False])
    assert sorted(geometry.one_per_cluster(x, marked, 2, Streams(0)("x")).tolist()) == [1, 5]
