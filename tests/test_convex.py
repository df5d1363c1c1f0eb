"""Softmax regression against scikit-learn and its own gradient."""

import numpy as np
import pytest
import torch

from alenv import convex
from alenv.convex import fit_softmax, one_hot
from alenv.streams import Streams

TIGHT = {"tolerance": 1e-14, "max_iterations": 2000}


def problem(n=60, dim=4, classes=3, problems=1, seed=0, dtype=torch.float64):
    """Noisy linear data, so that classes overlap."""
    generator = Streams(seed)("convex")
    features = torch.randn(problems, n, dim, generator=generator, dtype=dtype)
    truth = torch.randn(problems, dim, classes, generator=generator, dtype=dtype)
    logits = features @ truth + 1.5 * torch.randn(problems, n, classes, generator=generator, dtype=dtype)
    targets = logits.argmax(2)
    weights = torch.rand(problems, n, generator=generator, dtype=dtype) + 0.5
    return features, targets, weights


def encoded(targets, classes=3, dtype=torch.float64):
    return torch.stack([one_hot(t, classes) for t in targets]).to(dtype)


def sklearn_optimum(features, targets, weights, prior):
    from sklearn.linear_model import LogisticRegression

    padded = np.concatenate([features.numpy(), np.ones((len(features), 1))], axis=1)
    fitted = LogisticRegression(C=1 / prior, fit_intercept=False, tol=1e-10, max_iter=10_000)
    return torch.from_numpy(fitted.fit(padded, targets.numpy(), sample_weight=weights.numpy()).coef_)


@pytest.mark.parametrize("prior", [0.01, 1.0, 30.0])
def test_the_optimum_is_sklearns_with_a_penalised_bias_column(prior):
    features, targets, weights = problem()
    ours = fit_softmax(features, encoded(targets), weights, prior_precision=prior, **TIGHT)[0]
    torch.testing.assert_close(ours, sklearn_optimum(features[0], targets[0], weights[0], prior), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("tolerance", "distance"), [(1e-4, 0.05), (1e-6, 0.005)])
def test_single_precision_comes_as_close_as_the_tolerance_asks(tolerance, distance):
    features, targets, weights = problem(n=200, dim=10, classes=5)
    one_hots = encoded(targets, 5, torch.float32)
    ours = fit_softmax(features.float(), one_hots, weights.float(), prior_precision=1.0, tolerance=tolerance)[0]
    exact = sklearn_optimum(features[0], targets[0], weights[0], 1.0)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, rtol=0.02, atol=distance)


def test_five_problems_at_once_equal_one_by_one():
    features, targets, weights = problem(problems=5)
    features[3] *= 20  # problems of different difficulty take different steps
    together = fit_softmax(features, encoded(targets), weights, prior_precision=0.5, **TIGHT)
    alone = [
        fit_softmax(f[None], encoded(t[None]), w[None], prior_precision=0.5, **TIGHT)[0]
        for f, t, w in zip(features, targets, weights, strict=True)
    ]
    torch.testing.assert_close(together, torch.stack(alone), rtol=0, atol=1e-4)


def test_a_problem_that_is_done_rests_while_its_neighbours_go_on():
    features, targets, weights = problem(problems=2)
    features[1] *= 20
    loose = {"prior_precision": 0.01, "tolerance": 1e-2}
    together = fit_softmax(features, encoded(targets), weights, **loose)[0]
    alone = fit_softmax(features[:1], encoded(targets[:1]), weights[:1], **loose)[0]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)


def test_steps_that_overshoot_are_shortened():
    generator = torch.Generator().manual_seed(4)  # among few seeds where L-BFGS without backtracking does not arrive
    features = torch.randn(1, 60, 5, generator=generator, dtype=torch.float64) * torch.tensor([1, 1, 5, 1, 0.1]).double()
    truth = torch.randn(1, 5, 3, generator=generator, dtype=torch.float64)
    targets = (features @ truth + 2 * torch.randn(1, 60, 3, generator=generator, dtype=torch.float64)).argmax(2)
    features[0, :3] *= 30
    weights = torch.ones(1, 60, dtype=torch.float64)
    theta = fit_softmax(features, encoded(targets), weights, prior_precision=1e-4, tolerance=1e-12, max_iterations=1000)
    padded = torch.nn.functional.pad(features, (0, 1), value=1.0)
    gradient = ((padded @ theta.mT).softmax(2) - encoded(targets)).mT @ padded + 1e-4 * theta
    assert gradient.abs().max() <= 1e-6 * 60


def test_rows_of_weight_zero_only_pad():
    features, targets, weights = problem(problems=2)
    long = torch.cat([features, torch.full((2, 30, 4), 7.0, dtype=torch.float64)], 1)
    long_targets = torch.cat([targets, torch.ones(2, 30, dtype=torch.int64)], 1)
    long_weights = torch.cat([weights, torch.zeros(2, 30, dtype=torch.float64)], 1)
    torch.testing.assert_close(
        fit_softmax(long, encoded(long_targets), long_weights, prior_precision=1.0, **TIGHT),
        fit_softmax(features, encoded(targets), weights, prior_precision=1.0, **TIGHT),
        rtol=0, atol=1e-5,
    )  # fmt: skip


def test_a_weight_of_two_equals_an_example_seen_twice():
    features, targets, weights = problem(n=20)
    doubled = [torch.cat([part, part[:, :5]], 1) for part in (features, targets, weights)]
    weights = torch.cat([2 * weights[:, :5], weights[:, 5:]], 1)
    torch.testing.assert_close(
        fit_softmax(doubled[0], encoded(doubled[1]), doubled[2], prior_precision=1.0, **TIGHT),
        fit_softmax(features, encoded(targets), weights, prior_precision=1.0, **TIGHT),
        rtol=0, atol=1e-5,
    )  # fmt: skip


def test_a_soft_target_equals_one_weighted_copy_per_class():
    features, _, weights = problem(n=30)
    soft = torch.rand(1, 30, 3, generator=Streams(0)("soft"), dtype=torch.float64) + 0.1
    soft = soft / soft.sum(2, keepdim=True)
    ours = fit_softmax(features, soft, weights, prior_precision=0.3, **TIGHT)[0]
    copies = features[0].repeat_interleave(3, 0)
    classes = torch.arange(3).repeat(30)
    expected = sklearn_optimum(copies, classes, (weights[0, :, None] * soft[0]).flatten(), 0.3)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prior", [0.1, 10.0])
def test_the_gradient_at_the_optimum_is_zero_by_autograd(prior):
    features, targets, weights = problem(problems=3, classes=4)
    theta = fit_softmax(features, encoded(targets, 4), weights, prior_precision=prior, **TIGHT).requires_grad_()
    logits = features @ theta[:, :, :-1].mT + theta[:, None, :, -1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    ((losses * weights.flatten()).sum() + prior / 2 * theta.square().sum()).backward()
    assert theta.grad.abs().max() < 1e-5
    assert theta.detach().abs().max() > 0.05


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
def test_it_stops_within_the_tolerance_that_was_asked_for(tolerance):
    features, targets, weights = problem(n=100, problems=5)
    targets = encoded(targets)

    def value(theta):
        logits = features @ theta[:, :, :-1].mT + theta[:, None, :, -1]
        return (
            (logits.logsumexp(2) * weights).sum(1)
            - (logits * targets * weights[..., None]).sum((1, 2))
            + theta.square().sum((1, 2)) / 2
        )

    best = value(fit_softmax(features, targets, weights, prior_precision=1.0, **TIGHT))
    found = value(fit_softmax(features, targets, weights, prior_precision=1.0, tolerance=tolerance))
    assert (found >= best).all()
    assert (found <= best * (1 + tolerance)).all()


@pytest.mark.parametrize(("n", "dim"), [(20, 6), (33, 70), (100, 48), (160, 30)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_problem_has_the_same_bits_whatever_else_is_solved_with_it(n, dim, dtype):
    features, targets, weights = problem(n, dim, 3, problems=50, dtype=dtype)
    features[3] *= 20  # problems of different difficulty, so that some are done early and dropped
    features[7] *= 0.1
    targets = encoded(targets, dtype=dtype)

    def solve(lanes):
        return fit_softmax(features[lanes], targets[lanes], weights[lanes], prior_precision=0.1)

    together = solve(list(range(50)))
    for lanes in ([0], [3], [49], [7, 3], list(range(20, 27))):
        assert torch.equal(solve(lanes), together[lanes])


def test_few_examples_of_many_features_have_the_same_optimum():
    features, targets, weights = problem(n=12, dim=40)
    ours = fit_softmax(features, encoded(targets), weights, prior_precision=0.5, **TIGHT)[0]
    torch.testing.assert_close(ours, sklearn_optimum(features[0], targets[0], weights[0], 0.5), rtol=1e-4, atol=1e-5)


def test_duplicates_among_few_examples_do_no_harm():
    features, targets, weights = problem(n=6, dim=40)
    features, targets, weights = (part.repeat_interleave(2, 1) for part in (features, targets, weights))
    ours = fit_softmax(features, encoded(targets), weights, prior_precision=0.5, **TIGHT)[0]
    torch.testing.assert_close(ours, sklearn_optimum(features[0], targets[0], weights[0], 0.5), rtol=1e-4, atol=1e-5)


def test_directions_of_very_different_scale_take_few_steps(monkeypatch):
    features, targets, weights = problem(n=200, dim=8)
    features = features * torch.logspace(-2, 1, 8, dtype=torch.float64)
    steps, evaluate = [], convex._Problems.likelihood
    monkeypatch.setattr(convex._Problems, "likelihood", lambda self, logits: steps.append(1) or evaluate(self, logits))
    fit_softmax(features, encoded(targets), weights, prior_precision=0.1)
    assert len(steps) <= 25  # without the preconditioner about 60


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_separable_data_stay_finite_and_are_separated(scale):
    features = scale * torch.tensor([[[-2.0], [-1.0], [1.0], [2.0]]])
    targets = torch.tensor([[0, 0, 1, 1]])
    theta = fit_softmax(features, encoded(targets, 2, torch.float32), torch.ones(1, 4), prior_precision=1e-4)
    assert theta.isfinite().all()
    logits = features[0] @ theta[0, :, :-1].T + theta[0, :, -1]
    assert logits.argmax(1).tolist() == [0, 0, 1, 1]


def test_without_examples_that_count_the_prior_alone_gives_zero():
    features, targets, _ = problem(n=5)
    theta = fit_softmax(features, encoded(targets), torch.zeros(1, 5, dtype=torch.float64), prior_precision=1.0)
    assert (theta == 0).all()


def test_the_arguments_are_left_alone():
    features, targets, weights = problem(n=10)
    targets = encoded(targets)
    before = [part.clone() for part in (features, targets, weights)]
    fit_softmax(features, targets, weights, prior_precision=1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, (features, targets, weights), strict=True))


@pytest.mark.parametrize("prior", [0.0, -1.0])
def test_a_prior_that_is_not_positive_raises(prior):
    features, targets, weights = problem(n=5)
    with pytest.raises(ValueError, match=f"expected prior_precision > 0, got {prior}"):
        fit_softmax(features, encoded(targets), weights, prior_precision=prior)


def test_one_hot_rows_carry_a_one_at_the_class():
    rows = one_hot(torch.tensor([2, 0]), 4)
    assert rows.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
    assert rows.dtype == torch.float32
    assert one_hot(torch.tensor([], dtype=torch.int64), 4).shape == (0, 4)


@pytest.mark.parametrize(("n", "dim", "kind"), [(300, 280, "_Landmarks"), (300, 900, "_Landmarks"), (100, 300, "_Dual")])
def test_every_form_of_a_problem_has_sklearns_optimum(monkeypatch, n, dim, kind):
    features, targets, weights = problem(n=n, dim=dim)
    features = features / features.norm(dim=2, keepdim=True)
    made, of = [], getattr(convex, kind).of.__func__
    monkeypatch.setattr(getattr(convex, kind), "of", classmethod(lambda cls, *given: made.append(1) or of(cls, *given)))
    weights[0, :5] = 0
    ours = fit_softmax(features, encoded(targets), weights, prior_precision=0.5, **TIGHT)[0]
    torch.testing.assert_close(ours, sklearn_optimum(features[0], targets[0], weights[0], 0.5), rtol=1e-4, atol=1e-5)
    assert made == [1]


def test_problems_whose_prior_outweighs_their_data_and_others_keep_their_bits_together():
    features, targets, weights = problem(n=300, dim=270, problems=6, dtype=torch.float32)
    features[::2] /= features[::2].norm(dim=2, keepdim=True)
    targets = encoded(targets, dtype=torch.float32)
    together = fit_softmax(features, targets, weights, prior_precision=1.0)
    for lane in range(6):
        alone = fit_softmax(features[[lane]], targets[[lane]], weights[[lane]], prior_precision=1.0)
        assert torch.equal(alone[0], together[lane])


def test_landmarks_replace_most_iterations_where_the_prior_outweighs_the_data(monkeypatch):
    features, targets, weights = problem(n=512, dim=300)
    features = features / features.norm(dim=2, keepdim=True) + 1
    features = features / features.norm(dim=2, keepdim=True)
    evaluate, counts = convex._Problems.likelihood, []
    for steered in (convex._Landmarks.steered, lambda self, gradient: gradient / self.prior):
        steps = []
        monkeypatch.setattr(convex._Problems, "likelihood", lambda self, z, steps=steps: steps.append(1) or evaluate(self, z))
        monkeypatch.setattr(convex._Landmarks, "steered", steered)
        fit_softmax(features, encoded(targets), weights, prior_precision=1.0)
        counts.append(len(steps))
    assert counts[0] <= 8
    assert counts[1] >= 1.5 * counts[0]
