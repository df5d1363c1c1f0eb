"""SIMILAR (Kothawade, Beck, Killamsetty & Iyer, "SIMILAR: Submodular Information Measures ...", NeurIPS 2021, 2107.00717)."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from alenv.geometry import CHUNK_ELEMENTS, products
from alenv.ops import lazy_argmax
from alenv.round import Round
from alenv.strategy import Strategy

BLOCK = 2**19  # similarities made at once: 2 MB of float32; memory for larger ones goes back to the system and comes again
LEAST = 1e-9  # variance; scaled similarities are not always those of a positive matrix


class Similar(Strategy):
    """Buy greedily what shares most with the labelled examples, Q, and not with those known to be of none of the classes, P.

    With similarities s = (1 + cosine) / 2, batch A and candidates V, the measure of A is
    flcmi: sum_{i in V} max(min(max_{j in A} s_ij, eta max_{j in Q} s_ij) - nu max_{j in P} s_ij, 0), or
    logdetcmi: log det K_{A|P} - log det K_{A|P,Q}, K = s + I, with A's similarities to Q times eta and to P times nu.
    O(U (V + L) (C + D)) for flcmi with V <= `ground`, O(U D^2 + B U D) for logdetcmi; memory blocks, and D^2 for logdetcmi.

    With P empty this is the mutual information, the paper's measure for rare classes. Without labelled examples flcmi covers
    the candidates, and logdetcmi buys by lot, as what adds nothing always is.

    Args:
        measure: "flcmi" or "logdetcmi".
        kernel: cosine between last-layer "gradients" (at the label, else the predicted class), as in the paper, or between
            "embeddings"; logdetcmi takes only these, so that it needs D x D numbers instead of one per pair.
        query: Q is "all" labelled examples, or "rare": those of classes with fewer labels than the average, if there are.
        eta: relevance to Q against diversity.
        nu: how hard P is kept away from.
        ground: candidates, drawn by lot, that stand for V in flcmi; exact for pools up to it.
    """

    family = "open-set"

    def __init__(
        self, measure: Literal["flcmi", "logdetcmi"] = "flcmi", kernel: Literal["gradients", "embeddings"] = "gradients",
        query: Literal["all", "rare"] = "all", eta: float = 1.0, nu: float = 1.0, ground: int = 2048,
    ) -> None:  # fmt: skip
        for value, choices in (
            (measure, ("flcmi", "logdetcmi")),
            (kernel, ("gradients", "embeddings")),
            (query, ("all", "rare")),
        ):
            if value not in choices:
                raise ValueError(f"similar: expected {' or '.join(choices)}, got '{value}'")
        if measure == "logdetcmi" and kernel != "embeddings":
            raise ValueError("similar: measure=logdetcmi takes kernel=embeddings")
        if ground < 1:
            raise ValueError(f"similar: expected ground >= 1, got {ground}")
        self.measure, self.kernel, self.query, self.eta, self.nu, self.ground = measure, kernel, query, eta, nu, ground
        read = {"embeddings", "labels", "labeled_embeddings", "discarded_embeddings"}
        self.needs = frozenset(read | {"probs", "head"} if kernel == "gradients" else read)

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return positions in the order of the greedy steps."""
        lot = torch.randperm(len(round), generator=round.generator("similar"), device=round.device)
        query, private = self._query(round), self._private(round)
        measure = self._flcmi if self.measure == "flcmi" else self._logdetcmi
        picks = measure(round, budget, lot, query, private)
        return torch.cat([picks, lot[~torch.isin(lot, picks)]])[:budget]

    def purity(self, round: Round) -> Float[Tensor, " U"] | None:
        """Return eta times the largest similarity to Q less nu times that to P: what a candidate itself may add to flcmi."""
        query, private = self._query(round), self._private(round)
        if not len(query.h) and not len(private.h):
            return None
        candidates = self._candidates(round, torch.arange(len(round), device=round.device))
        return self.eta * candidates.nearest(query) - self.nu * candidates.nearest(private)

    def _flcmi(self, round: Round, budget: int, lot: Tensor, query: "_Points", private: "_Points") -> Int[Tensor, " b"]:
        """Return what adds something: the sum is a facility location, so gains only fall and old ones are upper bounds."""
        ground = self._candidates(round, lot[: self.ground])
        cap = self.eta * ground.nearest(query) if len(query.h) else torch.full_like(ground.h[:, 0], torch.inf)
        level = self.nu * ground.nearest(private)  # what a similarity must exceed to add anything

        def reached(rows: Tensor) -> Float[Tensor, "k V"]:
            found = self._candidates(round, rows).similarities(ground)
            return torch.minimum(found, cap, out=found)

        def gains(rows: Tensor) -> Float[Tensor, " k"]:
            parts = rows.split(max(1, BLOCK // len(level)))
            return torch.cat([reached(part).sub_(level).clamp_(min=0).sum(1) for part in parts])

        bounds, picks = gains(torch.arange(len(round), device=round.device)), [lot[:0]]
        for _ in range(budget):
            pick = lazy_argmax(bounds, gains, lot).view(1)
            if not bool(bounds[pick] > 0):
                break
            level = torch.maximum(level, reached(pick)[0])
            bounds[pick] = -torch.inf
            picks.append(pick)
            left = torch.nonzero(level < cap).flatten()
            if 0 < len(left) < 0.8 * len(level):  # to the others nothing more is added
                ground, cap, level = ground.at(left), cap[left], level[left]
        return torch.cat(picks)

    def _logdetcmi(self, round: Round, budget: int, lot: Tensor, query: "_Points", private: "_Points") -> Int[Tensor, " B"]:
        """Return the greedy picks: similarities are products of features (1, h) / sqrt 2, conditional ones of a matrix more."""
        q, p = _features(query.h).double(), _features(private.h).double()
        scales = torch.cat([self.nu * torch.ones_like(p[:, 0]), self.eta * torch.ones_like(q[:, 0])])
        kernels = [_conditional(p, scales[: len(p)]), _conditional(torch.cat([p, q]), scales)]  # given P; given P and Q
        parts = lot.split(max(1, CHUNK_ELEMENTS // p.shape[1]))
        variances = torch.cat([_variances(_features(self._candidates(round, part).h), kernels) for part in parts])  # (U, 2)
        x, lengths = round.embeddings, round.embeddings.norm(dim=1).clamp(min=1e-12)
        free, picks = torch.ones_like(variances[:, 0], dtype=torch.bool), []
        for _ in range(budget):
            step = (variances[:, 0].log() - variances[:, 1].log()).where(free, -torch.inf).argmax()  # candidates go by lot
            picks.append(lot[step])
            phi = _features(self._candidates(round, lot[step].view(1)).h)[0].double()
            spread = variances[step].clone()
            for i, kernel in enumerate(kernels):
                w = kernel @ phi
                kernel -= torch.outer(w, w) / spread[i]
                along = w[0] + (x @ w[1:].to(x) / lengths).double()  # two narrow products are quicker than one of two columns
                variances[:, i] -= (0.5 / spread[i] * along.square())[lot]
            variances.clamp_(min=LEAST)
            free = free.index_fill(0, step, False)
        return torch.stack(picks)

    def _query(self, round: Round) -> "_Points":
        points = self._points(round, round.labeled_embeddings, round.labels)
        counts = torch.bincount(round.labels, minlength=round.num_classes)
        rare = (counts < counts.double().mean())[round.labels]
        return points.at(torch.nonzero(rare).flatten()) if self.query == "rare" and bool(rare.any()) else points

    def _private(self, round: Round) -> "_Points":
        return self._points(round, round.discarded_embeddings[round.outside])

    def _candidates(self, round: Round, rows: Int[Tensor, " n"]) -> "_Points":
        if self.kernel == "embeddings":
            return _points(round.embeddings[rows])
        return _points(round.embeddings[rows], round.probs[rows])

    def _points(self, round: Round, h: Float[Tensor, "n D"], labels: Int[Tensor, " n"] | None = None) -> "_Points":
        if self.kernel == "embeddings":
            return _points(h)
        weight, bias = round.head
        return _points(h, (h @ weight.T + bias).softmax(1), labels)


class _Points(NamedTuple):
    """Points as outer products of unit vectors a (n, C) and h (n, D): last-layer gradients; a is (n, 1) for embeddings."""

    a: Tensor
    h: Tensor

    def at(self, rows: Int[Tensor, " k"]) -> "_Points":
        return _Points(self.a[rows], self.h[rows])

    def similarities(self, others: "_Points") -> Float[Tensor, "n k"]:
        """Return (1 + cosine) / 2."""
        return products(self.h, others.h).mul_(products(self.a, others.a)).add_(1).mul_(0.5)

    def nearest(self, others: "_Points") -> Float[Tensor, " n"]:
        """Return the largest similarity to any of the others, 0 if there are none; block by block."""
        found = self.h.new_zeros(len(self.h))
        rows = max(1, CHUNK_ELEMENTS // len(found))
        for a, h in zip(others.a.split(rows), others.h.split(rows), strict=True):
            if len(a):
                found = torch.maximum(found, self.similarities(_Points(a, h)).amax(1))
        return found


def _points(
    h: Float[Tensor, "n D"], probs: Float[Tensor, "n C"] | None = None, labels: Int[Tensor, " n"] | None = None
) -> _Points:
    """Return embeddings as points, or with `probs` the gradients there: at `labels`, else at the predicted class."""
    if probs is None:
        return _Points(torch.ones_like(h[:, :1]), F.normalize(h))
    a = probs - F.one_hot(probs.argmax(1) if labels is None else labels, probs.shape[1])
    return _Points(F.normalize(a), F.normalize(torch.cat([h, torch.ones_like(h[:, :1])], 1)))  # 1: the bias


def _features(h: Float[Tensor, "n D"]) -> Float[Tensor, "n E"]:
    """Return vectors whose products are (1 + cosine) / 2."""
    return torch.cat([torch.ones_like(h[:, :1]), h], 1) * 0.5**0.5


def _conditional(given: Float[Tensor, "m E"], scales: Float[Tensor, " m"]) -> Float[Tensor, "E E"]:
    """Return M: given those, similarities are x' M y. Their own Gram matrix plus I is inverted, at size E; cross terms scale."""
    eye = torch.eye(given.shape[1], dtype=given.dtype, device=given.device)
    scaled = given * scales.unsqueeze(1)
    mixed = scaled.T @ given
    return eye - scaled.T @ scaled + mixed @ torch.linalg.solve(eye + given.T @ given, mixed.T)


def _variances(features: Float[Tensor, "n E"], kernels: list[Tensor]) -> Float[Tensor, "n k"]:
    found = [1 + (features @ kernel.to(features) * features).sum(1) for kernel in kernels]
    return torch.stack(found, 1).double().clamp(min=LEAST)
