"""GALAXY: lines, bisection and growing neighbourhoods by hand, and a plain search through the graph the paper draws."""

import math
from collections import deque

import pytest
import torch

from alenv.round import Round
from alenv.strategies.galaxy import Galaxy, _lines, _place
from alenv.streams import Streams


def a_round(probs, labeled_probs, labels, seed=0):
    """A round whose labelled examples have the given probabilities: the head is the identity on their logarithms."""
    classes = probs.shape[1]
    return Round.from_arrays(
        probs=probs, labeled_embeddings=labeled_probs.log(), head=(torch.eye(classes), torch.zeros(classes)),
        labels=torch.as_tensor(labels, dtype=torch.int64), num_classes=classes, embeddings=probs.log(), seed=seed,
    )  # fmt: skip


def pairs(*first):
    p = torch.tensor(first)
    return torch.stack([p, 1 - p], 1)


def place(known, own, size, lot=0.0):
    return _place(torch.tensor(known, dtype=torch.int64), torch.tensor(own, dtype=torch.bool), size, torch.tensor(lot))


def test_a_line_rises_by_margin_and_among_those_predicted_so_by_confidence():
    probs = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.5, 0.25, 0.25], [0.3, 0.35, 0.35], [0.9, 0.05, 0.05]])
    lot = torch.randperm(5, generator=Streams(0)("lot"))
    lines = _lines(probs, lot, torch.arange(3))
    assert lines[0].tolist() == [1, 3, 2, 0, 4]  # -.3, -.05, then .5, .6, .9
    assert torch.equal(_lines(probs, lot, torch.tensor([2])), lines[2:])


def test_the_middle_of_the_shortest_run_between_unlike_ends_is_bought():
    assert place([0, 6, 9, 20], [0, 1, 0, 0], 21) in (7, 8)  # 6..9 is shorter than 0..6; 9..20 has like ends
    assert place([0, 6, 20], [0, 1, 1], 21) == 3
    assert place([2, 5], [0, 1], 9) == 4  # two steps from the other class, one from its own
    assert place([2, 5], [1, 0], 9) == 3


def test_once_the_cuts_are_tight_what_is_nearest_to_one_is_bought():
    assert place([3, 4, 5, 6], [0, 0, 1, 1], 12, lot=0.0) == 2
    assert place([3, 4, 5, 6], [0, 0, 1, 1], 12, lot=0.9) == 7
    assert place([3, 4, 5], [0, 1, 1], 12) == 2
    assert place([0, 1, 2], [0, 0, 1], 12) == 3


def test_labels_of_one_kind_or_none_or_a_full_line_give_no_place():
    assert place([], [], 5) is None
    assert place([3], [1], 5) is None
    assert place([1, 3], [1, 1], 5) is None
    assert place([0, 1, 2], [0, 1, 0], 3) is None


def hops(known, own, size, order):
    """Length of the shortest path from own to other through neighbours up to `order` apart, and who may lie in its middle.

    The graph of the paper: edges join places at most `order` apart, but not two labelled ones that differ.
    """
    label = dict(zip(known, own, strict=True))
    best, middles = math.inf, set()
    for source in (v for v in known if not label[v]):
        queue, way = deque([(source, (source,))]), {source: 0}
        while queue:
            v, path = queue.popleft()
            for w in range(max(0, v - order), min(size, v + order + 1)):
                if w in path or (v in label and w in label and label[v] != label[w]):
                    continue
                if label.get(w):
                    if len(path) < best:
                        best, middles = len(path), set()
                    if len(path) == best:
                        middles.add((*path, w)[math.ceil(len(path) / 2)])
                elif way.get(w, math.inf) >= len(path):
                    way[w] = len(path)
                    queue.append((w, (*path, w)))
    return best, middles


@pytest.mark.parametrize("seed", range(40))
def test_what_is_bought_lies_in_the_middle_of_a_shortest_path_of_the_least_order_that_has_one(seed):
    draw = Streams(seed)("line")
    size, count = 11, 2 + seed % 7
    known = torch.randperm(size, generator=draw)[:count].sort().values
    own = torch.rand(count, generator=draw) < 0.5
    found = _place(known, own, size, torch.rand((), generator=draw))
    for order in range(1, size):
        length, middles = hops(known.tolist(), own.tolist(), size, order)
        if length < math.inf:
            assert found in middles
            return
    assert found is None


def test_bisection_homes_in_on_where_the_model_is_wrong():
    first = torch.linspace(0.99, 0.51, 49)  # all are predicted class 0; labels say that it ends earlier
    now = a_round(pairs(*first.tolist()), pairs(0.995, 0.755, 0.505), [0, 0, 1])
    pick = Galaxy().select(now, 1)
    assert 0.6 < first[pick].item() < 0.66  # halfway between .755 (class 0) and .505 (class 1), not at the threshold


def test_a_rare_class_gets_as_many_turns_as_a_common_one():
    draw = Streams(0)("rare")
    probs = (3 * torch.randn(300, 3, generator=draw) + torch.tensor([4.0, 4.0, -3.0])).softmax(1)
    marks = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.1, 0.1, 0.8]])
    picks = Galaxy().select(a_round(probs, marks, [0, 1, 2]), 60)
    assert torch.isin(probs[:, 2].argsort(descending=True)[:40], picks).sum() >= 15


@pytest.mark.parametrize("labels", [[], [1], [1, 1]])
def test_without_two_kinds_of_labels_it_buys_by_lot(labels):
    marks = torch.full((len(labels), 2), 0.5)
    first, again, other = (Galaxy().select(a_round(pairs(*[0.6] * 30), marks, labels, seed=s), 5).tolist() for s in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) == 5


def test_the_whole_pool_and_identical_candidates_are_bought_once_each():
    now = a_round(pairs(*[0.5] * 12), pairs(0.2, 0.8), [1, 0])
    assert sorted(Galaxy().select(now, 12).tolist()) == list(range(12))


def test_the_order_of_the_pool_does_not_matter_up_to_lots():
    probs = (2 * torch.randn(60, 2, generator=Streams(3)("p"))).softmax(1)
    marks = pairs(0.9, 0.1)
    flip = torch.arange(59, -1, -1)
    plain, flipped = (Galaxy().select(a_round(p, marks, [0, 1]), 1) for p in (probs, probs[flip]))
    assert plain.tolist() == flip[flipped].tolist()


def test_a_target_takes_all_turns():
    rare = torch.tensor([0.2, 0.25, 0.3, 0.7, 0.6, 0.54])
    probs = torch.stack([0.4 * (1 - rare), 0.6 * (1 - rare), rare], 1)
    marks = torch.tensor([[0.05, 0.05, 0.9], [0.14, 0.35, 0.51]])
    # the line of class 2: 0 1 2, the label of class 1 at .51, 5 4 3, the label of class 2 at .9
    rounds = [a_round(probs, marks, [2, 1], seed=seed) for seed in range(9)]
    assert {tuple(Galaxy(target=2).select(now, 1).tolist()) for now in rounds} == {(4,)}
    assert {tuple(Galaxy(target=2).select(now, 2).tolist()) for now in rounds} == {(4, 5)}  # 4 counts as class 2 then
    assert len({tuple(Galaxy().select(now, 1).tolist()) for now in rounds}) > 1


@pytest.mark.parametrize(("target", "what"), [(-1, "number of a class"), (3, r"target in 0..1, got 3")])
def test_a_target_that_is_no_class_is_refused(target, what):
    with pytest.raises(ValueError, match=what):
        Galaxy(target).select(a_round(pairs(0.5), pairs(0.5), [0]), 1)
