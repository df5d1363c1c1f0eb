"""BAIT (Ash, Goel, Krishnamurthy & Kakade, "Gone Fishing: Neural Active Learning with Fisher Embeddings", NeurIPS 2021)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from alenv.geometry import CHUNK_ELEMENTS
from alenv.round import Round
from alenv.strategy import Strategy, best_first

STATE_ELEMENTS = 2**26  # numbers per array kept about the candidates: 256 MB of float32


class BAIT(Strategy):
    """Buy the batch S that minimises tr((sum_{S, labelled} I(x) + regularization Id)^-1 mean_{candidates} I(x)).

    I(x) = V V^T is the last layer's Fisher information at x, bias included; column y of V is sqrt(p_y) (e_y - p) (x) [h, 1].
    Greedily 2 B candidates are added, then B of them dropped; Woodbury's identity turns a step into rank-C updates of the inverse
    and of V^T M^-1 V and V^T M^-1 I M^-1 V, a C x C matrix each per candidate. With P = C (D + 1) parameters,
    O(U P^2 + B (U C P + P^2 C)) time and O(U C^2 + P^2) memory.

    Deviations, where these would not fit: beyond `max_parameters`, [h, 1] is projected on the principal directions of the
    candidates (about the origin) that leave at most so many; beyond `STATE_ELEMENTS` = U C^2, V keeps the columns of the
    likeliest labels. Both are exact when nothing is left out. The authors' code weighs labelled examples by mean instead of sum.

    Args:
        regularization: lambda.
        oversample: candidates added, in multiples of B.
        max_parameters: P at most.
    """

    family = "hybrid"
    needs = frozenset({"probs", "embeddings", "labeled_embeddings", "head"})

    def __init__(self, regularization: float = 1.0, oversample: float = 2.0, max_parameters: int = 4096) -> None:
        self.regularization, self.oversample, self.max_parameters = regularization, oversample, max_parameters

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return positions in the order they were added."""
        generator = round.generator("bait")
        columns = max(1, min(round.num_classes, int((STATE_ELEMENTS / len(round)) ** 0.5)))
        axes = self._axes(round)
        factors = _Factors.of(round.embeddings, round.probs, axes, columns)
        weight, bias = round.head
        known = round.labeled_embeddings
        labeled = _Factors.of(known, (known @ weight.T + bias).softmax(1), axes, columns)
        information = factors.fisher() / len(round)
        precision = labeled.fisher()
        precision.diagonal().add_(self.regularization)
        design = _Design(factors, information, torch.cholesky_inverse(torch.linalg.cholesky(precision)))
        added: list[Tensor] = []
        left = torch.ones(len(round), dtype=torch.bool, device=round.device)
        while len(added) < min(max(budget, int(self.oversample * budget)), len(round)):
            pick = best_first(design.change(1).masked_fill(~left, -torch.inf), generator, 1)
            design.move(pick, 1)
            left[pick] = False
            added.append(pick)
        picks = torch.cat(added)
        design = _Design(factors.at(picks), information, design.inverse)
        kept = torch.ones(len(picks), dtype=torch.bool, device=round.device)
        for _ in range(len(picks) - budget):
            drop = best_first((-design.change(-1)).masked_fill(~kept, -torch.inf), generator, 1)
            design.move(drop, -1)
            kept[drop] = False
        return picks[kept]

    def _axes(self, round: Round) -> Float[Tensor, "E K"] | None:
        """Return the directions to project on; None where all fit."""
        h = round.embeddings
        size = max(1, self.max_parameters // round.num_classes)
        if size > h.shape[1]:
            return None
        moments = sum((x.T @ x for x in (_biased(part).double() for part in h.split(4096))), torch.zeros(()))
        return torch.linalg.eigh(moments).eigenvectors[:, -size:].to(h)


def _biased(h: Float[Tensor, "n D"]) -> Float[Tensor, "n E"]:
    return F.pad(h, (0, 1), value=1.0)


class _Factors(NamedTuple):
    """What V of each of n candidates is made of; a vector of parameters has shape (C, K)."""

    h: Float[Tensor, "n K"]
    probs: Float[Tensor, "n C"]
    labels: Int[Tensor, "n m"]  # the columns of V that are kept

    @classmethod
    def of(cls, h: Tensor, probs: Tensor, axes: Tensor | None, columns: int) -> "_Factors":
        h = _biased(h)
        return cls(h if axes is None else h @ axes, probs, probs.topk(columns, dim=1).indices)

    def at(self, rows: Int[Tensor, " k"] | slice) -> "_Factors":
        return _Factors(self.h[rows], self.probs[rows], self.labels[rows])

    def blocks(self, width: int) -> list["_Factors"]:
        """Cut into blocks so that `width` numbers a candidate fit."""
        size = max(1, CHUNK_ELEMENTS // max(1, width))
        return [self.at(slice(start, start + size)) for start in range(0, len(self.h), size)]

    def roots(self) -> Float[Tensor, "n C m"]:
        """Return the C x m factors: column y is sqrt(p_y) (e_y - p)."""
        columns = F.one_hot(self.labels, self.probs.shape[1]).to(self.probs) - self.probs.unsqueeze(1)
        return (columns * self.probs.gather(1, self.labels).sqrt().unsqueeze(2)).mT

    def times(self, y: Float[Tensor, "P j"]) -> Float[Tensor, "n m j"]:
        """Return V^T y of each candidate."""
        classes = self.probs.shape[1]
        flat = y.to(self.h).unflatten(0, (classes, -1)).transpose(0, 1).flatten(1)  # (K, C j)
        pieces = []
        for part in self.blocks(2 * flat.shape[1]):
            seen = (part.h @ flat).unflatten(1, (classes, -1))  # (n, C, j)
            mean = torch.einsum("nc,ncj->nj", part.probs, seen).unsqueeze(1)
            seen = seen.gather(1, part.labels.unsqueeze(2).expand(-1, -1, seen.shape[2]))
            pieces.append((seen - mean) * part.probs.gather(1, part.labels).sqrt().unsqueeze(2))
        return torch.cat(pieces)

    def between(self, matrix: Float[Tensor, "P P"]) -> Float[Tensor, "n m m"]:
        """Return V^T matrix V of each candidate."""
        classes = self.probs.shape[1]
        blocks = matrix.to(self.h).unflatten(0, (classes, -1))  # (C, K, C K)
        pieces = []
        for part in self.blocks(len(matrix)):
            seen = [((part.h @ block).unflatten(1, (classes, -1)) @ part.h.unsqueeze(2)).squeeze(2) for block in blocks]
            roots = part.roots()
            pieces.append(roots.mT @ torch.stack(seen, 1) @ roots)
        return torch.cat(pieces)

    def fisher(self) -> Float[Tensor, "P P"]:
        """Return the sum of V V^T, in float64."""
        width, classes = self.h.shape[1], self.probs.shape[1]
        total = self.h.new_zeros(classes, width, classes, width, dtype=torch.float64)
        for part in self.blocks(classes * (classes + width)):
            inner = part.roots()
            inner = inner @ inner.mT  # (n, C, C)
            for c in range(classes):
                weighted = inner[:, c, : c + 1].unsqueeze(2) * part.h.unsqueeze(1)  # (n, c+1, K)
                total[c, :, : c + 1] += (part.h.T @ weighted.flatten(1)).unflatten(1, (c + 1, width))
        for c in range(classes):
            total[:c, :, c] = total[c, :, :c].permute(1, 2, 0)
        return total.flatten(2).flatten(0, 1)


class _Design:
    """The inverse of M, and what it says about candidates: V^T M^-1 V and V^T M^-1 I M^-1 V."""

    def __init__(self, factors: _Factors, information: Float[Tensor, "P P"], inverse: Float[Tensor, "P P"]) -> None:
        self.factors, self.information, self.inverse = factors, information, inverse.clone()
        self.inner = factors.between(inverse)
        self.outer = factors.between(inverse @ information @ inverse)

    def change(self, sign: int) -> Float[Tensor, " n"]:
        """Return by how much the trace falls when each candidate is added (1), or rises when it is removed (-1)."""
        eye = torch.eye(self.inner.shape[1]).to(self.inner)
        return torch.linalg.solve(eye + sign * self.inner, self.outer).diagonal(dim1=1, dim2=2).sum(1)

    def move(self, pick: Int[Tensor, " 1"], sign: int) -> None:
        """Add (1) or remove (-1) a candidate."""
        chosen = self.factors.at(pick)
        root = torch.einsum("cm,k->ckm", chosen.roots()[0], chosen.h[0]).flatten(0, 1).to(self.inverse)  # V, (P, m)
        y = self.inverse @ root
        informed = self.information @ y
        eye = torch.eye(root.shape[1]).to(root)
        middle = torch.linalg.inv(eye + sign * root.T @ y)
        near = self.factors.times(y)  # V_x^T M^-1 V
        far = self.factors.times(self.inverse @ informed)
        step = near @ (sign * middle).to(near)
        self.inverse -= sign * y @ middle @ y.T
        self.inner -= step @ near.mT
        cross = step @ far.mT
        self.outer += step @ (y.T @ informed).to(near) @ step.mT - cross - cross.mT
