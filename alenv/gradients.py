"""Gradients of the last layer, kept as the two factors whose outer product they are."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alenv.geometry import CHUNK_ELEMENTS, Points
from alenv.round import Round


class Gradients(Points):
    """Last-layer gradients a (x) [h, 1]: `a` by the logits, `h` the layer's input, 1 for its bias.

    A product of two gradients is the product of the products of their factors, so nothing of n x (C D) is ever held.

    Args:
        a: gradients of the loss by the logits.
        h: inputs of the layer.
        bias: whether the layer's bias counts as a parameter.
    """

    def __init__(
        self, a: Float[Tensor, "n C"], h: Float[Tensor, "n D"], bias: bool = True, norms: Float[Tensor, " n"] | None = None
    ) -> None:
        self.a, self.h, self.bias = a, h, bias
        self.norms = _squared(a) * (_squared(h) + bias) if norms is None else norms

    def at(self, rows: Int[Tensor, " k"] | slice) -> "Gradients":
        """Return some of the gradients."""
        return Gradients(self.a[rows], self.h[rows], self.bias, self.norms[rows])

    def products(self, others: "Gradients") -> Float[Tensor, "n k"]:
        """Return <g_i, g_j>."""
        return (self.a @ others.a.T).mul_(self._inputs(others))

    def gaps(self, others: "Gradients") -> Float[Tensor, "n k"]:
        """Return |g_i - g_j|^2 - |g_i|^2."""
        return torch.addcmul(others.norms, self.a @ others.a.T, self._inputs(others), value=-2)

    def _inputs(self, others: "Gradients") -> Float[Tensor, "n k"]:
        """Return the products of the layer's inputs."""
        bias = self.h.new_tensor([float(self.bias)])
        return torch.addmm(bias, self.h, others.h.T)

    def dense(self) -> Float[Tensor, "n E"]:
        """Return the gradients written out, E = C (D + 1) or C D: for few of them."""
        h = torch.nn.functional.pad(self.h, (0, 1), value=1.0) if self.bias else self.h
        return (self.a.unsqueeze(2) * h.unsqueeze(1)).flatten(1)


def _squared(rows: Float[Tensor, "n D"]) -> Float[Tensor, " n"]:
    return torch.linalg.vector_norm(rows, dim=1).square_()  # no array of squares


class PseudoGradients(Gradients):
    """Gradients with the predicted class as the label; `a` is made of the probabilities when it is read, row by row by `at`.

    Args:
        probs: class probabilities.
        h: inputs of the layer.
        bias: whether the layer's bias counts as a parameter.
    """

    def __init__(self, probs: Float[Tensor, "n C"], h: Float[Tensor, "n D"], bias: bool = True) -> None:
        self.probs, self.h, self.bias, self.width = probs, h, bias, probs.shape[1]
        size = max(1, CHUNK_ELEMENTS // self.width)
        self.norms = torch.cat([_squared(_residual(part)) for part in probs.split(size)]) * (_squared(h) + bias)

    @property
    def a(self) -> Float[Tensor, "n C"]:  # type: ignore[override]
        """The residuals p - onehot(argmax p), made anew."""
        return _residual(self.probs)

    def at(self, rows: Int[Tensor, " k"] | slice) -> Gradients:  # type: ignore[override]
        """Return some of the gradients, written as factors."""
        return Gradients(_residual(self.probs[rows]), self.h[rows], self.bias, self.norms[rows])


def pseudo_gradients(round: Round, bias: bool = True) -> PseudoGradients:
    """Return the candidates' gradients of the cross-entropy with the predicted class as the label: a = p - onehot(argmax p)."""
    return PseudoGradients(round.probs, round.embeddings, bias)


def _residual(probs: Float[Tensor, "n C"]) -> Float[Tensor, "n C"]:
    """Return p - onehot(argmax p); what the label lacks of 1 is added up from the others, which keeps its digits."""
    likeliest = probs.argmax(1, keepdim=True)
    residual = probs.scatter(1, likeliest, 0.0)
    return residual.scatter_(1, likeliest, -residual.sum(1, keepdim=True))
