"""Softmax regression to its optimum, M problems at once."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

HISTORY = 10
CHECK_EVERY = 5  # iterations between looks at the convergence flags: each look makes a GPU wait


def fit_softmax(
    features: Float[Tensor, "M n D"],
    targets: Float[Tensor, "M n C"],
    weights: Float[Tensor, "M n"],
    *,
    prior_precision: float,
    tolerance: float = 1e-4,
    max_iterations: int = 200,
) -> Float[Tensor, "M C D+1"]:
    """Return the maximum a posteriori weights and biases (last column) of M softmax regressions.

    Minimises sum_i w_i CE(y_i, W h_i + b) + prior_precision / 2 (||W||^2 + ||b||^2) with L-BFGS (Liu & Nocedal 1989), each
    problem with its own steps and backtracking; the bias shares the prior so that the optimum is unique.

    Args:
        features: head inputs.
        targets: rows of class probabilities (one-hot for ordinary labels).
        weights: sample weights; 0 pads a problem with fewer examples.
        prior_precision: > 0.
        tolerance: stop when the largest gradient entry is below tolerance x max(1, sum of weights).
        max_iterations: upper bound on L-BFGS steps.
    """
    if prior_precision <= 0:
        raise ValueError(f"expected prior_precision > 0, got {prior_precision}; without a prior separable data have no optimum")
    h = torch.nn.functional.pad(features, (0, 1), value=1.0)
    objective = _Objective(h, targets, weights, prior_precision)
    theta = h.new_zeros(h.shape[0], targets.shape[2], h.shape[2])
    value, gradient = objective(theta)
    limit = tolerance * weights.sum(1).clamp(min=1)
    memory: list[tuple[Tensor, Tensor, Tensor]] = []
    # before any curvature is known, step by the inverse of the largest possible one
    scale = 1 / (0.5 * torch.einsum("mnd,mn->m", h * h, weights) + prior_precision)
    length = torch.ones_like(value)
    for iteration in range(max_iterations):
        done = gradient.flatten(1).abs().amax(1) <= limit
        if iteration % CHECK_EVERY == 0 and bool(done.all()):
            break
        direction = -_two_loop(gradient, memory, scale)
        move = _lanes(length) * direction
        new_value, new_gradient = objective(theta + move)
        # Armijo's condition, with the slack float32 needs; a problem that fails it stays and tries half the step next time
        slack = 1e-6 * value.abs().clamp(min=1e-3)
        taken = (new_value <= value + 1e-4 * (gradient * move).sum((1, 2)) + slack) & ~done
        length = torch.where(taken, 1.0, length / 2)
        change = new_gradient - gradient
        curvature, size = (move * change).sum((1, 2)), (change * change).sum((1, 2)).clamp(min=1e-30)
        good = (curvature > 1e-10 * size) & taken
        memory = [*memory[-(HISTORY - 1) :], (move, change, torch.where(good, 1 / curvature.where(good, 1.0), 0.0))]
        scale = torch.where(good, curvature / size, scale)
        theta = torch.where(_lanes(taken), theta + move, theta)
        value = torch.where(taken, new_value, value)
        gradient = torch.where(_lanes(taken), new_gradient, gradient)
    return theta


class _Objective:
    """Value (M,) and gradient (M, C, D+1) of the penalised log-likelihood."""

    def __init__(self, h: Tensor, targets: Tensor, weights: Tensor, prior: float) -> None:
        self.h, self.targets, self.weights, self.prior = h, targets, weights, prior

    def __call__(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = torch.log_softmax(self.h @ theta.mT, dim=2)  # (M, n, C)
        loss = -((self.targets * log_probs).sum(2) * self.weights).sum(1)
        residual = (log_probs.exp() - self.targets) * self.weights.unsqueeze(2)
        return loss + 0.5 * self.prior * (theta * theta).sum((1, 2)), residual.mT @ self.h + self.prior * theta


def _two_loop(gradient: Tensor, memory: list[tuple[Tensor, Tensor, Tensor]], scale: Tensor) -> Tensor:
    """Return the L-BFGS approximation of (inverse Hessian) x gradient, per problem."""
    q = gradient
    alphas = []
    for move, change, rho in reversed(memory):
        alpha = rho * (move * q).sum((1, 2))
        q = q - _lanes(alpha) * change
        alphas.append(alpha)
    q = _lanes(scale) * q
    for (move, change, rho), alpha in zip(memory, reversed(alphas), strict=True):
        beta = rho * (change * q).sum((1, 2))
        q = q + _lanes(alpha - beta) * move
    return q


def _lanes(values: Tensor) -> Tensor:
    return values[:, None, None]


def one_hot(targets: Int[Tensor, " n"], num_classes: int) -> Float[Tensor, "n C"]:
    """Return `targets` as rows of probabilities."""
    return torch.nn.functional.one_hot(targets, num_classes).float()
