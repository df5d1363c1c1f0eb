"""The task model: features, head and its two kinds of noise."""

import numpy as np
import pytest
import torch
from torch import nn

from alenv.model import Laplace, NoNoiseError, TaskModel, keep_below, random_bits
from alenv.nets.linear import linear
from alenv.nets.mlp import mlp
from alenv.nets.resnet import resnet
from alenv.nets.small_cnn import small_cnn
from alenv.streams import Streams


def normal(*shape, name="x", dtype=torch.float32):
    return torch.randn(shape, generator=Streams(0)(name), dtype=dtype)


def built(make, *args, **settings):
    with Streams(0).scoped("init"):
        return make(*args, **settings).eval().requires_grad_(False)


def noise(seed=0):
    return Streams(seed)("noise")


def with_posterior(features=None, dim=3, classes=4):
    model = built(linear, (dim,), classes)
    features = normal(12, dim, name="labelled") if features is None else features
    model.laplace = Laplace(features, model.head(features), torch.ones(len(features)), prior_precision=0.7)
    return model


MODELS = {"dropout": lambda: built(mlp, (3,), 4, width=6, depth=1, dropout=0.4), "laplace": with_posterior}


# features, head, forward


def test_the_model_normalises_stored_inputs_itself():
    model = built(linear, (1, 2, 2), 3, mean=torch.tensor(100.0), std=torch.tensor(50.0))
    x = torch.tensor([[[[0, 100], [200, 255]]]], dtype=torch.uint8)
    torch.testing.assert_close(model.normalized(x).flatten(), torch.tensor([-2.0, 0.0, 2.0, 3.1]))
    torch.testing.assert_close(model(x), model.linear(torch.tensor([[-2.0, 0.0, 2.0, 3.1]])))


def test_normalisation_travels_with_the_weights():
    first = built(mlp, (3,), 4, mean=5.0, std=2.0)
    second = built(mlp, (3,), 4)
    second.load_state_dict(first.state_dict())
    x = normal(7, 3)
    assert torch.equal(first(x), second(x))


@pytest.mark.parametrize("make", [mlp, linear, small_cnn])
def test_forward_is_the_head_on_the_features_and_stages_end_in_the_same_features(make):
    model = built(make, (1, 8, 8), 4)
    x = normal(5, 1, 8, 8)
    maps, h = model.stages(x)
    assert len(maps) >= 1
    assert h.shape == (5, model.feature_dim)
    assert torch.equal(h, model.features(x))
    assert torch.equal(model(x), model.head(model.features(x)))


def test_a_body_without_stages_offers_its_features_as_the_only_stage():
    maps, h = built(linear, (3,), 4).stages(normal(5, 3))
    assert len(maps) == 1
    assert torch.equal(maps[0], h)


def test_a_small_cnn_shows_one_map_per_block():
    maps, _ = built(small_cnn, (1, 8, 8), 4, widths=(3, 5)).stages(normal(2, 1, 8, 8))
    assert [tuple(m.shape) for m in maps] == [(2, 3, 4, 4), (2, 5, 2, 2)]


@pytest.mark.parametrize(("side", "first"), [(32, 32), (64, 16)])
def test_a_resnet_keeps_the_resolution_of_small_images_only(side, first):
    net = built(resnet, (1, side, side), 4)
    maps, h = net.stages(normal(2, 1, side, side))
    assert [tuple(m.shape[1:]) for m in maps] == [(w, first >> i, first >> i) for i, w in enumerate((64, 128, 256, 512))]
    assert h.shape == (2, 512)
    assert torch.equal(h, net.features(normal(2, 1, side, side)))


def test_a_resnet_of_eighteen_layers_has_the_published_size():
    assert sum(p.numel() for p in built(resnet, (3, 32, 32), 10).parameters()) == 11_173_962  # the CIFAR form's


# dropout


def test_dropped_keeps_the_mean_and_drops_its_share():
    model = built(mlp, (3,), 4, dropout=0.25)
    h = torch.ones(200, 256)
    dropped = model.dropped(h, noise())
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.02)
    assert (dropped[0] != dropped[1]).any()


def test_bits_of_dropout_are_fair_and_drop_the_share_that_was_asked_for():
    numbers = random_bits(torch.zeros(5000, dtype=torch.int64), noise()).view(torch.int16).view(5000, 4).int()
    for bit in range(16):
        assert float((numbers >> bit & 1).float().mean(0).sub(0.5).abs().max()) < 0.05
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    for dropout in (0.0, 0.001, 0.3, 0.5, 0.999):
        assert float((every < keep_below(dropout)).double().mean()) == pytest.approx(1 - dropout, abs=2**-16)


def test_without_dropout_dropped_returns_its_argument():
    h = normal(5, 3)
    assert built(mlp, (3,), 4, dropout=0.0).dropped(h, noise()) is h


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_dropout_draws_average_to_the_logits_without_noise(dropout):
    model = built(mlp, (3,), 4, width=6, depth=1, dropout=dropout)
    h = model.features(normal(5, 3))
    draws = model.draws(h, 20_000, noise())
    error = draws.std(0) / 20_000**0.5
    assert ((draws.mean(0) - model.head(h)).abs() < 5 * error + 1e-6).all()
    assert (draws.std(0) > 0.01).any()


def test_a_dropout_draw_is_one_mask_on_all_inputs():
    model = MODELS["dropout"]()
    h = model.features(normal(9, 3))
    draws = model.draws(h, 5, noise())
    for t, mask in enumerate((torch.rand(5, 1, 6, generator=noise()) < 0.6).float()):
        expected = torch.stack([model.linear.weight @ (row * mask[0] / 0.6) + model.linear.bias for row in h])
        torch.testing.assert_close(draws[t], expected)


def test_dropout_leaves_the_bias_of_a_head_alone():
    weight, bias = MODELS["dropout"]().head_draws(8, noise())
    assert weight.shape == (8, 4, 6)
    assert torch.equal(bias, MODELS["dropout"]().linear.bias.expand(8, 4))


# Laplace


def test_laplace_factors_are_those_of_the_curvature_worked_out_by_hand():
    features, logits = normal(5, 2, name="h", dtype=torch.float64), normal(5, 3, name="logits", dtype=torch.float64)
    weights = torch.tensor([1.0, 1.0, 0.0, 2.0, 1.0], dtype=torch.float64)
    factor = Laplace(features, logits, weights, prior_precision=0.7).factor().numpy()
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    for c in range(3):
        hessian = 0.7 * np.eye(3)
        for i in range(5):
            h = np.append(features[i].numpy(), 1.0)
            hessian += float(weights[i]) * p[i, c] * (1 - p[i, c]) * np.outer(h, h)
        np.testing.assert_allclose(factor[c] @ factor[c].T, hessian, rtol=1e-9)
        np.testing.assert_allclose(np.triu(factor[c], 1), 0)


def test_laplace_draws_have_the_inverse_curvature_as_covariance_and_no_correlation_between_classes():
    features, logits = 3 * normal(6, 2, name="h", dtype=torch.float64), normal(6, 3, name="logits", dtype=torch.float64)
    laplace = Laplace(features, logits, torch.ones(len(features)), prior_precision=0.5)
    draws = laplace.deviations(40_000, noise()).flatten(1).numpy()
    expected = np.zeros((9, 9))
    for c, factor in enumerate(laplace.factor().numpy()):
        expected[3 * c : 3 * c + 3, 3 * c : 3 * c + 3] = np.linalg.inv(factor @ factor.T)
    scale = np.sqrt(np.outer(expected.diagonal(), expected.diagonal()))
    np.testing.assert_allclose(np.cov(draws.T) / scale, expected / scale, atol=0.03)
    np.testing.assert_allclose(draws.mean(0) / np.sqrt(expected.diagonal()), 0, atol=0.03)
    assert (np.abs(expected / scale)[0, 1:3] > 0.1).any()  # otherwise the test could not tell H^-1 from its diagonal


def large(monkeypatch):
    monkeypatch.setattr("alenv.model.BLOCK_ELEMENTS", 0)


@pytest.mark.parametrize("alike", ["one example", "equal examples"])
def test_a_large_posterior_has_the_whole_curvature_where_it_is_a_kronecker_product(alike, monkeypatch):
    large(monkeypatch)
    h = torch.tensor([[0.6, -1.2]]).repeat(1 if alike == "one example" else 3, 1)
    logits, weights = torch.tensor([[1.0, 0.2, -0.5]]).expand(len(h), -1), torch.tensor([2.0, 0.5, 1.5])[: len(h)]
    draws = Laplace(h, logits, weights, prior_precision=0.5).deviations(40_000, noise()).flatten(1).double().numpy()
    x, p = np.array([0.6, -1.2, 1.0]), logits[0].double().softmax(0).numpy()
    precision = float(weights.sum()) * np.kron(np.diag(p) - np.outer(p, p), np.outer(x, x)) + 0.5 * np.eye(9)
    np.testing.assert_allclose(np.cov(draws.T), np.linalg.inv(precision), atol=0.06)
    assert np.abs(draws.mean(0)).max() < 0.03


def test_a_large_posterior_is_never_held_in_blocks_and_repeats_itself(monkeypatch):
    whole = torch.randn(6, 3, generator=noise()), torch.randn(6, 4, generator=noise()), torch.ones(6), 0.7
    assert Laplace(*whole).blockwise
    large(monkeypatch)
    laplace = Laplace(*whole)
    assert not laplace.blockwise
    monkeypatch.setattr(Laplace, "factor", lambda self: pytest.fail("blocks were made"))
    assert laplace.deviations(5, noise()).shape == (5, 4, 4)
    assert torch.equal(laplace.deviations(5, noise()), Laplace(*whole).deviations(5, noise()))


def test_both_forms_of_the_posterior_disagree_about_the_same_inputs(monkeypatch):
    generator = noise()
    centres = 2 * torch.randn(4, 6, generator=generator)
    x = centres[torch.arange(80) % 4] + torch.randn(80, 6, generator=generator)
    model = built(TaskModel, torch.nn.Identity(), 6, 4, solver="lbfgs")
    with torch.no_grad():
        model.linear.weight.copy_(centres)
        model.linear.bias.copy_(-centres.square().sum(1) / 2)

    def spread():
        model.laplace = Laplace(x[:24], model.head(x[:24]).detach(), torch.ones(24), prior_precision=1.0)
        p = model.draws(x, 4000, noise()).softmax(2)
        return (-(p.mean(0) * p.mean(0).log()).sum(1) + (p * p.log()).nansum(2).mean(0)).argsort().argsort().double()

    blocks = spread()
    large(monkeypatch)
    assert float(torch.corrcoef(torch.stack([blocks, spread()]))[0, 1]) > 0.8  # rank correlation of mutual information


def test_laplace_draws_are_the_optimum_plus_its_deviations():
    model = with_posterior()
    weight, bias = model.head_draws(6, noise())
    deviations = model.laplace.deviations(6, noise())
    torch.testing.assert_close(weight - model.linear.weight, deviations[:, :, :-1])
    torch.testing.assert_close(bias - model.linear.bias, deviations[:, :, -1])


def test_a_posterior_without_examples_is_the_prior():
    model = with_posterior(features=torch.empty(0, 3))
    deviations = model.laplace.deviations(20_000, noise())
    torch.testing.assert_close(deviations.var(0), torch.full((4, 4), 1 / 0.7), rtol=0.05, atol=0)


# draws


@pytest.mark.parametrize("kind", MODELS)
def test_draws_are_linear_heads_one_by_one(kind):
    model = MODELS[kind]()
    h = normal(5, model.feature_dim)
    weight, bias = model.head_draws(7, noise())
    expected = torch.stack([h @ w.T + b for w, b in zip(weight, bias, strict=True)])
    draws = model.draws(h, 7, noise())
    assert draws.shape == (7, 5, 4)
    torch.testing.assert_close(draws, expected)


@pytest.mark.parametrize("kind", MODELS)
def test_draws_on_blocks_are_slices_of_draws_on_the_whole(kind):
    model = MODELS[kind]()
    h = normal(23, model.feature_dim)
    whole = model.draws(h, 11, noise())
    blocks = torch.cat([model.draws(block, 11, noise()) for block in h.split(5)], 1)
    torch.testing.assert_close(blocks, whole, rtol=1e-5, atol=1e-6)
    order = torch.randperm(23, generator=noise(1))
    torch.testing.assert_close(model.draws(h[order], 11, noise()), whole[:, order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", MODELS)
def test_draws_follow_the_generator(kind):
    model = MODELS[kind]()
    h = normal(5, model.feature_dim)
    assert torch.equal(model.draws(h, 3, noise()), model.draws(h, 3, noise()))
    assert not torch.equal(model.draws(h, 3, noise()), model.draws(h, 3, noise(1)))


@pytest.mark.parametrize("kind", MODELS)
def test_draws_change_neither_weights_nor_buffers_nor_mode(kind):
    model = MODELS[kind]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    draws = model.draws(normal(5, model.feature_dim), 3, noise())
    draws.mul_(0)
    weight, bias = model.head_draws(3, noise())
    assert not weight.requires_grad
    assert not bias.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_a_model_without_noise_says_how_to_get_some():
    model = built(mlp, (3,), 4, dropout=0.0)
    assert not model.noisy
    with pytest.raises(NoNoiseError, match=r"net=linear .*dropout > 0"):
        model.draws(normal(5, 256), 3, noise())
    assert issubclass(NoNoiseError, ValueError)


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_with_dropout_or_a_posterior_is_noisy(kind):
    assert MODELS[kind]().noisy


# aux and companion


class LastMean(nn.Module):
    def forward(self, stages):
        return stages[-1].flatten(1).mean(1, keepdim=True)


def test_aux_outputs_are_the_extra_heads_on_the_stages():
    model = built(mlp, (3,), 4, width=6)
    assert model.aux_outputs(model.stages(normal(5, 3))[0]) == {}
    model.aux["mean"] = LastMean()
    stages, h = model.stages(normal(5, 3))
    found = model.aux_outputs(stages)
    assert list(found) == ["mean"]
    torch.testing.assert_close(found["mean"], h.mean(1, keepdim=True))


@pytest.mark.parametrize("make", [mlp, linear, small_cnn])
def test_a_companion_is_a_fresh_net_on_the_same_inputs_that_learns_features(make):
    model = built(make, (1, 8, 8), 4, mean=3.0, std=2.0)
    with Streams(0).scoped("companion"):
        other = model.companion(7)
    assert isinstance(other, TaskModel)
    assert other(normal(5, 1, 8, 8)).shape == (5, 7)
    assert torch.equal(other.mean, model.mean)
    assert other.solver == "sgd"
    assert not {id(p) for p in other.parameters()} & {id(p) for p in model.parameters()}


def test_a_net_without_companion_says_what_to_pass():
    with Streams(0).scoped("init"):
        model = TaskModel(nn.Flatten(), 3, 4)
    with pytest.raises(ValueError, match="pass companion= to TaskModel"):
        model.companion(7)


# nets


def test_nets_refuse_shapes_they_cannot_take():
    with pytest.raises(ValueError, match="depth >= 1 or a list of widths, got no hidden layer; for none use net=linear"):
        mlp((3,), 4, depth=0)
    with pytest.raises(ValueError, match=r"expected images .* got inputs of shape \(3,\); use net=mlp"):
        small_cnn((3,), 4)
    with pytest.raises(ValueError, match=r"net=resnet18 expected images .* got inputs of shape \(3,\); use net=mlp"):
        resnet((3,), 4)
    with pytest.raises(ValueError, match="expected depth 18, 34, 50, 101 or 152, got 20"):
        resnet((3, 32, 32), 4, depth=20)


@pytest.mark.parametrize("side", [2, 3, 8])
def test_small_cnn_trains_on_tiny_images_one_at_a_time(side):
    with Streams(0).scoped("init"):
        model = small_cnn((1, side, side), 4)
    assert model.train()(normal(1, 1, side, side)).isfinite().all()


def test_a_linear_net_is_fitted_to_its_optimum_and_the_others_descend():
    solvers = [built(make, (1, 8, 8), 4).solver for make in (linear, mlp, small_cnn)]
    assert solvers == ["lbfgs", "sgd", "sgd"]


def test_an_mlp_has_the_widths_it_is_told() -> None:
    with Streams(0).scoped("net"):
        model = mlp((3,), 2, width=[12, 7])
    assert [tuple(p.shape) for p in model.parameters()] == [(12, 3), (12,), (7, 12), (7,), (2, 7), (2,)]
    with pytest.raises(ValueError, match="got no hidden layer"):
        mlp((3,), 2, width=[])
