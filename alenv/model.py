"""The task model: features and a linear head, with declared noise."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

Solver = Literal["lbfgs", "probe", "sgd"]
Tune = Literal["all", "probe", "head"]
SOLVERS: Mapping[str, Solver] = {"all": "sgd", "probe": "probe", "head": "lbfgs"}
Module = TypeVar("Module", bound=nn.Module)


BLOCK_ELEMENTS = 2**27  # numbers of a posterior in blocks: 0.5 GB of float32


class NoNoiseError(ValueError):
    """A strategy asked for stochastic outputs of a model that has no source of noise."""


class Laplace:
    """Gaussian posterior of a softmax head at its optimum, in independent blocks per class (Daxberger et al. 2021).

    Block c is N((W_c, b_c), H_c^-1) with H_c = sum_i w_i p_ic (1 - p_ic) [h_i, 1] [h_i, 1]^T + prior_precision I over the
    n training examples of weight w_i. Factors are computed at the first draw, and so are logits that come as a function.

    Where these blocks would be too large (1,000 classes of 2,048 features: 17 GB) the precision is A x G + prior_precision I,
    with Kronecker factors A = sum_i w_i [h_i, 1] [h_i, 1]^T and G, the weighted mean of diag(p_i) - p_i p_i^T (Ritter et al.
    2018, but the prior is not approximated): E^2 + C^2 numbers. That is the full curvature where all p_i or all h_i are alike.
    """

    def __init__(
        self, features: Float[Tensor, "n D"], logits: Float[Tensor, "n C"] | Callable[[], Tensor], weights: Float[Tensor, " n"],
        prior_precision: float,
    ) -> None:  # fmt: skip
        self._features, self._given, self._weights, self._prior = features, logits, weights, prior_precision
        self._factor: Tensor | None = None
        self._kronecker: _Kronecker | None = None

    @functools.cached_property
    def _logits(self) -> Float[Tensor, "n C"]:
        return self._given if isinstance(self._given, Tensor) else self._given()

    @property
    def blockwise(self) -> bool:
        """Whether the blocks per class are small enough to be held."""
        return self._logits.shape[1] * (self._features.shape[1] + 1) ** 2 <= BLOCK_ELEMENTS

    def factor(self) -> Float[Tensor, "C E E"]:
        """Return the lower Cholesky factors of H_c; E = D + 1, the bias last."""
        if self._factor is None:
            h = F.pad(self._features, (0, 1), value=1.0)  # (n, D+1)
            p = self._logits.softmax(1)
            curvature = (self._weights * (p * (1 - p)).T).unsqueeze(1)  # (C, 1, n)
            hessian = (h.T.unsqueeze(0) * curvature) @ h  # (C, D+1, D+1)
            eye = torch.eye(h.shape[1], device=h.device, dtype=h.dtype)
            self._factor = torch.linalg.cholesky(hessian + self._prior * eye)
        return self._factor

    def deviations(self, draws: int, generator: torch.Generator) -> Float[Tensor, "T C E"]:
        """Return `draws` samples of (W, b) minus its mean."""
        if not self.blockwise:
            if self._kronecker is None:
                h = F.pad(self._features, (0, 1), value=1.0)
                self._kronecker = _Kronecker(h, self._logits.softmax(1), self._weights, self._prior)
            return self._kronecker.deviations(draws, generator)
        factor = self.factor()
        classes, width, _ = factor.shape
        noise = torch.randn(classes, width, draws, generator=generator, device=factor.device, dtype=factor.dtype)
        return torch.linalg.solve_triangular(factor.mT, noise, upper=True).permute(2, 0, 1)


class _Kronecker:
    """Samples of N(0, (A x G + prior I)^-1), by the eigenvectors of both factors."""

    def __init__(self, h: Float[Tensor, "n E"], p: Float[Tensor, "n C"], weights: Float[Tensor, " n"], prior: float) -> None:
        weighted = p * weights.unsqueeze(1)
        curvature = (weighted.sum(0).diag() - weighted.T @ p) / weights.sum()
        a, self._right = torch.linalg.eigh((h * weights.unsqueeze(1)).T @ h)
        g, self._left = torch.linalg.eigh(curvature)
        self._spread = (g.clamp(min=0).outer(a.clamp(min=0)) + prior).rsqrt()  # (C, E)

    def deviations(self, draws: int, generator: torch.Generator) -> Float[Tensor, "T C E"]:
        spread = self._spread
        noise = torch.randn(draws, *spread.shape, generator=generator, device=spread.device, dtype=spread.dtype)
        return self._left @ (noise * spread) @ self._right.T


def apply_heads(h: Float[Tensor, "B D"], heads: tuple[Float[Tensor, "T C D"], Float[Tensor, "T C"]]) -> Float[Tensor, "T B C"]:
    """Return the logits of T heads on the same features, from one product of width T C."""
    weight, bias = heads
    logits = h @ weight.flatten(0, 1).T  # (B, T C)
    return logits.unflatten(1, weight.shape[:2]).transpose(0, 1) + bias.unsqueeze(1)


def random_bits(room: Int[Tensor, "..."], generator: torch.Generator) -> Int[Tensor, "..."]:
    """Fill `room`, of int64, and return it: four numbers of 16 bits each, drawn in a third of the time of as many floats."""
    return room.random_(-(2**63), None, generator=generator)


def keep_below(dropout: float) -> int:
    """Return the number of 16 bits below which dropout keeps a feature."""
    return min(round(2**15 - dropout * 2**16), 2**15 - 1)


class TaskModel(nn.Module):
    """A body that makes features, our own dropout, and one linear head.

    Inputs are taken as stored; the model normalises them itself, so what predicts needs nothing else.

    Args:
        body: maps normalised float inputs to (B, D). It may offer `stages(x) -> (list of feature maps, features)`.
        feature_dim: D.
        num_outputs: C.
        mean: see `alenv.task.Source`.
        std: see `alenv.task.Source`.
        dropout: probability with which features are dropped in front of the head while training.
        solver: how a trainer fits it: "lbfgs" for a head on fixed features; "probe" does that first and then trains the whole
            net; "sgd" otherwise.
        companion: builds a net of this one's family with another number of outputs (selectors' own nets); by default none.
    """

    def __init__(
        self, body: nn.Module, feature_dim: int, num_outputs: int, *, mean: Tensor | float = 0.0, std: Tensor | float = 1.0,
        dropout: float = 0.0, solver: Solver = "sgd", companion: "Callable[[int], TaskModel] | None" = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.body = body
        self.linear = nn.Linear(feature_dim, num_outputs)
        self.feature_dim, self.num_outputs = feature_dim, num_outputs
        self.dropout, self.solver = dropout, solver
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32))
        self.aux = nn.ModuleDict()
        self.laplace: Laplace | None = None
        self._companion = companion

    def companion(self, num_outputs: int) -> "TaskModel":
        """Return a fresh net of the same family with `num_outputs` outputs, for a selector's own use."""
        if self._companion is None:
            raise ValueError(
                "this net declares no companion; pass companion= to TaskModel so that selectors can build their own nets"
            )
        return self._companion(num_outputs)

    @functools.cached_property
    def bare(self) -> bool:
        """Whether fitting decides all of it: a head fitted to its optimum on a body without weights or state."""
        return self.solver == "lbfgs" and not any(True for _ in (*self.body.parameters(), *self.body.buffers()))

    @property
    def light(self) -> bool:
        """Whether nothing but the head has weights: a pass costs little."""
        return not len(self.aux) and (self.bare or not any(True for _ in self.body.parameters()))

    def twin(self) -> "TaskModel":
        """Return a bare model of the same body, with a head of zeros, without extra heads and posterior; it costs a tenth."""
        zeros = {"weight": torch.zeros_like(self.linear.weight), "bias": torch.zeros_like(self.linear.bias)}
        head = {name: nn.Parameter(value, requires_grad=False) for name, value in zeros.items()}
        parts = {**self._modules, "linear": _replaced(self.linear, _parameters=head), "aux": _replaced(self.aux, _modules={})}
        return _replaced(self, _modules=parts, laplace=None)

    def normalized(self, x: Num[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """Return stored inputs as normalised floats."""
        return (x.float() - self.mean) / self.std

    def lengths(self, x: Num[Tensor, "B ..."]) -> Int[Tensor, " B"] | None:
        """Return how long each input is, where that decides what it costs (texts); then like lengths share a batch."""
        del x
        return None

    def features(self, x: Num[Tensor, "B ..."]) -> Float[Tensor, "B D"]:
        """Return the exact input of the head, without noise."""
        return self.body(self.normalized(x))

    def stages(self, x: Num[Tensor, "B ..."]) -> tuple[list[Tensor], Float[Tensor, "B D"]]:
        """Return intermediate feature maps (at least one) and the features."""
        x = self.normalized(x)
        staged: Callable[[Tensor], tuple[list[Tensor], Tensor]] | None = getattr(self.body, "stages", None)
        if staged is not None:
            return staged(x)
        h = self.body(x)
        return [h], h

    def head(self, h: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Return logits."""
        return self.linear(h)

    def dropped(self, h: Float[Tensor, "B D"], generator: torch.Generator) -> Float[Tensor, "B D"]:
        """Return features with our dropout applied, a mask per example (training)."""
        if self.dropout == 0:
            return h
        room = torch.empty(-(-h.numel() // 4), dtype=torch.int64, device=h.device)
        bits = random_bits(room, generator).view(torch.int16)[: h.numel()].view(h.shape)
        return h * (bits < keep_below(self.dropout)) / (1 - self.dropout)

    def forward(self, x: Num[Tensor, "B ..."]) -> Float[Tensor, "B C"]:
        """Return logits without noise."""
        return self.head(self.features(x))

    @property
    def noisy(self) -> bool:
        """Whether a trained model has a source of noise: dropout, or the posterior of a head fitted to its optimum."""
        return self.dropout > 0 or self.solver == "lbfgs"

    def head_draws(self, draws: int, generator: torch.Generator) -> tuple[Float[Tensor, "T C D"], Float[Tensor, "T C"]]:
        """Return `draws` heads: one dropout mask, or one sample of the Laplace posterior, each.

        A draw is one function applied to all inputs (consistent dropout, Kirsch et al. 2019), so results depend neither on how
        the pool is cut into blocks nor on its order.

        Raises:
            NoNoiseError: the model was trained without dropout and has no posterior.
        """
        weight, bias = self.linear.weight.detach(), self.linear.bias.detach()
        if self.laplace is not None:
            deviations = self.laplace.deviations(draws, generator)
            return weight + deviations[:, :, :-1], bias + deviations[:, :, -1]
        if self.dropout > 0:
            keep = 1 - self.dropout
            masks = torch.rand(draws, 1, self.feature_dim, generator=generator, device=weight.device) < keep
            return weight * masks / keep, bias.expand(draws, -1)
        raise NoNoiseError(
            "expected a model with noise, got one without dropout or posterior; "
            "use net=linear (Laplace), or a net with dropout > 0"
        )

    def draws(self, h: Float[Tensor, "B D"], draws: int, generator: torch.Generator) -> Float[Tensor, "T B C"]:
        """Return logits of `draws` stochastic heads on features `h`: one product of width T C."""
        return apply_heads(h, self.head_draws(draws, generator))

    def aux_outputs(self, stages: list[Tensor]) -> dict[str, Tensor]:
        """Return the outputs of the extra heads on `stages`."""
        heads: Mapping[str, nn.Module] = dict(self.aux.items())
        return {name: module(stages) for name, module in heads.items()}


def _replaced(module: Module, **attributes: Any) -> Module:
    """Return a copy of a module that shares all but the given attributes; `copy.copy` and assignments take five times as long."""
    made = object.__new__(type(module))
    made.__dict__ = {**module.__dict__, **attributes}
    return made


def solver_of(tune: str) -> Solver:
    """Return the solver for what is tuned of a net with trained weights: "all", "probe" (head, then all) or "head" alone."""
    if tune not in SOLVERS:
        raise ValueError(f"expected net.tune=all, probe or head, got '{tune}'")
    return SOLVERS[tune]
