"""ALFA-Mix (Parvaneh et al., "Active Learning by Feature Mixing", CVPR 2022, arXiv 2203.07034)."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alenv import geometry
from alenv.round import Round
from alenv.strategy import Strategy

TINY = 1e-30


class ALFAMix(Strategy):
    """Buy one candidate per cluster among those whose prediction flips when a class's mean embedding is mixed in.

    A candidate z is mixed with the mean z* of each class that has labels, z + a (z* - z) by components. Who flips is clustered,
    by normalised embedding, into B clusters, and the one nearest each centre is bought; where fewer than B flip, others follow
    by lot. O(U C D + iterations x U B D) in closed form, U C^2 D a cap and a step otherwise; memory one block.

    In closed form, a = (cap / sqrt D) |z* - z| g / |g| / (z* - z) for the gradient g of the cross-entropy at the prediction.
    Put in, this is a step of length (cap / sqrt D) |z* - z| along g / |g|, whatever the direction of z* - z; a linear head
    first changes its mind at a length known exactly, so the cap at which a candidate flips is too.

    As in the authors' code, the cap grows by its own size until more than B candidates flip or it reaches 1. Unlike there,
    classes without labels have no anchor, Adam keeps its state from step to step, and the point after the last step counts.

    Args:
        variant: where the mixing weights come from: "closed"; "learned" by gradient steps from random ones; "random".
        cap: largest component of a in "learned" and "random", its scale in "closed". The authors take 0.2 in closed form and
            0.03125 else.
        grow: let the cap grow.
        steps: of Adam on -CE + `penalty` |a|, if learned.
        lr: of the first two thirds of the steps; a tenth of it afterwards.
        penalty: of the norm of a, if learned.
        iterations: Lloyd steps at most.
    """

    needs = frozenset({"embeddings", "logits", "head", "labeled_embeddings", "labels"})
    family = "hybrid"

    def __init__(
        self, variant: Literal["closed", "learned", "random"] = "closed", cap: float = 0.2, grow: bool = True, steps: int = 5,
        lr: float = 0.1, penalty: float = 0.01, iterations: int = 25,
    ) -> None:  # fmt: skip
        if variant not in ("closed", "learned", "random"):
            raise ValueError(f"alfa_mix: expected variant=closed, learned or random, got '{variant}'")
        if not 0 < cap <= 1:
            raise ValueError(f"alfa_mix: expected 0 < cap <= 1, got {cap}")
        self.variant, self.cap, self.grow, self.iterations = variant, cap, grow, iterations
        self.steps, self.lr, self.penalty = steps if variant == "learned" else 0, lr, penalty

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return one position per cluster of flipping candidates, larger clusters first."""
        generator = round.generator("alfa_mix")
        anchors = class_means(round.labeled_embeddings, round.labels, round.num_classes)
        required = self.required_caps(round, anchors) if self.variant == "closed" else None
        flips = torch.zeros(len(round), dtype=torch.bool, device=round.device)
        for step in range(1, math.ceil(1 / self.cap) + 1 if self.grow else 2):
            cap = min(1.0, step * self.cap)
            flips |= self.mixed_flips(round, anchors, cap, generator) if required is None else required < cap
            if int(flips.sum()) > budget:
                break
        return geometry.one_per_cluster(F.normalize(round.embeddings[flips]), flips, budget, generator, self.iterations)

    def required_caps(self, round: Round, anchors: Float[Tensor, "A D"]) -> Float[Tensor, " U"]:
        """Return the caps above which candidates flip in closed form; infinite for those that never do."""
        if len(anchors) == 0:
            return torch.full((len(round),), torch.inf, device=round.device)
        weight, _ = round.head
        caps = []
        for h, logits in self._blocks(round):
            own = logits.argmax(1, keepdim=True)
            # p - onehot up to a positive factor, which confident predictions do not round to zero
            error = logits.scatter(1, own, -torch.inf).softmax(1).scatter(1, own, -1.0)
            gradient = error @ weight  # (n, D)
            slope = gradient @ weight.T / gradient.norm(dim=1, keepdim=True).clamp(min=TINY)
            rise, gap = slope - slope.gather(1, own), logits.gather(1, own) - logits
            length = torch.where(rise > 0, gap / rise, torch.inf).min(1).values
            reach = geometry.squared_distances(h, anchors).max(1).values.sqrt()
            caps.append(length * math.sqrt(h.shape[1]) / reach.clamp(min=TINY))
        return torch.cat(caps)

    def mixed_flips(
        self, round: Round, anchors: Float[Tensor, "A D"], cap: float, generator: torch.Generator
    ) -> Bool[Tensor, " U"]:
        """Return who flips under random mixing weights, or on the way from them to learned ones, for any anchor."""
        weight, bias = round.head
        found = torch.zeros(len(round), dtype=torch.bool, device=round.device)
        for anchor in anchors:
            noise = torch.randn(round.embeddings.shape, generator=generator, device=round.device, dtype=round.embeddings.dtype)
            for h, logits, u, flips in self._blocks(round, noise, found):
                own, away = logits.argmax(1), anchor - h
                mix = ((u + 1) * cap / 2).clamp(1e-8, cap)
                adam = torch.optim.Adam([mix], lr=self.lr)
                for step in range(self.steps + 1):
                    mixed = (h + mix * away) @ weight.T + bias
                    flips |= mixed.argmax(1) != own
                    if step == self.steps:
                        break
                    error = mixed.softmax(1) - F.one_hot(own, mixed.shape[1])
                    mix.grad = self.penalty * F.normalize(mix) - away * (error @ weight)
                    adam.param_groups[0]["lr"] = self.lr if 3 * step < 2 * self.steps else self.lr / 10
                    adam.step()
                    mix.clamp_(1e-8, cap)
        return found

    def _blocks(self, round: Round, *more: Tensor) -> "zip[tuple[Tensor, ...]]":
        rows = max(1, geometry.CHUNK_ELEMENTS // max(round.embeddings.shape[1], round.num_classes))
        return zip(*(array.split(rows) for array in (round.embeddings, round.logits, *more)), strict=True)


def class_means(h: Float[Tensor, "L D"], labels: Int[Tensor, " L"], classes: int) -> Float[Tensor, "A D"]:
    """Return the mean row of each class that has any."""
    sizes = torch.bincount(labels, minlength=classes)
    sums = h.new_zeros(classes, h.shape[1]).index_add_(0, labels, h)
    return sums[sizes > 0] / sizes[sizes > 0].unsqueeze(1)
