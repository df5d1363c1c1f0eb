"""BAIT (Ash, Goel, Krishnamurthy & Kakade, "Gone Fishing: Neural Active Learning with Fisher Embeddings", NeurIPS 2021)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alenv import ops
from alenv.geometry import CHUNK_ELEMENTS, products
from alenv.round import Round
from alenv.strategy import Strategy, best_first

STATE_ELEMENTS = 3 * 2**24  # numbers per array kept about the candidates: 192 MB of float32, three times
PENDING = 256  # columns of updates that wait until they are subtracted from the inverse at once
LABELS = 16  # labels whose columns are looked at where few columns are kept
BLOCK = 1024  # rows of the inverse, or examples, that are worked on at once
LEAST = 1e-30  # of a rate
ROUNDING = 1e-5  # share by which a bound in float32 may be off


class BAIT(Strategy):
    """Buy the batch S that minimises tr((sum_{S, labelled} I(x) + regularization Id)^-1 mean_{candidates} I(x)).

    I(x) = V V^T is the last layer's Fisher information at x, bias included; column y of V is sqrt(p_y) (e_y - p) (x) [h, 1].
    Greedily 2 B candidates are added, then B of them dropped; Woodbury's identity turns a step into rank-C updates of the inverse
    and of V^T M^-1 V and V^T M^-1 I M^-1 V, a C x C matrix each per candidate. With P = C (D + 1) parameters,
    O(U P^2 + P^3 + B (U C P + P^2 C)) time and O(U C^2 + P^2) memory. Candidates are scored by bounds that hold for all and cost
    products alone; only the leaders are solved for (`_Design.best`).

    Deviations. Beyond `max_parameters` these would not fit: parameters are projected on the `projected` principal directions of
    the mean of I(x), as known from 2 `projected` of its columns; V keeps its `columns` principal columns; the mean is that of a
    random part of `candidates` (or 4 B), and as many are considered, drawn in proportion to (tr I(x))^2. That is
    O(n m (C + D + r) r + r^3 + B n m^2 r) time and O(n m r) memory for n considered, m columns, r directions, after one pass over
    the pool, and exact where nothing is left out. Up to it, beyond `STATE_ELEMENTS` = U C^2, V keeps the columns of the likeliest
    labels. The authors' code weighs labelled examples by mean instead of sum.

    Args:
        regularization: lambda.
        oversample: candidates added, in multiples of B.
        max_parameters: P up to which nothing is projected.
        projected: directions beyond it.
        columns: of each V beyond it.
        candidates: considered beyond it, at least (and 2 `oversample` B).
    """

    family = "hybrid"
    needs = frozenset({"probs", "embeddings", "labeled_embeddings", "head"})

    def __init__(
        self, regularization: float = 1.0, oversample: float = 2.0, max_parameters: int = 4096,
        projected: int = 512, columns: int = 3, candidates: int = 4000,
    ) -> None:  # fmt: skip
        if min(projected, columns, candidates) < 1:
            raise ValueError(f"bait: expected projected, columns and candidates >= 1, got {projected}, {columns}, {candidates}")
        self.regularization, self.oversample, self.max_parameters = regularization, oversample, max_parameters
        self.projected, self.columns, self.candidates = projected, columns, candidates

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return positions in the order they were added."""
        generator = round.generator("bait")
        whole = round.num_classes * (round.embeddings.shape[1] + 1) <= self.max_parameters
        part, factors, information, precision = self._whole(round) if whole else self._projected(round, budget, generator)
        precision.diagonal().add_(self.regularization)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(precision))
        design = _Design.of(factors, information.to(round.embeddings), inverse.to(round.embeddings))
        lot = torch.randperm(len(part), generator=generator, device=round.device)
        left, added = torch.ones(len(part), dtype=torch.bool, device=round.device), list[Tensor]()
        while len(added) < min(max(budget, int(self.oversample * budget)), len(part)):
            added.append(design.best(left, lot).view(1))
            design.move(added[-1], 1)
            left[added[-1]] = False
        picks = torch.cat(added)
        design = design.at(picks)
        kept = torch.ones(len(picks), dtype=torch.bool, device=round.device)
        for _ in range(len(picks) - budget):
            drop = best_first((-design.change(-1)).masked_fill(~kept, -torch.inf), generator, 1)
            design.move(drop, -1)
            kept[drop] = False
        return part[picks[kept]]

    def _whole(self, round: Round) -> tuple[Int[Tensor, " n"], "_Factors", Float[Tensor, "P P"], Float[Tensor, "P P"]]:
        """Return all candidates, their factors and mean information, and the labelled examples' information."""
        columns = max(1, min(round.num_classes, int((STATE_ELEMENTS / len(round)) ** 0.5)))
        factors = _Factors.of(round.embeddings, round.probs, columns)
        every = torch.arange(len(round), device=round.device)
        return every, factors, factors.fisher() / len(round), _Factors.of(*_labeled(round), columns).fisher()

    def _projected(
        self, round: Round, budget: int, generator: torch.Generator
    ) -> tuple[Int[Tensor, " n"], "_Projected", Float[Tensor, "P P"], Float[Tensor, "P P"]]:
        """Return the same of the candidates that are considered, on the principal directions of a random part."""
        h, probs = round.embeddings, round.probs
        count = max(self.candidates, int(2 * self.oversample * budget))
        sample = torch.randperm(len(round), generator=generator, device=round.device)[:count]
        axes = _Axes.of(_Columns.of(h[sample], probs[sample], self.columns), self.projected, generator)
        lengths = (1 + _squares(h)) * (1 - _squares(probs))  # tr I(x)
        part = _race(lengths.square(), generator).topk(min(count, len(lengths)), largest=False).indices
        information = axes.fisher(h[sample], probs[sample], self.columns) / len(sample)
        factors = axes.project(_Columns.of(h[part], probs[part], self.columns))
        return part, factors, information, axes.fisher(*_labeled(round), self.columns)


def _squares(x: Float[Tensor, "n D"]) -> Float[Tensor, " n"]:
    return torch.linalg.vector_norm(x, dim=1, dtype=torch.float64).square_()


def _race(rate: Float[Tensor, " n"], generator: torch.Generator) -> Float[Tensor, " n"]:
    """Return when each arrives: the first k are drawn in proportion to `rate`, without replacement."""
    rate = rate.double().clamp(min=LEAST)
    return torch.empty_like(rate).exponential_(generator=generator).div_(rate)


def _labeled(round: Round) -> tuple[Float[Tensor, "L D"], Float[Tensor, "L C"]]:
    h, (weight, bias) = round.labeled_embeddings, round.head
    return h, (h @ weight.T + bias).softmax(1)


def _biased(h: Float[Tensor, "n D"]) -> Float[Tensor, "n E"]:
    return F.pad(h, (0, 1), value=1.0)


class _Factors(NamedTuple):
    """What V of each of n candidates is made of; a vector of parameters has shape (C, K)."""

    h: Float[Tensor, "n K"]
    probs: Float[Tensor, "n C"]
    labels: Int[Tensor, "n m"]  # the columns of V that are kept

    @classmethod
    def of(cls, h: Tensor, probs: Tensor, columns: int) -> "_Factors":
        h = _biased(h)
        labels = torch.arange(columns, device=h.device).expand(len(h), -1)
        likeliest = labels if columns == probs.shape[1] else probs.topk(columns, dim=1).indices
        return cls(h, probs, likeliest)

    def at(self, rows: Int[Tensor, " k"] | slice) -> "_Factors":
        return _Factors(self.h[rows], self.probs[rows], self.labels[rows])

    def blocks(self, width: int) -> Iterator[slice]:
        """Cut into blocks so that `width` numbers a candidate fit."""
        size = max(1, CHUNK_ELEMENTS // max(1, width))
        return (slice(start, start + size) for start in range(0, len(self.h), size))

    def roots(self) -> Float[Tensor, "n C m"]:
        """Return the C x m factors: column y is sqrt(p_y) (e_y - p)."""
        columns = F.one_hot(self.labels, self.probs.shape[1]).to(self.probs) - self.probs.unsqueeze(1)
        return (columns * self.probs.gather(1, self.labels).sqrt().unsqueeze(2)).mT

    def flat(self) -> Float[Tensor, "n m P"]:
        """Return V^T."""
        return torch.einsum("ncm,nk->nmck", self.roots(), self.h).flatten(2)

    def times(self, y: Float[Tensor, "j P"]) -> Iterator[tuple[slice, Float[Tensor, "n m j"]]]:
        """Yield V^T y^T of the candidates, block by block."""
        classes = self.probs.shape[1]
        flat = y.unflatten(1, (classes, -1)).transpose(0, 1).flatten(0, 1)  # (C j, K)
        for rows in self.blocks(len(flat)):
            part = self.at(rows)
            seen = products(part.h, flat).unflatten(1, (classes, -1))  # (n, C, j)
            mean = part.probs.unsqueeze(1) @ seen
            if part.labels.shape[1] < classes:
                seen = seen.gather(1, part.labels.unsqueeze(2).expand(-1, -1, seen.shape[2]))
            yield rows, seen.sub_(mean).mul_(part.probs.gather(1, part.labels).sqrt_().unsqueeze(2))

    def between(self, matrix: Float[Tensor, "P P"]) -> Float[Tensor, "n m m"]:
        """Return V^T matrix V of each candidate, for a symmetric matrix."""
        classes, width = self.probs.shape[1], self.h.shape[1]
        pieces = []
        for part in map(self.at, self.blocks(len(matrix))):
            seen = part.h.new_empty(len(part.h), classes, classes)  # h^T matrix_cd h
            for c in range(classes):
                block = matrix[: (c + 1) * width, c * width : (c + 1) * width]
                row = (products(part.h, block).unflatten(1, (c + 1, width)) @ part.h.unsqueeze(2)).squeeze(2)
                seen[:, c, : c + 1] = seen[:, : c + 1, c] = row
            roots = part.roots()
            pieces.append(roots.mT @ seen @ roots)
        return torch.cat(pieces)

    def fisher(self) -> Float[Tensor, "P P"]:
        """Return the sum of V V^T, in float64."""
        width, classes = self.h.shape[1], self.probs.shape[1]
        total = self.h.new_zeros(classes, width, classes, width, dtype=torch.float64)
        for part in map(self.at, self.blocks(classes * (classes + width))):
            inner = part.roots()
            inner = inner @ inner.mT  # (n, C, C)
            for c in range(classes):
                weighted = inner[:, c, : c + 1].unsqueeze(2) * part.h.unsqueeze(1)  # (n, c+1, K)
                total[c, :, : c + 1] += (part.h.T @ weighted.flatten(1)).unflatten(1, (c + 1, width))
        for c in range(classes):
            total[:c, :, c] = total[c, :, :c].permute(1, 2, 0)
        return total.flatten(2).flatten(0, 1)


class _Columns(NamedTuple):
    """Columns a (x) [h, 1] of V, the same number of each candidate."""

    a: Float[Tensor, "n m C"]
    h: Float[Tensor, "n E"]

    @classmethod
    def of(cls, h: Float[Tensor, "n D"], probs: Float[Tensor, "n C"], count: int) -> "_Columns":
        """Return the principal columns: V's products with the leading eigenvectors of V^T V, of the likeliest labels."""
        p, labels = probs.topk(min(LABELS, probs.shape[1]), dim=1)
        among = probs.square().sum(1).view(-1, 1, 1) - p.unsqueeze(1) - p.unsqueeze(2)
        among.diagonal(dim1=1, dim2=2).add_(1)
        root = p.sqrt()
        leading = torch.linalg.eigh(root.unsqueeze(2) * among * root.unsqueeze(1)).eigenvectors[:, :, -count:]
        turned = leading.mT * root.unsqueeze(1)
        a = -turned.sum(2, keepdim=True) * probs.unsqueeze(1)
        return cls(a.scatter_add_(2, labels.unsqueeze(1).expand_as(turned), turned), _biased(h))


class _Axes(NamedTuple):
    """Directions in the space of parameters, as sums of columns a (x) h."""

    a: Float[Tensor, "q C"]
    h: Float[Tensor, "q E"]
    sums: Float[Tensor, "r q"]

    @classmethod
    def of(cls, columns: _Columns, count: int, generator: torch.Generator) -> "_Axes":
        """Return the principal directions of sum V V^T, as known from twice as many columns.

        These are drawn in proportion to their squared lengths, and each stands for as many as its chance says.
        """
        a, h = columns.a.flatten(0, 1), columns.h.repeat_interleave(columns.a.shape[1], 0)
        rate = (_squares(a) * _squares(h)).clamp(min=LEAST)
        first = _race(rate, generator).topk(min(2 * count + 1, len(rate)), largest=False)
        end = first.values[-1] if len(rate) > 2 * count else rate.new_tensor(torch.inf)
        drawn = first.indices[: 2 * count]
        chance = -torch.expm1(-rate[drawn] * end)
        a, h = a[drawn] / chance.sqrt().to(a).unsqueeze(1), h[drawn]
        values, vectors = torch.linalg.eigh((a.double() @ a.double().T) * (h.double() @ h.double().T))
        scale = values.rsqrt().where(values > 100 * torch.finfo(h.dtype).eps * values[-1], 0.0)
        return cls(a, h, (vectors * scale)[:, -count:].T.to(h).contiguous())

    def project(self, columns: _Columns) -> "_Projected":
        """Return the components of columns along the axes."""
        pieces, size = [], max(1, CHUNK_ELEMENTS // (len(self.a) * columns.a.shape[1]))
        for a, h in zip(columns.a.split(size), columns.h.split(size), strict=True):
            seen = products(a.flatten(0, 1), self.a).unflatten(0, a.shape[:2])
            seen *= products(h, self.h).unsqueeze(1)
            pieces.append(products(seen.flatten(0, 1), self.sums).unflatten(0, a.shape[:2]))
        return _Projected(torch.cat(pieces))

    def fisher(self, h: Float[Tensor, "n D"], probs: Float[Tensor, "n C"], columns: int) -> Float[Tensor, "r r"]:
        """Return the sum of V V^T along the axes, in float64."""
        total = torch.zeros(len(self.sums), len(self.sums), dtype=torch.float64, device=h.device)
        for part in zip(h.split(BLOCK), probs.split(BLOCK), strict=True) if len(h) else ():
            root = self.project(_Columns.of(*part, columns)).roots.flatten(0, 1).double()
            total.addmm_(root.T, root)
        return total


class _Projected(NamedTuple):
    """V^T of each of n candidates, written out."""

    roots: Float[Tensor, "n m r"]

    def at(self, rows: Int[Tensor, " k"] | slice) -> "_Projected":
        return _Projected(self.roots[rows])

    def flat(self) -> Float[Tensor, "n m r"]:
        return self.roots

    def times(self, y: Float[Tensor, "j r"]) -> Iterator[tuple[slice, Float[Tensor, "n m j"]]]:
        yield slice(None), self.roots @ y.T

    def between(self, matrix: Float[Tensor, "r r"]) -> Float[Tensor, "n m m"]:
        parts = self.roots.split(max(1, CHUNK_ELEMENTS // self.roots[0].numel()))
        return torch.cat([products(part.flatten(0, 1), matrix).view_as(part) @ part.mT for part in parts])


@dataclass
class _Design:
    """The inverse of M, and what it says about candidates x: inner = V^T M^-1 V and outer = V^T M^-1 I M^-1 V.

    Attributes:
        pending: updates Y S Y^T that are still to be subtracted from `inverse`, as (Y^T, S Y^T).
        solved: (I + inner)^-1 as it was when last looked at.
    """

    factors: "_Factors | _Projected"
    information: Float[Tensor, "P P"]
    inverse: Float[Tensor, "P P"]
    inner: Float[Tensor, "n m m"]
    outer: Float[Tensor, "n m m"]
    solved: Float[Tensor, "n m m"]
    pending: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, factors: "_Factors | _Projected", information: Float[Tensor, "P P"], inverse: Float[Tensor, "P P"]) -> "_Design":
        inner = factors.between(inverse)
        outer = factors.between(products(products(inverse, information), inverse))
        return cls(factors, information, inverse.clone(memory_format=torch.contiguous_format), inner, outer, _inverse(inner))

    def at(self, rows: Int[Tensor, " k"]) -> "_Design":
        parts = self.factors.at(rows), self.information, self.inverse, self.inner[rows], self.outer[rows], self.solved[rows]
        return _Design(*parts, self.pending)

    def change(self, sign: int, rows: Int[Tensor, " k"] | slice = slice(None)) -> Float[Tensor, " k"]:
        """Return by how much the trace falls when each candidate is added (1), or rises when it is removed (-1)."""
        eye = torch.eye(self.inner.shape[1]).to(self.inner)
        return torch.linalg.solve(eye + sign * self.inner[rows], self.outer[rows]).diagonal(dim1=1, dim2=2).sum(1)

    def best(self, left: Bool[Tensor, " n"], lot: Int[Tensor, " n"]) -> Int[Tensor, ""]:
        """Return the candidate whose adding lowers the trace most.

        While candidates are added A = inner only falls. With Q = (Id + A_0)^-1 of an earlier A_0, (Id + A)^-1 is at most
        Q / (1 - tr Q (A_0 - A)): so tr (Id + A)^-1 outer is bounded by products, and only the leaders are solved for.
        """
        grown = 1 - (self.inner.shape[1] - _trace(self.solved, self.inner) - self.solved.diagonal(dim1=1, dim2=2).sum(1))
        bound = torch.where(grown > ROUNDING, _trace(self.solved, self.outer) / grown * (1 + ROUNDING), torch.inf)

        def values(rows: Tensor) -> Tensor:
            self.solved[rows] = _inverse(self.inner[rows])
            return _trace(self.solved[rows], self.outer[rows])

        return ops.lazy_argmax(bound.masked_fill_(~left, -torch.inf), values, lot)

    def move(self, pick: Int[Tensor, " 1"], sign: int) -> None:
        """Add (1) or remove (-1) a candidate."""
        chosen = self.factors.at(pick)
        root = chosen.flat()[0]
        y = self.solve(root)
        informed = products(y, self.information)
        middle = torch.eye(len(root)).to(root).double() + sign * (root.double() @ y.double().T)
        middle = sign * torch.linalg.inv(middle).to(root)
        own = informed @ y.T / 2
        for rows, seen in self.factors.times(torch.cat([y, self.solve(informed)])):
            near, far = seen.tensor_split(2, dim=2)  # V_x^T M^-1 V and V_x^T M^-1 I M^-1 V
            step = near @ middle
            self.inner[rows].baddbmm_(step, near.mT, alpha=-1)
            lean = (far - step @ own) @ step.mT
            self.outer[rows].sub_(lean).sub_(lean.mT)
        self.pending.append((y, middle @ y))
        if len(self.pending) * len(y) >= PENDING:
            self.settle()

    def solve(self, rows: Float[Tensor, "j P"]) -> Float[Tensor, "j P"]:
        """Return M^-1 applied to rows."""
        found = products(rows, self.inverse)
        if self.pending:
            y, scaled = (torch.cat(parts) for parts in zip(*self.pending, strict=True))
            found.addmm_(rows @ y.T, scaled, alpha=-1)
        return found

    def settle(self) -> None:
        """Bring `inverse` up to date."""
        if self.pending:
            y, scaled = (torch.cat(parts) for parts in zip(*self.pending, strict=True))
            for part, left in zip(self.inverse.split(BLOCK), y.T.split(BLOCK), strict=True):
                part.sub_(products(left, scaled.T))
            self.pending.clear()


def _inverse(inner: Float[Tensor, "n m m"]) -> Float[Tensor, "n m m"]:
    """Return (Id + inner)^-1."""
    return torch.cholesky_inverse(torch.linalg.cholesky(inner + torch.eye(inner.shape[1]).to(inner)))


def _trace(a: Float[Tensor, "n m m"], b: Float[Tensor, "n m m"]) -> Float[Tensor, " n"]:
    """Return tr(a b) of symmetric matrices."""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))
