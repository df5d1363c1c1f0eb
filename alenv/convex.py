"""Softmax regression to its optimum, M problems at once."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alenv.geometry import products

HISTORY = 8
LINE = 16  # numbers: matrices are padded to whole cache lines, so that a problem's bits do not depend on its place
LANDMARKS = 128  # examples that tell enough of the curvature where the prior outweighs most of it
CURVATURE = 0.7  # what C p (1 - p) is taken for where a problem is preconditioned
ROUNDING = 8  # units of the last place that sums may be off by
WIDE = 2**24  # multiplications from which on a Gram matrix is made as `geometry.products` does
SHRINK = 0.75  # problems that are done are dropped when at most this share of those in the batch is left
LOOK_EVERY = 5  # iterations between looks at the convergence flags on a GPU, which waits at each


def fit_softmax(
    features: Float[Tensor, "M n D"],
    targets: Float[Tensor, "M n C"],
    weights: Float[Tensor, "M n"],
    *,
    prior_precision: float,
    tolerance: float = 1e-5,
    max_iterations: int = 500,
) -> Float[Tensor, "M C D+1"]:
    """Return the maximum a posteriori weights and biases (last column) of M softmax regressions.

    Minimises sum_i w_i CE(y_i, W h_i + b) + prior_precision / 2 (||W||^2 + ||b||^2) with L-BFGS (Liu & Nocedal 1989), each
    problem with its own steps and backtracking; the bias shares the prior so that the optimum is unique. L-BFGS starts from the
    inverse of A = k H^T diag(w) H + prior I, one matrix for all classes, which saves a half to five sixths of the iterations;
    where the prior outweighs most of it, a part of the examples stands for A, and where n <= D / 2, thetas are combinations of
    the examples and all is n wide. On CPU a problem's result does not depend on the others, bit by bit.

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
    rows, width, columns = targets.shape[1], features.shape[2] + 1, LINE // math.gcd(targets.shape[2], 2)
    h = features.new_empty(len(features), rows + -rows % LINE, width + -width % columns)
    h[:, :rows, : width - 1], h[:, rows:], h[:, :, width - 1 :] = features, 0, 0  # nothing but zeros in padding
    h[:, :rows, width - 1] = (weights > 0).to(h.dtype)
    root = F.pad(weights, (0, -rows % LINE)).sqrt().unsqueeze(1)
    targets = F.pad(targets, (0, 0, 0, -rows % LINE)).mT.contiguous()  # (M, C, n)
    given = (h, targets, root, torch.full_like(root[:, :, :1], prior_precision))
    thetas = h.new_empty(*targets.shape[:2], h.shape[2])
    sizable = min(h.shape[1:]) >= 2 * LANDMARKS
    flat = _flat(*given) if sizable else torch.zeros(len(h), dtype=torch.bool, device=h.device)
    for kind, chosen in ((_Landmarks, flat), (_Dual if 2 * h.shape[1] <= h.shape[2] else _Primal, ~flat)):
        lanes = torch.nonzero(chosen).flatten()
        if len(lanes):
            problems = kind.of(*(given if len(lanes) == len(h) else (part[lanes] for part in given)))
            thetas[lanes] = problems.weights(_minimize(problems, tolerance, max_iterations))
    return thetas[:, :, :width]


def _flat(h: Tensor, targets: Tensor, root: Tensor, prior: Tensor) -> Bool[Tensor, " M"]:
    """Return where the prior outweighs the data in most directions: there a part of the examples tells enough of A."""
    sizes = torch.linalg.vector_norm(h, dim=2) * root.squeeze(1)
    return CURVATURE / targets.shape[1] * sizes.square().sum(1) <= prior.flatten() * h.shape[2]


class _Problems(NamedTuple):
    """M penalised log-likelihoods; called with parameters, they return values, gradients and what steers by them.

    Attributes:
        h: (M, n, P) features, or whatever a subclass computes logits from.
        targets: (M, C, n).
        root: (M, 1, n) square roots of the sample weights.
        prior: (M, 1, 1) its precision.
        inverse: (M, P, P) of the preconditioner's matrix, or of what stands for it.
        rows: landmarks, where the preconditioner has some.
    """

    h: Float[Tensor, "M n P"]
    targets: Float[Tensor, "M C n"]
    root: Float[Tensor, "M 1 n"]
    prior: Float[Tensor, "M 1 1"]
    inverse: Float[Tensor, "M s s"]
    rows: Float[Tensor, "M m P"]

    def __call__(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the values (M,), the gradients and the gradients times A^-1."""
        loss, residual = self.likelihood(theta @ self.h.mT)
        gradient = (residual * self.root) @ self.h + self.prior * theta
        return loss + 0.5 * self.prior.flatten() * _dot(theta, theta), gradient, self.steered(gradient)

    def steered(self, gradient: Float[Tensor, "M C P"]) -> Float[Tensor, "M C P"]:
        """Return a gradient times A^-1."""
        return gradient @ self.inverse

    def weights(self, theta: Tensor) -> Float[Tensor, "M C P"]:
        """Return parameters as weights of the features."""
        return theta

    def likelihood(self, logits: Float[Tensor, "M C n"]) -> tuple[Float[Tensor, " M"], Float[Tensor, "M C n"]]:
        """Return the weighted cross-entropies and the residuals p - y, times the root of the weights."""
        log_probs = torch.log_softmax(logits, dim=1)
        loss = -(self.targets * log_probs * self.root.square()).flatten(1).sum(1)
        return loss, (log_probs.exp() - self.targets) * self.root


class _Primal(_Problems):
    """Steered by A itself."""

    @classmethod
    def of(cls, h: Tensor, targets: Tensor, root: Tensor, prior: Tensor) -> "_Primal":
        """Return the problems, with the inverse of A = k H^T diag(w) H + prior I."""
        plain = ((root == 0) | (root == 1)).all(2, keepdim=True)  # then h steers as well without them
        scaled = h if bool(plain.all()) else torch.where(plain, h, h * root.mT)
        gram = _gram(scaled.mT).mul_(CURVATURE / targets.shape[1])
        return cls(h, targets, root, prior, _ridge_inverse(gram, prior), h[:, :0])


class _Landmarks(_Problems):
    """Steered by what every few examples, R, tell of A: A^-1 = (I - R^T (R R^T + prior I)^-1 R) / prior (Woodbury)."""

    @classmethod
    def of(cls, h: Tensor, targets: Tensor, root: Tensor, prior: Tensor) -> "_Landmarks":
        """Return the problems, with R, weighted for all examples, and the inverse of R R^T + prior I."""
        count = min(max(LANDMARKS, h.shape[1] // 8), h.shape[2] // 2)
        every = h.shape[1] // count
        some = root[:, :, ::every]
        share = root.square().sum(2, keepdim=True) / some.square().sum(2, keepdim=True).clamp(min=1e-30)
        rows = h[:, ::every] * some.mT * (CURVATURE / targets.shape[1] * share).sqrt()
        return cls(h, targets, root, prior, _ridge_inverse(_gram(rows), prior), rows)

    def steered(self, gradient: Tensor) -> Tensor:
        return (gradient - ((gradient @ self.rows.mT) @ self.inverse) @ self.rows) / self.prior


class _Dual(_Problems):
    """Parameters are the coefficients a (M, C, n) of theta = a diag(w)^(1/2) H; `h` is K = diag(w)^(1/2) H H^T diag(w)^(1/2).

    The gradient in theta is u diag(w)^(1/2) H with u = (p - y) diag(w)^(1/2) + prior a. With moves given by coefficients and
    gradients by u K, plain sums of products are inner products in theta, and u (k K + prior I)^-1 are the coefficients of the
    preconditioned gradient: L-BFGS takes the steps that it takes on theta.
    """

    @classmethod
    def of(cls, h: Tensor, targets: Tensor, root: Tensor, prior: Tensor) -> "_Dual":
        """Return the problems, with the inverse of k K + prior I; `rows` are those of H."""
        gram = _gram(h).mul_(root).mul_(root.mT)
        return cls(gram, targets, root, prior, _ridge_inverse(CURVATURE / targets.shape[1] * gram, prior), h)

    def __call__(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the values, u K and u (k K + prior I)^-1."""
        scaled = theta @ self.h  # logits times the root of the weights
        loss, residual = self.likelihood(scaled / self.root.clamp(min=1e-30))
        u = residual + self.prior * theta
        return loss + 0.5 * self.prior.flatten() * _dot(theta, scaled), u @ self.h, u @ self.inverse

    def weights(self, theta: Tensor) -> Tensor:
        return (theta * self.root) @ self.rows


class _State(NamedTuple):
    """Where M problems stand; `floor` is what small values count as."""

    lanes: Tensor
    theta: Tensor
    value: Tensor
    gradient: Tensor
    steered: Tensor
    length: Tensor
    floor: Tensor
    done: Tensor


def _minimize(problems: _Problems, tolerance: float, most: int) -> Float[Tensor, "M C P"]:
    """Return the minima."""
    theta = problems.h.new_zeros(len(problems.h), problems.targets.shape[1], problems.h.shape[2])
    lanes, floor = torch.arange(len(theta), device=theta.device), 1e-3 * problems.root.square().sum((1, 2))
    value, gradient, steered = problems(theta)
    at = _State(lanes, theta, value, gradient, steered, torch.ones_like(value), floor, lanes < 0)
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
                at, problems = _State(*(part[left] for part in at)), type(problems)(*(part[left] for part in problems))
                history, direction, slope = history.some(left), direction[left], slope[left]
        move = _lanes(-at.length) * direction
        value, gradient, steered = problems(at.theta + move)
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


def _gram(rows: Float[Tensor, "M s n"]) -> Float[Tensor, "M s s"]:
    """Return rows rows^T; large ones one by one, as `products` makes them in half of a batched product's time."""
    if not rows.is_cpu or rows[0].numel() * rows.shape[1] < WIDE:
        return rows @ rows.mT
    return torch.stack([products(one, one) for one in rows.contiguous()])


def _ridge_inverse(matrices: Float[Tensor, "M s s"], prior: Float[Tensor, "M 1 1"]) -> Float[Tensor, "M s s"]:
    """Return the inverse of positive semidefinite matrices + prior I, which are overwritten; it need not be exact."""
    diagonal = matrices.diagonal(dim1=1, dim2=2)
    diagonal += (prior.flatten() + ROUNDING * torch.finfo(matrices.dtype).eps * diagonal.sum(1)).unsqueeze(1)
    return torch.cholesky_inverse(torch.linalg.cholesky(matrices))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _lanes(values: Tensor) -> Tensor:
    return values[:, None, None]


def one_hot(targets: Int[Tensor, " n"], num_classes: int) -> Float[Tensor, "n C"]:
    """Return `targets` as rows of probabilities."""
    return F.one_hot(targets, num_classes).float()
