"""SIMILAR: its measures from their definitions, greedily; what Q and P do; degenerate pools; the lazy search it uses."""

import numpy as np
import pytest
import torch

from alenv import ops
from alenv.round import Round
from alenv.strategies.similar import Similar
from alenv.streams import Streams


def a_round(size=40, labels=(0, 1, 2, 0, 0), outside=3, classes=3, dim=4, seed=0):
    draw = Streams(seed)("similar")
    x = torch.randn(size, dim, generator=draw)
    weight, bias = torch.randn(classes, dim, generator=draw), torch.randn(classes, generator=draw)
    known = torch.randn(len(labels), dim, generator=draw)
    return Round.from_arrays(
        logits=x @ weight.T + bias, embeddings=x, head=(weight, bias), labels=torch.tensor(labels, dtype=torch.int64),
        labeled_embeddings=known, discarded_embeddings=torch.randn(outside, dim, generator=draw), num_classes=classes, seed=seed,
    )  # fmt: skip


def rows_of(now, kernel):
    """Candidates, Q and P as plain vectors: flattened gradients with the bias, or embeddings; of length one."""
    weight, bias = (part.double() for part in now.head)
    found = []
    for h, labels in ((now.embeddings, None), (now.labeled_embeddings, now.labels), (now.discarded_embeddings, None)):
        vectors = []
        for i, row in enumerate(h.double()):
            if kernel == "embeddings":
                vector = row
            else:
                p = (weight @ row + bias).softmax(0)
                p[p.argmax() if labels is None else labels[i]] -= 1
                vector = torch.outer(p, torch.cat([row, torch.ones(1)])).flatten()
            vectors.append((vector / vector.norm()).numpy())
        width = h.shape[1] if kernel == "embeddings" else weight.shape[0] * (h.shape[1] + 1)
        found.append(np.array(vectors).reshape(len(h), width))
    return found


def similarity(x, y):
    return (1 + x @ y.T) / 2 if len(y) and len(x) else np.zeros((len(x), len(y)))


def flcmi(batch, x, q, p, eta, nu):
    total = 0.0
    for i in range(len(x)):
        to_batch = max(similarity(x[i : i + 1], x[batch])[0])
        to_query = eta * max(similarity(x[i : i + 1], q)[0]) if len(q) else np.inf
        to_private = nu * max(similarity(x[i : i + 1], p)[0]) if len(p) else 0.0
        total += max(min(to_batch, to_query) - to_private, 0.0)
    return total


def logdetcmi(batch, x, q, p, eta, nu):
    """f(A, P) - f(P) + f(P, Q) - f(A, P, Q) with f = log det of similarities + I."""

    def f(*sets):
        rows = np.concatenate([rows for rows, _ in sets])
        scale = np.ones((len(rows), len(rows)))
        ends = np.cumsum([0, *[len(rows) for rows, _ in sets]])
        for i, (_, kind) in enumerate(sets):
            for j, (_, other) in enumerate(sets):
                factor = {"AQ": eta, "QA": eta, "AP": nu, "PA": nu}.get(kind + other, 1.0)
                scale[ends[i] : ends[i + 1], ends[j] : ends[j + 1]] = factor
        return np.linalg.slogdet(similarity(rows, rows) * scale + np.eye(len(rows)))[1] if len(rows) else 0.0

    a, p, q = (x[batch], "A"), (p, "P"), (q, "Q")
    return f(a, p) - f(p) + f(p, q) - f(a, p, q)


def is_greedy(picks, measure, x, q, p, eta, nu):
    """Whether each pick raises the measure by as much as any candidate would, given those before it."""
    for step in range(len(picks)):
        values = [measure([*picks[:step], i], x, q, p, eta, nu) for i in range(len(x)) if i not in picks[:step]]
        if measure(picks[: step + 1], x, q, p, eta, nu) < max(values) - 1e-5:
            return False
    return True


@pytest.mark.parametrize(("eta", "nu"), [(1.0, 1.0), (0.8, 0.6), (2.0, 0.0)])
@pytest.mark.parametrize("kernel", ["gradients", "embeddings"])
def test_every_flcmi_pick_adds_as_much_as_any_would(eta, nu, kernel):
    now = a_round()
    picks = Similar(kernel=kernel, eta=eta, nu=nu).select(now, 8).tolist()
    arrays = rows_of(now, kernel)
    assert is_greedy(picks, flcmi, *arrays, eta, nu)
    assert not is_greedy([picks[-1], *picks[:-1]], flcmi, *arrays, eta, nu)


@pytest.mark.parametrize(("eta", "nu"), [(1.0, 1.0), (0.7, 1.0), (0.9, 0.5)])
@pytest.mark.parametrize("outside", [0, 3])
def test_every_logdetcmi_pick_adds_as_much_as_any_would(eta, nu, outside):
    now = a_round(outside=outside)
    picks, arrays = Similar("logdetcmi", "embeddings", eta=eta, nu=nu).select(now, 6).tolist(), rows_of(now, "embeddings")
    assert is_greedy(picks, logdetcmi, *arrays, eta, nu)
    assert not is_greedy(picks[::-1], logdetcmi, *arrays, eta, nu)


def clusters(seed=0):
    """Three bundles of directions: 0..19 like Q, 20..39 like P, 40..59 like neither."""
    draw = Streams(seed)("bundles")
    centre = torch.eye(3).repeat_interleave(20, 0)
    return Round.from_arrays(
        embeddings=torch.cat([centre + 0.2 * torch.randn(60, 3, generator=draw)]), labeled_embeddings=torch.eye(3)[[0, 0]],
        labels=torch.tensor([0, 0]), discarded_embeddings=torch.eye(3)[[1, 1]], num_classes=2, seed=seed,
    )  # fmt: skip


@pytest.mark.parametrize("measure", ["flcmi", "logdetcmi"])
def test_it_buys_what_resembles_the_labelled_and_not_what_resembles_the_outside(measure):
    for seed in range(5):
        picks = Similar(measure, "embeddings").select(clusters(seed), 2)
        assert (picks < 20).any()
        assert not ((picks >= 20) & (picks < 40)).any()


def test_the_query_may_be_the_rare_classes_alone():
    x = torch.eye(2).repeat_interleave(15, 0) + 0.05 * torch.randn(30, 2, generator=Streams(0)("x"))
    now = Round.from_arrays(
        embeddings=x, labeled_embeddings=torch.eye(2)[[0, 0, 0, 0, 1]], labels=torch.tensor([0, 0, 0, 0, 1]),
        discarded_embeddings=torch.zeros(0, 2),
    )  # fmt: skip
    assert (Similar("logdetcmi", "embeddings", query="rare").select(now, 5) >= 15).all()
    assert (Similar("logdetcmi", "embeddings").select(now, 5) < 15).any()


def test_a_ground_set_smaller_than_the_pool_is_a_sample_and_a_larger_one_is_exact():
    now = a_round()
    assert Similar(ground=40).select(now, 6).tolist()[:2] == Similar(ground=999).select(now, 6).tolist()[:2]
    assert len(set(Similar(ground=5).select(now, 6).tolist())) == 6


@pytest.mark.parametrize("strategy", [Similar(), Similar("logdetcmi", "embeddings")], ids=["flcmi", "logdetcmi"])
def test_degenerate_pools_are_bought(strategy):
    bare = a_round(labels=(), outside=0)
    assert len(set(strategy.select(bare, 7).tolist())) == 7
    assert sorted(strategy.select(a_round(9), 9).tolist()) == list(range(9))
    assert strategy.select(a_round(1), 3).tolist() == [0]
    alike = Round.from_arrays(
        embeddings=torch.ones(30, 2), labeled_embeddings=torch.ones(1, 2), labels=torch.tensor([0]), num_classes=2,
        discarded_embeddings=torch.zeros(0, 2), logits=torch.ones(30, 2), head=(torch.eye(2), torch.zeros(2)),
    )  # fmt: skip
    assert len(set(strategy.select(alike, 5).tolist())) == 5
    assert strategy.select(alike, 5).tolist() != list(range(5))


def test_senseless_choices_are_refused():
    with pytest.raises(ValueError, match="expected flcmi or logdetcmi, got 'gcmi'"):
        Similar("gcmi")
    with pytest.raises(ValueError, match="takes kernel=embeddings"):
        Similar("logdetcmi")
    with pytest.raises(ValueError, match="ground >= 1"):
        Similar(ground=0)


# The lazy search


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("width", [1, 3, 100])
def test_the_lazy_search_finds_the_largest_value_and_keeps_what_it_computed(seed, width):
    draw = Streams(seed)("lazy")
    values = torch.rand(30, generator=draw)
    bounds = values + torch.rand(30, generator=draw) * (torch.rand(30, generator=draw) < 0.5)
    bounds[seed] = -torch.inf
    before, asked = bounds.clone(), []

    def compute(rows):
        asked.extend(rows.tolist())
        return values[rows]

    best = ops.lazy_argmax(bounds, compute, torch.randperm(30, generator=draw), width)
    allowed = values.clone()
    allowed[seed] = -torch.inf
    assert int(best) == int(allowed.argmax())
    touched = torch.zeros(30, dtype=torch.bool)
    touched[asked] = True
    assert torch.equal(bounds, torch.where(touched, allowed, before))


def test_equals_of_the_lazy_search_fall_by_the_lot():
    lot = torch.randperm(9, generator=Streams(0)("lot"))
    picks = {int(ops.lazy_argmax(torch.ones(9), lambda rows: torch.ones(len(rows)), lot.roll(i), 2)) for i in range(9)}
    assert len(picks) > 3
