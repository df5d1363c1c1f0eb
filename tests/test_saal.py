"""SAAL: the closed form and the vectorised form against moving a model's parameters one candidate at a time."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alenv import library
from alenv.round import Round
from alenv.strategies.saal import SAAL, _spread
from alenv.streams import Streams

NETS = ("linear", "mlp", "small_cnn")


def a_round(size=40, classes=4, width=6, seed=0, scale=1.0, dtype=torch.float32):
    draw = Streams(seed)("saal")
    head = (torch.randn(classes, width, generator=draw).to(dtype), torch.randn(classes, generator=draw).to(dtype))
    return Round.from_arrays(embeddings=scale * torch.randn(size, width, generator=draw).to(dtype), head=head, seed=seed)


def moved_loss(model, x, rho):
    """Loss of one example before and after all parameters moved, by backpropagation."""
    model = copy.deepcopy(model).requires_grad_(True)
    model.aux.requires_grad_(False)
    x = x.unsqueeze(0)
    own = model(x).argmax(1)
    before = F.cross_entropy(model(x), own)
    before.backward()
    weights = [w for w in model.parameters() if w.grad is not None]
    length = math.sqrt(sum(float((w.detach().abs() * w.grad).square().sum()) for w in weights))
    with torch.no_grad():
        for w in weights:
            w += rho * w.square() * w.grad / length
        return before.item(), F.cross_entropy(model(x), own).item()


def head_only(now):
    weight, bias = now.head
    model = nn.Linear(weight.shape[1], len(weight), dtype=weight.dtype)
    model.load_state_dict({"weight": weight, "bias": bias})
    model.aux = nn.ModuleDict()
    return model


def seeded(build, *arguments):
    with Streams(0).scoped("init"):
        return build(*arguments).eval()


@pytest.mark.parametrize("rho", [0.05, 0.5])
@pytest.mark.parametrize("mode", ["max", "diff"])
def test_the_closed_form_is_what_moving_the_last_layer_does(mode, rho):
    now = a_round(seed=1, dtype=torch.float64)
    model = seeded(head_only, now)
    losses = [moved_loss(model, h, rho) for h in now.embeddings]
    expected = torch.tensor([after - before if mode == "diff" else after for before, after in losses], dtype=torch.float64)
    torch.testing.assert_close(SAAL(mode, rho=rho).last_layer(now), expected, atol=1e-6, rtol=0)
    single = SAAL(mode, rho=rho).last_layer(a_round(seed=1))
    torch.testing.assert_close(single.double(), expected, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("net", NETS)
def test_moving_all_parameters_at_once_is_what_moving_them_one_candidate_at_a_time_does(net, monkeypatch):
    model = seeded(lambda: library.build("net", net)((1, 4, 4), 3, 0.0, 1.0))
    x = torch.randn(9, 1, 4, 4, generator=Streams(0)("x"))
    expected = torch.tensor([moved_loss(model, one, 0.05)[1] for one in x])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.testing.assert_close(SAAL("max", "all").sharpness(model, x), expected, atol=1e-5, rtol=1e-4)
    monkeypatch.setattr("alenv.strategies.saal.GRADIENTS", 1)
    torch.testing.assert_close(SAAL("max", "all").sharpness(model, x), expected, atol=1e-5, rtol=1e-4)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_other_heads_of_the_model_do_not_count():
    model = seeded(lambda: library.build("net", "mlp")((6,), 3, 0.0, 1.0))
    x = torch.randn(5, 6, generator=Streams(0)("x"))
    alone = SAAL("max", "all").sharpness(model, x)
    model.aux["other"] = seeded(nn.Linear, 6, 2)
    assert torch.equal(alone, SAAL("max", "all").sharpness(model, x))


def test_the_loss_never_falls_and_the_unsure_beat_the_sure():
    for scale in (0.1, 1.0, 30.0):
        assert bool((SAAL("diff").last_layer(a_round(200, scale=scale)) >= 0).all())
    weight, bias = torch.tensor([[1.0, 0.5], [-1.0, 0.5]]), torch.tensor([0.3, 0.3])
    now = Round.from_arrays(embeddings=torch.tensor([[0.0, 1.0], [8.0, 1.0]]), head=(weight, bias))
    for mode in ("max", "diff"):
        unsure, sure = SAAL(mode).last_layer(now).tolist()
        assert unsure > sure > 0 or (mode == "diff" and unsure > sure >= 0)


def test_very_sure_predictions_still_have_an_order():
    weight, bias = torch.tensor([[1.0], [-1.0]]), torch.zeros(2)
    now = Round.from_arrays(embeddings=torch.tensor([[20.0], [22.0], [21.0]]), head=(weight, bias))
    assert now.probs.max(1).values.eq(1).all(), "float32 cannot tell them from certainty"
    assert SAAL("max").select(now, 3).tolist() == [0, 2, 1]


def test_positions_of_a_sub_pool_point_into_the_pool():
    model = seeded(lambda: library.build("net", "mlp")((6,), 3, 0.0, 1.0))
    now = a_round(60, 3)
    now._values |= {"model": model, "inputs": now.embeddings}
    strategy = SAAL("max", "all", subpool=20)
    picks = strategy.select(now, 20)
    scores = strategy.sharpness(model, now.inputs)
    assert torch.equal(scores[picks], scores[picks].sort(descending=True).values)
    assert torch.equal(strategy.select(now, 5), picks[:5])
    assert len(strategy.select(now, 40)) == 40, "a batch larger than the sub-pool widens it"
    assert torch.equal(SAAL("max", "all").select(now, 3), scores.topk(3).indices)


def test_the_diverse_batch_starts_with_the_highest_score():
    for seed in range(5):
        now = a_round(seed=seed)
        assert SAAL().select(now, 5)[0] == SAAL("max").last_layer(now).argmax()
        assert SAAL("diff_diversity").select(now, 5)[0] == SAAL("diff").last_layer(now).argmax()


def test_equal_scores_fall_by_lot():
    now = Round.from_arrays(embeddings=torch.ones(50, 3), head=(torch.eye(3), torch.zeros(3)))
    for mode in ("max", "diff", "max_diversity", "diff_diversity"):
        assert sorted(SAAL(mode).select(now, 50).tolist()) == list(range(50))
    lots = [
        SAAL().select(Round.from_arrays(embeddings=torch.ones(50, 3), head=(torch.eye(3), torch.zeros(3)), seed=s), 1).item()
        for s in range(20)
    ]
    assert len(set(lots)) > 10


def test_diversity_starts_at_the_highest_and_draws_by_squared_distance():
    scores = torch.tensor([0.0, 1.0, 3.0, 3.0])  # distances to the first pick, 3.0: 3, 2, 0 (its twin)
    counts = torch.zeros(4)
    for seed in range(2000):
        first, second = _spread(scores, 2, Streams(seed)("x")).tolist()
        assert first in (2, 3)
        counts[second] += 1
    assert counts[2] + counts[3] == 0, "a twin of a pick is drawn last"
    assert counts[0] / 2000 == pytest.approx(9 / 13, abs=0.04)
    assert sorted(_spread(scores, 4, Streams(0)("x")).tolist()) == [0, 1, 2, 3]


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="mode=max or diff"):
        SAAL("Max")
    with pytest.raises(ValueError, match="scope=last_layer or all"):
        SAAL(scope="head")
