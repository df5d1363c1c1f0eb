"""ALFA-Mix: flips by hand, the closed form against mixing by components, the growing cap, what fills a batch."""

import math

import pytest
import torch
import torch.nn.functional as F

from alenv.round import Round
from alenv.strategies.alfa_mix import ALFAMix, class_means
from alenv.streams import Streams

LINE = (torch.tensor([[1.0], [-1.0]]), torch.zeros(2))


def on_a_line(z, anchors=(1.0, -1.0), labels=(0, 1), seed=0):
    """Candidates on a line whose sign is the class."""
    return Round.from_arrays(
        embeddings=torch.tensor(z).view(-1, 1), head=LINE, labels=torch.tensor(labels, dtype=torch.int64), seed=seed,
        labeled_embeddings=torch.tensor(anchors).view(-1, 1),
    )  # fmt: skip


def a_round(size=60, classes=4, width=5, seed=0, scale=1.0):
    draw = Streams(seed)("alfa")
    return Round.from_arrays(
        embeddings=scale * torch.randn(size, width, generator=draw), seed=seed, labels=torch.arange(12) % (classes - 1),
        labeled_embeddings=scale * torch.randn(12, width, generator=draw), num_classes=classes,
        head=(torch.randn(classes, width, generator=draw), torch.randn(classes, generator=draw)),
    )  # fmt: skip


def caps_of(now, strategy):
    return strategy.required_caps(now, class_means(now.labeled_embeddings, now.labels, now.num_classes))


def flips_by_components(now, cap):
    """Mix every candidate with every class mean, component by component, in float64."""
    (weight, bias), h = now.head, now.embeddings.double().requires_grad_(True)
    weight, bias = weight.double(), bias.double()
    own = (h @ weight.T + bias).argmax(1)
    F.cross_entropy(h @ weight.T + bias, own, reduction="sum").backward()
    g, z = h.grad, h.detach()
    flips = torch.zeros(len(z), dtype=torch.bool)
    for c in set(now.labels.tolist()):
        away = now.labeled_embeddings[now.labels == c].double().mean(0) - z
        alpha = cap / math.sqrt(z.shape[1]) * away.norm(dim=1, keepdim=True) * g / g.norm(dim=1, keepdim=True) / away
        flips |= (((1 - alpha) * z + alpha * (z + away)) @ weight.T + bias).argmax(1) != own
    return flips


def test_near_the_boundary_a_candidate_flips_and_far_from_it_not():
    now = on_a_line([0.1, 5.0])
    # .1 is .1 from the boundary and 1.1 from the farther anchor; 5 is 5 and 6 away
    torch.testing.assert_close(caps_of(now, ALFAMix()), torch.tensor([0.1 / 1.1, 5 / 6]))
    assert (caps_of(now, ALFAMix()) < 0.2).tolist() == [True, False]
    assert {int(ALFAMix(cap=0.2, grow=False).select(on_a_line([0.1, 5.0], seed=s), 1)) for s in range(10)} == {0}


@pytest.mark.parametrize("cap", [0.05, 0.2, 0.6])
@pytest.mark.parametrize("seed", range(3))
def test_the_closed_form_is_what_mixing_by_components_gives(cap, seed):
    now = a_round(400, seed=seed)
    flips = flips_by_components(now, cap)
    assert 0 < int(flips.sum()) < 400
    assert torch.equal(caps_of(now, ALFAMix()) < cap, flips)


def test_blocks_do_not_change_it(monkeypatch):
    now = a_round(50)
    whole = caps_of(now, ALFAMix())
    monkeypatch.setattr("alenv.geometry.CHUNK_ELEMENTS", 5 * 7)
    torch.testing.assert_close(caps_of(now, ALFAMix()), whole)


@pytest.mark.parametrize("variant", ["learned", "random"])
def test_blocks_change_no_draw(variant, monkeypatch):
    now = a_round(50)
    anchors = class_means(now.labeled_embeddings, now.labels, 4)
    whole = ALFAMix(variant).mixed_flips(now, anchors, 0.2, Streams(1)("x"))
    assert 0 < int(whole.sum()) < 50
    monkeypatch.setattr("alenv.geometry.CHUNK_ELEMENTS", 5 * 7)
    assert torch.equal(ALFAMix(variant).mixed_flips(now, anchors, 0.2, Streams(1)("x")), whole)


def test_very_sure_predictions_flip_at_the_cap_their_geometry_says():
    now = on_a_line([50.0, 60.0])  # the cross-entropy's own gradient is zero here in float32
    torch.testing.assert_close(caps_of(now, ALFAMix()), torch.tensor([50 / 51, 60 / 61]))


def test_a_class_without_labels_has_no_anchor():
    means = class_means(torch.tensor([[1.0], [3.0], [7.0]]), torch.tensor([0, 0, 2]), 4)
    assert means.tolist() == [[2.0], [7.0]]
    now = on_a_line([0.5], anchors=(0.9,), labels=(0,))
    torch.testing.assert_close(caps_of(now, ALFAMix()), torch.tensor([0.5 / 0.4]))


@pytest.mark.parametrize("variant", ["closed", "learned", "random"])
def test_without_any_label_the_batch_falls_by_lot(variant):
    now = Round.from_arrays(
        embeddings=torch.randn(20, 1, generator=Streams(0)("x")), head=LINE, labels=torch.zeros(0, dtype=torch.int64),
        labeled_embeddings=torch.zeros(0, 1),
    )  # fmt: skip
    assert len(ALFAMix(variant).select(now, 20).unique()) == 20


def test_the_cap_grows_until_more_flip_than_are_bought():
    now = on_a_line([0.1, 0.3, 0.5, 2.0, 5.0, 9.0])
    assert caps_of(now, ALFAMix()).lt(0.2).nonzero().flatten().tolist() == [0]
    picks = {budget: set(ALFAMix().select(now, budget).tolist()) for budget in (1, 2)}
    assert picks[1] <= {0, 1, 2}  # .2 flips one, no more than are bought; .4 flips three
    assert picks[2] <= {0, 1, 2}
    firsts = {ALFAMix(grow=False).select(on_a_line([0.1, 0.3, 0.5, 2.0, 5.0, 9.0], seed=s), 2).tolist()[0] for s in range(20)}
    assert firsts == {0}, "those that flip come before those that fill"


def test_a_batch_larger_than_those_that_flip_is_filled_with_others():
    now = a_round(60)
    few = ALFAMix(cap=0.01, grow=False)
    flips = (caps_of(now, few) < 0.01).nonzero().flatten().tolist()
    picks = few.select(now, 50).tolist()
    assert 0 < len(flips) < 50
    assert sorted(picks[: len(flips)]) == flips
    assert len(set(picks)) == 50


@pytest.mark.parametrize("seed", range(4))
def test_flipping_candidates_are_spread_over_directions_whatever_their_lengths(seed):
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    z = directions.repeat_interleave(20, 0) + 0.0
    z[:20] *= 1 + 30 * torch.rand(20, 1, generator=Streams(seed)("x"))
    head = (0.1 * directions, torch.zeros(3))
    now = Round.from_arrays(embeddings=z, head=head, labels=torch.arange(3), labeled_embeddings=900 * directions, seed=seed)
    assert sorted(p // 20 for p in ALFAMix(cap=1.0).select(now, 3).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("variant", ["learned", "random"])
def test_random_and_learned_weights_flip_only_what_a_mix_within_the_cap_can(variant):
    now = on_a_line([0.05, 0.1, 0.4, 5.0], anchors=(-1.0,), labels=(1,))
    # the point moves by at most cap of its way to -1: it flips only if z < cap (z + 1)
    flips = ALFAMix(variant, cap=0.2).mixed_flips(now, torch.tensor([[-1.0]]), 0.2, Streams(1)("x"))
    assert flips.tolist()[2:] == [False, False]
    everyone = ALFAMix(variant).mixed_flips(on_a_line([0.001] * 400), torch.tensor([[-1.0]]), 0.5, Streams(1)("x"))
    assert everyone.float().mean() > (0.95 if variant == "learned" else 0.7)


def test_learned_weights_flip_more_than_the_random_ones_they_start_from():
    now = a_round(300)
    anchors = class_means(now.labeled_embeddings, now.labels, 4)
    random, learned = (ALFAMix(v).mixed_flips(now, anchors, 0.2, Streams(1)("x")) for v in ("random", "learned"))
    assert bool((learned | ~random).all()), "the start counts"
    assert int(learned.sum()) > 1.2 * int(random.sum())


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="variant=closed, learned or random"):
        ALFAMix("exact")
    with pytest.raises(ValueError, match="0 < cap <= 1"):
        ALFAMix(cap=0.0)
