"""VeSSAL and FALCUN: plain one-by-one twins with the same draws, laws, degenerate pools."""

import pytest
import torch

from alenv.round import Round
from alenv.strategies import vessal
from alenv.strategies.falcun import Falcun
from alenv.strategies.vessal import Vessal
from alenv.streams import Streams


def a_round(size=90, classes=4, dim=5, seed=0):
    draw = Streams(seed)("arrays")
    probs = (2 * torch.randn(size, classes, generator=draw)).softmax(1)
    return Round.from_arrays(probs=probs, embeddings=torch.randn(size, dim, generator=draw), seed=seed)


# VeSSAL


def one_by_one(now, budget, scale, panel):
    """The law as it is written, with gradients and matrices of size C D, one candidate after the other."""
    generator = now.generator("vessal")
    stream = torch.randperm(len(now), generator=generator)
    lots = torch.rand(len(now), generator=generator, dtype=torch.float64)
    p = now.probs.double()
    a = p - torch.nn.functional.one_hot(p.argmax(1), p.shape[1])
    g = (a[:, :, None] * now.embeddings.double()[:, None, :]).flatten(1)[stream]
    inverse, picks = scale * torch.eye(g.shape[1], dtype=torch.float64), []
    for t in range(len(g)):
        seen = g[: t + 1] if t < panel else g[:panel]
        trace = torch.trace(inverse @ (seen.T @ seen / len(seen)))
        rate = (budget - len(picks)) / (len(g) - t)
        if lots[t] < rate * (g[t] @ inverse @ g[t]) / trace:
            w = inverse @ g[t]
            inverse = inverse - torch.outer(w, w) / (1 + g[t] @ w)
            picks.append(t)
    rest = [t for t in range(len(g)) if t not in picks]
    return stream[torch.tensor((picks + rest)[:budget])].tolist()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("scale", "panel"), [(100.0, 1000), (100.0, 13), (0.01, 1000)])
def test_vessal_buys_what_one_by_one_streaming_buys_with_the_same_draws(seed, scale, panel, monkeypatch):
    now = a_round(seed=seed)
    expected = one_by_one(now, 20, scale, panel)
    assert Vessal(scale, panel).select(now, 20).tolist() == expected
    monkeypatch.setattr(vessal, "BLOCK", 7)
    assert Vessal(scale, panel).select(now, 20).tolist() == expected


def test_vessal_passes_over_what_it_has_already_bought():
    repeats = 0
    for seed in range(20):
        kinds = torch.arange(60) % 3
        now = Round.from_arrays(probs=torch.full((60, 3), 1 / 3), embeddings=torch.eye(3)[kinds], seed=seed)
        repeats += len(set(kinds[Vessal().select(now, 3)].tolist())) < 3
    assert repeats <= 5  # uniform draws repeat a kind 77 times in 100


def test_vessal_buys_what_has_a_gradient():
    probs = torch.tensor([[1.0, 0.0]] * 50 + [[0.5, 0.5]] * 10)
    now = Round.from_arrays(probs=probs, embeddings=torch.randn(60, 8, generator=Streams(0)("h")))
    assert (Vessal().select(now, 8) >= 50).sum() >= 7


def test_vessal_survives_a_pool_without_gradients_and_buys_all_of_a_small_one():
    flat = Round.from_arrays(probs=torch.eye(2).repeat(20, 1), embeddings=torch.zeros(40, 3))
    assert len(set(Vessal().select(flat, 9).tolist())) == 9
    assert sorted(Vessal().select(a_round(7), 7).tolist()) == list(range(7))


@pytest.mark.parametrize("numbers", [{"scale": 0.0}, {"panel": 0}])
def test_vessal_refuses_senseless_numbers(numbers):
    with pytest.raises(ValueError, match="scale > 0 and panel >= 1"):
        Vessal(**numbers)


# FALCUN


def law_by_hand(probs, taken, gamma):
    """The law of the next draw, from sorted margins and one distance at a time."""
    rows = [sorted(p.tolist(), reverse=True) for p in probs]
    unsure = [1 - (r[0] - r[1]) for r in rows]
    far = [min([u, *(float((p - probs[t]).abs().sum()) for t in taken)]) for p, u in zip(probs, unsure, strict=True)]
    left = [i for i in range(len(probs)) if i not in taken]
    low, high = min(far[i] for i in left), max(far[i] for i in left)
    mass = [((far[i] - low) / (high - low) + unsure[i]) ** gamma if i in left else 0.0 for i in range(len(probs))]
    return torch.tensor(mass, dtype=torch.float64) / sum(mass)


@pytest.mark.parametrize("taken", [[], [3], [3, 8, 1]])
@pytest.mark.parametrize("gamma", [1.0, 10.0])
def test_the_law_of_falcun_is_the_one_worked_out_by_hand(taken, gamma):
    now = a_round(12)
    law = Falcun(gamma).law(now, torch.tensor(taken, dtype=torch.int64))
    torch.testing.assert_close(law, law_by_hand(now.probs.double(), taken, gamma), atol=1e-5, rtol=1e-4)


def test_falcun_draws_by_its_law_step_by_step():
    probs = a_round(5).probs
    firsts, seconds = torch.zeros(5), torch.zeros(5, 5)
    for seed in range(600):
        i, j = Falcun(1.0).select(Round.from_arrays(probs=probs, seed=seed), 2).tolist()
        firsts[i] += 1
        seconds[i, j] += 1
    now = Round.from_arrays(probs=probs)
    assert (firsts / 600 - Falcun(1.0).law(now, torch.zeros(0, dtype=torch.int64))).abs().max() < 0.07
    most = int(firsts.argmax())
    assert (seconds[most] / firsts[most] - Falcun(1.0).law(now, torch.tensor([most]))).abs().max() < 0.13


def test_falcun_leaves_certain_candidates_and_turns_to_other_boundaries():
    certain = [[0.98, 0.01, 0.01]] * 30
    probs = torch.tensor([*certain, *[[0.5, 0.5, 0.0]] * 10, *[[0.0, 0.5, 0.5]] * 10])
    for seed in range(10):
        i, j = Falcun().select(Round.from_arrays(probs=probs, seed=seed), 2).tolist()
        assert min(i, j) >= 30
        assert (i < 40) != (j < 40)


def test_falcun_survives_certain_and_identical_pools_and_buys_all():
    sure = Falcun().select(Round.from_arrays(probs=torch.eye(2)[[0] * 9]), 4)
    alike = Falcun().select(Round.from_arrays(probs=torch.full((9, 4), 0.25)), 9)
    assert len(set(sure.tolist())) == 4
    assert sorted(alike.tolist()) == list(range(9))
    with pytest.raises(ValueError, match="gamma >= 0"):
        Falcun(-1.0)
