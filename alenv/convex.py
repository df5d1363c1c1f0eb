"""Softmax regression to its optimum, M problems at once."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

HISTORY = 8
LINE = 16  # numbers: rows and columns are padded to whole cache lines, so that a problem's bits do not depend on its place
CURVATURE = 0.7  # what C p (1 - p) is taken for where a problem is preconditioned
ROUNDING = 8  # units of the last place that sums may be off by
SHRINK = 0.75  # problems that are done are dropped when at most this share of those in the batch is left
LOOK_EVERY = 5  # iterations between looks at the convergence flags on a GPU, which waits at each


def fit_softmax(
    features: Float[Tensor, "M n D"],
    targets: Float[Tensor, "M n C"],
    weights: Float[Tensor, "M n"],
    *,
    prior_precision: float,
    tolerance: float = 1e-4,
    max_iterations: int = 500,
) -> Float[Tensor, "M C D+1"]:
    """Return the maximum a posteriori weights and biases (last column) of M softmax regressions.

    Minimises sum_i w_i CE(y_i, W h_i + b) + prior_precision / 2 (||W||^2 + ||b||^2) with L-BFGS (Liu & Nocedal 1989), each
    problem with its own steps and backtracking; the bias shares the prior so that the optimum is unique. Where n <= D / 2,
    features are replaced by the Cholesky factor of their Gram matrix: the same problem with n columns. L-BFGS starts from the
    inverse of A = k H^T diag(w) H + prior I, one matrix for all classes, which saves a half to five sixths of the iterations.
    On CPU a problem's result does not depend on the others, bit by bit.

    Args:
        features: head inputs.
        targets: rows of class probabilities (one-hot for ordinary labels).
        weights: sample weights; 0 pads a problem with fewer examples.
        prior_precision: > 0.
        tolerance: stop when g^T H g, twice the distance to the optimum as L-BFGS sees it, falls below tolerance x the value (at
            least 0.001 nats an example).
        max_iterations: upper bound on L-BFGS steps.
    """
    if prior_precision <= 0:
        raise ValueError(f"expected prior_precision > 0, got {prior_precision}; without a prior separable data have no optimum")
    rows, width = targets.shape[1], features.shape[2] + 1
    h = F.pad(F.pad(features, (0, 1), value=1.0), (0, -width % LINE, 0, -rows % LINE))
    weights = F.pad(weights, (0, -rows % LINE))
    targets = F.pad(targets, (0, 0, 0, -rows % LINE)).mT.contiguous()  # (M, C, n)
    gram = _gram_factor(h) if 2 * h.shape[1] <= h.shape[2] else None
    columns = h if gram is None else gram.to(h.dtype)
    objective = _Objective(columns, targets, weights, prior_precision)
    inverse = _preconditioner(columns, weights, prior_precision, CURVATURE / targets.shape[1])
    theta = _minimize(objective, inverse, tolerance, max_iterations)
    if gram is not None:
        theta = torch.linalg.solve_triangular(gram, theta.double(), upper=False, left=False).to(h.dtype) @ h
    return theta[:, :, :width]


def _gram_factor(h: Float[Tensor, "M n E"]) -> Float[Tensor, "M n n"]:
    """Return the lower Cholesky factor of H H^T."""
    h = h.double()
    gram = h @ h.mT
    return torch.linalg.cholesky(gram + _diagonal(1e-12 * _trace(gram), gram.shape[1]))


def _preconditioner(
    h: Float[Tensor, "M n P"], weights: Float[Tensor, "M n"], prior: float, curvature: float
) -> Float[Tensor, "M P P"]:
    """Return the inverse of A; it need not be exact."""
    second = h.mT @ (h * (curvature * weights).unsqueeze(2))
    ridge = prior + ROUNDING * torch.finfo(h.dtype).eps * _trace(second)
    return torch.cholesky_inverse(torch.linalg.cholesky(second + _diagonal(ridge, second.shape[1])))


class _Objective:
    """Value (M,) and gradient (M, C, P) of the penalised log-likelihood."""

    def __init__(self, h: Tensor, targets: Tensor, weights: Tensor, prior: float) -> None:
        self.h, self.targets, self.weights, self.prior = h, targets, weights, prior

    def __call__(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = torch.log_softmax(theta @ self.h.mT, dim=1)  # (M, C, n)
        weights = self.weights.unsqueeze(1)
        loss = -(self.targets * log_probs * weights).flatten(1).sum(1)
        residual = (log_probs.exp() - self.targets) * weights
        return loss + 0.5 * self.prior * _dot(theta, theta), residual @ self.h + self.prior * theta

    def some(self, lanes: Tensor) -> "_Objective":
        """Return the objective of some of the problems."""
        return _Objective(self.h[lanes], self.targets[lanes], self.weights[lanes], self.prior)


class _State(NamedTuple):
    """Where M problems stand; `steered` is the gradient times the preconditioner, `floor` what small values count as."""

    lanes: Tensor
    theta: Tensor
    value: Tensor
    gradient: Tensor
    steered: Tensor
    length: Tensor
    floor: Tensor
    inverse: Tensor
    done: Tensor


def _minimize(objective: _Objective, inverse: Float[Tensor, "M P P"], tolerance: float, most: int) -> Float[Tensor, "M C P"]:
    """Return the minima."""
    theta = inverse.new_zeros(len(inverse), objective.targets.shape[1], inverse.shape[2])
    value, gradient = objective(theta)
    lanes, floor = torch.arange(len(inverse), device=theta.device), 1e-3 * objective.weights.sum(1)
    at = _State(lanes, theta, value, gradient, gradient @ inverse, torch.ones_like(value), floor, inverse, lanes < 0)
    found, history, rounding = theta.clone(), _History(theta), ROUNDING * torch.finfo(theta.dtype).eps
    for iteration in range(most):
        direction = history.direction(at.steered)
        slope = _dot(at.gradient, direction)
        at = at._replace(done=at.done | (slope <= tolerance * at.value.maximum(at.floor)))  # for good
        if theta.device.type == "cpu" or iteration % LOOK_EVERY == 0:
            left = torch.nonzero(~at.done).flatten()
            if len(left) == 0:
                break
            if len(left) <= SHRINK * len(slope):
                found[at.lanes] = at.theta
                at, objective, history = _State(*(part[left] for part in at)), objective.some(left), history.some(left)
                direction, slope = direction[left], slope[left]
        move = _lanes(-at.length) * direction
        value, gradient = objective(at.theta + move)
        steered = gradient @ at.inverse
        # Armijo's condition, with the slack that rounding needs; a problem that fails it stays and tries half the step next time
        slack = rounding * at.value.maximum(at.floor)
        taken = (value <= at.value - 1e-4 * at.length * slope + slack) & ~at.done
        wide, change, turned = _lanes(taken), gradient - at.gradient, steered - at.steered
        at = at._replace(
            theta=torch.where(wide, at.theta + move, at.theta), value=torch.where(taken, value, at.value),
            gradient=torch.where(wide, gradient, at.gradient), steered=torch.where(wide, steered, at.steered),
            length=torch.where(taken, 1.0, at.length / 2),
        )  # fmt: skip
        history.add(move, change, turned, taken, at.gradient)
    found[at.lanes] = at.theta
    return found


class _History:
    """The last moves s and changes of the gradient y, and the L-BFGS inverse Hessian they make of the preconditioner B.

    Byrd, Nocedal & Schnabel (1994), theorem 2.2: with R the upper triangle of (s_i . y_j), E its diagonal, g the scale and
    v = R^-1 S q, H q = g B q + S^T R^-T ((E + g Y B Y^T) v - g Y B q) - g B Y^T v. Pairs are rows of [S; Y B]. One that is
    refused leaves zeros, and a one in R.
    """

    def __init__(self, like: Float[Tensor, "M C P"]) -> None:
        self.pairs = like.new_zeros(len(like), 2 * HISTORY, like[0].numel())
        self.dots = torch.zeros(len(like), 2 * HISTORY, HISTORY, dtype=torch.float64, device=like.device)  # [S; Y B] Y^T
        self.scale = torch.ones(len(like), dtype=torch.float64, device=like.device)
        self.seen = torch.zeros(len(like), 2 * HISTORY, dtype=torch.float64, device=like.device)  # [S; Y B] gradient
        self.count = 0

    def some(self, lanes: Tensor) -> "_History":
        """Return the history of some of the problems."""
        kept = object.__new__(_History)
        kept.pairs, kept.dots, kept.scale = self.pairs[lanes], self.dots[lanes], self.scale[lanes]
        kept.seen, kept.count = self.seen[lanes], self.count
        return kept

    def add(self, move: Tensor, change: Tensor, steered: Tensor, taken: Tensor, gradient: Tensor) -> None:
        """Replace the oldest pair by a new one, in the problems that took the step and found curvature along it.

        Args:
            move: s.
            change: y.
            steered: y times the preconditioner.
            taken: who took the step.
            gradient: where the step ends.
        """
        curvature, size = _dot(move, change).double(), _dot(change, steered).double()
        good = taken & (curvature > 1e-10 * size) & (size > 0)
        place, wide = self.count % HISTORY, _lanes(good)
        self.count += 1
        self.pairs[:, place] = torch.where(wide, move, 0.0).flatten(1)
        self.pairs[:, HISTORY + place] = torch.where(wide, steered, 0.0).flatten(1)
        # two columns in one product: a product with one column would go another way for one problem than for many
        columns = torch.stack([torch.where(wide, change, 0.0).flatten(1), gradient.flatten(1)], 1)
        dots = (self.pairs @ columns.mT).double()  # (M, 2 x HISTORY, 2)
        self.dots[:, :, place] = dots[:, :, 0]
        self.dots[:, HISTORY + place] = self.dots[:, HISTORY:, place]
        self.scale = torch.where(good, curvature / size.clamp(min=1e-300), self.scale)
        self.seen = dots[:, :, 1]

    def direction(self, steered: Tensor) -> Tensor:
        """Return H times the gradient, given the preconditioner times the gradient."""
        if self.count == 0:
            return steered
        order = torch.arange(self.count, self.count + HISTORY, device=steered.device) % HISTORY  # oldest first
        q, dots = self.seen.unsqueeze(2), self.dots[:, :, order]
        sy, yy, yq = dots[:, order], dots[:, HISTORY + order], q[:, HISTORY + order]
        diagonal, scale = sy.diagonal(dim1=1, dim2=2), _lanes(self.scale)
        upper = sy.triu(1) + torch.diag_embed(torch.where(diagonal > 0, diagonal, 1.0))
        v = torch.linalg.solve_triangular(upper, q[:, order], upper=True)
        first = torch.linalg.solve_triangular(upper.mT, diagonal.unsqueeze(2) * v + scale * (yy @ v - yq), upper=False)
        both = torch.empty_like(q)
        both[:, order], both[:, HISTORY + order] = first, -scale * v
        return scale.to(steered.dtype) * steered + (both.mT.to(steered.dtype) @ self.pairs).view_as(steered)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _lanes(values: Tensor) -> Tensor:
    return values[:, None, None]


def _trace(matrices: Float[Tensor, "M s s"]) -> Float[Tensor, " M"]:
    return matrices.diagonal(dim1=1, dim2=2).sum(1)


def _diagonal(values: Float[Tensor, " M"], size: int) -> Float[Tensor, "M s s"]:
    return torch.diag_embed(values.unsqueeze(1).expand(-1, size))


def one_hot(targets: Int[Tensor, " n"], num_classes: int) -> Float[Tensor, "n C"]:
    """Return `targets` as rows of probabilities."""
    return F.one_hot(targets, num_classes).float()
