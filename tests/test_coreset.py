"""Core-set: the case by hand, and degenerate pools. The greedy itself is tested with the geometry."""

import pytest
import torch

from alenv import geometry
from alenv.round import Round
from alenv.strategies.coreset import Coreset
from alenv.streams import Streams


def on_a_line(candidates, labeled, seed=0):
    return Round.from_arrays(
        embeddings=torch.tensor(candidates).view(-1, 1), labeled_embeddings=torch.tensor(labeled).view(-1, 1), num_classes=2,
        seed=seed,
    )  # fmt: skip


def test_picks_on_a_line_are_those_worked_out_by_hand():
    candidates = [0.1, 0.2, 10.0, 10.1, -6.0]
    picks = Coreset().select(on_a_line(candidates, [0.0]), 5)
    assert [candidates[i] for i in picks[:3]] == [10.1, -6.0, 0.2]


@pytest.mark.parametrize("seed", range(5))
def test_a_double_of_a_labelled_point_waits_while_another_remains(seed):
    candidates = [3.7, 3.7, 3.8, 8.1, -2.2]
    picks = Coreset().select(on_a_line(candidates, [3.7], seed), 5).tolist()
    assert set(picks[-2:]) == {0, 1}


def test_cosine_looks_at_directions_alone():
    embeddings = torch.tensor([[100.0, 1.0], [0.0, 0.01], [5.0, 5.0]])
    labeled = torch.tensor([[1.0, 0.0]])
    round_ = Round.from_arrays(embeddings=embeddings, labeled_embeddings=labeled, num_classes=2)
    assert Coreset().select(round_, 3).tolist() == [0, 2, 1]
    assert Coreset(metric="cosine").select(round_, 3).tolist() == [1, 2, 0]
    assert torch.equal(round_.embeddings[0], torch.tensor([100.0, 1.0]))


def test_without_labels_it_starts_in_the_middle():
    assert Coreset().select(on_a_line([-8.0, 1.0, 2.0, 9.0], []), 2).tolist() == [1, 0]


def test_pool_order_changes_nothing():
    x = torch.randn(300, 7, generator=Streams(0)("x"))
    labeled, lot = x[:5], torch.randperm(295, generator=Streams(0)("lot"))
    one = Coreset().select(Round.from_arrays(embeddings=x[5:], labeled_embeddings=labeled, num_classes=2), 30)
    other = Coreset().select(Round.from_arrays(embeddings=x[5:][lot], labeled_embeddings=labeled, num_classes=2), 30)
    assert lot[other].tolist() == one.tolist()


@pytest.mark.parametrize("elements", [1, 50, 999])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_size_of_blocks_changes_nothing(metric, elements, monkeypatch):
    x = torch.randn(300, 7, generator=Streams(0)("x"))
    now = Round.from_arrays(embeddings=x[40:], labeled_embeddings=x[:40], num_classes=2)
    whole = Coreset(metric=metric).select(now, 30)
    monkeypatch.setattr(geometry, "CHUNK_ELEMENTS", elements)
    assert torch.equal(Coreset(metric=metric).select(now, 30), whole)


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="metric=euclidean or metric=cosine, got 'manhattan'"):
        Coreset(metric="manhattan")
