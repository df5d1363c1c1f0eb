"""NoiseStability: the noise, the moves it makes against noisy copies of the model, and the farthest-first batch."""

import copy

import pytest
import torch
from torch import nn

from alenv import library
from alenv.model import TaskModel
from alenv.round import Round
from alenv.strategies.noise_stability import NoiseStability
from alenv.streams import Streams

NETS = ("linear", "mlp", "small_cnn")


def model_named(net, shape=(1, 4, 4), classes=3):
    with Streams(0).scoped("init"):
        return library.build("net", net)(shape, classes, 0.0, 1.0).eval().requires_grad_(False)


def a_round(model, inputs, seed=0):
    now = Round.from_arrays(logits=model(inputs), embeddings=model.features(inputs), seed=seed)
    now._values |= {"model": model, "inputs": inputs, "head": (model.linear.weight, model.linear.bias)}
    return now


def images(size=30):
    return torch.randn(size, 1, 4, 4, generator=Streams(0)("images"))


def test_noise_has_the_norm_of_its_tensor_times_the_scale():
    w = torch.randn(4, 3, generator=Streams(0)("w"))
    noise = NoiseStability(scale=0.1)._noisy(w, 5, Streams(0)("x")) - w
    torch.testing.assert_close(noise.flatten(1).norm(dim=1), 0.1 * w.norm().expand(5))
    assert torch.equal(NoiseStability()._noisy(torch.zeros(3), 1, Streams(0)("x")), torch.zeros(1, 3))


@pytest.mark.parametrize("net", NETS)
def test_moves_are_those_of_noisy_copies_of_the_model(net):
    model, strategy = model_named(net), NoiseStability(draws=4, scale=0.1)
    now = a_round(model, images())
    draw, still = now.generator("noise_stability/noise"), now.probs
    columns = []
    for _ in range(4):
        noisy = copy.deepcopy(model)
        for w in noisy.parameters():
            u = torch.randn(1, w.numel(), generator=draw).view_as(w)
            w += 0.1 * w.norm() / u.norm() * u
        columns.append((noisy(images()).softmax(1) - still) / still.norm(dim=1, keepdim=True))
    torch.testing.assert_close(strategy.features(now), torch.cat(columns, 1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("net", NETS)
def test_the_model_is_left_as_it_was_and_other_heads_do_not_count(net):
    model = model_named(net)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    picks = NoiseStability(draws=5).select(a_round(model, images()), 10)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with Streams(1).scoped("init"):
        model.aux["other"] = nn.Linear(3, 3)
    assert torch.equal(picks, NoiseStability(draws=5).select(a_round(model, images()), 10))


def test_noise_on_the_head_alone_moves_a_linear_model_as_noise_on_all_of_it_does():
    model = model_named("linear")
    all_, head = NoiseStability(draws=150), NoiseStability(draws=150, scope="head")
    now = a_round(model, images(200))
    assert head.needs == {"embeddings", "head"}
    a, b = all_.features(now).norm(dim=1), head.features(now).norm(dim=1)
    assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.9, "other draws, same size"
    arrays = Round.from_arrays(embeddings=now.embeddings, head=now.head)
    assert torch.equal(head.select(arrays, 10), head.select(now, 10))


def test_the_first_pick_moves_most_and_the_next_are_farthest_first():
    now, strategy = a_round(model_named("mlp"), images()), NoiseStability(draws=6)
    moves = strategy.features(now).double()
    done = [int(moves.norm(dim=1).argmax())]
    while len(done) < 12:
        distances = torch.cdist(moves, torch.cat([torch.zeros(1, moves.shape[1]).double(), moves[done]])).amin(1)
        distances[done] = -1
        done.append(int(distances.argmax()))
    assert strategy.select(now, 12).tolist() == done


def test_an_input_that_weights_cannot_move_is_not_first():
    with torch.no_grad(), Streams(0).scoped("init"):
        model = TaskModel(nn.Identity(), 3, 2)
        model.linear.weight.copy_(torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0]]))
        model.linear.bias.zero_()
    inputs = torch.randn(20, 3, generator=Streams(0)("x"))
    inputs[7] = 0
    for scope in ("all", "head"):
        moves = NoiseStability(draws=3, scale=0.1, scope=scope).features(a_round(model, inputs))
        assert torch.nonzero(moves.abs().sum(1) == 0).flatten().tolist() == [7]
        for seed in range(5):
            picks = NoiseStability(draws=3, scope=scope).select(a_round(model, inputs, seed), 20).tolist()
            assert picks[0] != 7
            assert sorted(picks) == list(range(20))


def test_without_noise_nothing_moves_and_the_batch_falls_by_lot():
    model, strategy = model_named("mlp"), NoiseStability(draws=3, scale=0.0)
    assert strategy.features(a_round(model, images())).eq(0).all()
    firsts = {strategy.select(a_round(model, images(), seed), 3).tolist()[0] for seed in range(20)}
    assert len(firsts) > 5


def test_projected_moves_keep_their_distances():
    now = a_round(model_named("mlp"), images(60))
    exact = NoiseStability(draws=300, width=10**6).features(now)
    projected = NoiseStability(draws=300, width=400).features(now)
    assert exact.shape == (60, 900)
    assert projected.shape == (60, 400)
    pairs = torch.triu_indices(60, 60, 1)
    ratio = torch.cdist(projected, projected)[pairs[0], pairs[1]] / torch.cdist(exact, exact)[pairs[0], pairs[1]]
    assert ratio.sub(1).abs().quantile(0.95) < 0.15


def test_the_same_noise_falls_on_the_whole_pool(monkeypatch):
    now = a_round(model_named("small_cnn"), images())
    whole = NoiseStability(draws=3).features(now)
    monkeypatch.setattr("alenv.strategies.noise_stability.BATCH", 7)
    torch.testing.assert_close(NoiseStability(draws=3).features(now), whole, atol=1e-6, rtol=1e-4)
    reverse = NoiseStability(draws=3).features(a_round(now.model, images().flip(0)))
    torch.testing.assert_close(reverse.flip(0), whole, atol=1e-6, rtol=1e-4)


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="scope=all or scope=head"):
        NoiseStability(scope="last_layer")
