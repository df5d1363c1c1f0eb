"""MQ-Net (Park et al., "Meta-Query-Net: Resolving Purity-Informativeness Dilemma in Open-set Active Learning", NeurIPS 2022)."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from alenv.geometry import CHUNK_ELEMENTS
from alenv.heads import Head, HeadBatch, StageHead, ranking_loss
from alenv.inference import Outputs
from alenv.round import Purchase, Round
from alenv.strategy import ScoreStrategy

HEAD = "mqnet_loss"
HIDDEN = 64


class MQNet(ScoreStrategy):
    """Score candidates by a small net that has learned to weigh informativeness against purity.

    Informativeness is 1 - max p, or a predicted loss; purity the largest cosine of (CSI) features with a labelled example,
    averaged over views. Both are standardised and exponentiated. In the first round the score is their sum. Later it is
    w2' sigmoid(w1' x + b1) + b2 with weights cut off below zero, so that it never falls when an input rises; the net is
    trained afresh on the previous purchase to rank its members as their losses do under the model they were chosen with, 0
    for those that turned out to be of no class. O(U L F + steps), memory one block of cosines.

    Paper and authors' code compute the net's inputs for the purchase alone, with the labels it was chosen by: here too. The
    code never takes an optimiser step, and adds raw informativeness in the first round of its "CONF" mode: not here. Nothing
    is remembered from round to round: everything is in the previous purchase.

    Args:
        features: name of the provider that purity is measured with.
        mode: "confidence", or "loss": predicted by a head trained beside the task model (Yoo & Kweon 2019).
        epochs: of `steps` optimiser steps each; the learning rate falls tenfold half-way.
        steps: optimiser steps per epoch.
        batch_size: members of the purchase a step.
        lr: learning rate of SGD.
    """

    family = "open-set"

    def __init__(
        self, features: str = "distinctive", mode: Literal["confidence", "loss"] = "confidence", epochs: int = 100,
        steps: int = 100, batch_size: int = 32, lr: float = 1e-3,
    ) -> None:  # fmt: skip
        if mode not in ("confidence", "loss"):
            raise ValueError(f"expected mode=confidence or loss, got '{mode}'")
        self.features, self.mode, self.epochs, self.steps = features, mode, epochs, steps
        self.batch_size, self.lr = batch_size, lr
        source = "probs" if mode == "confidence" else f"aux:{HEAD}"
        self.needs = frozenset({source, "labels", "last", f"features:{features}"})

    def heads(self) -> tuple[Head, ...]:
        """Return the head that predicts losses, in that mode."""
        return (Head(HEAD, lambda shapes, classes, size: StageHead(shapes), _loss),) if self.mode == "loss" else ()

    def score(self, round: Round) -> Float[Tensor, " U"]:
        """Return what the net makes of standardised informativeness and purity, or their sum in the first round."""
        informative = 1 - round.probs.max(1).values if self.mode == "confidence" else round.aux[HEAD][:, 0]
        x = _meta(informative, self.purity(round))
        taught = self._lesson(round)
        if taught is None:
            return x.sum(1)
        return _Net(round.generator("mqnet/init")).taught(*taught, round.generator("mqnet/order"), self)(x)

    def purity(self, round: Round) -> Float[Tensor, " U"]:
        """Return the largest cosine with a labelled example, as `purity`."""
        found = round.features(self.features)
        return round.once(self, lambda _: purity(found.candidates, found.labeled, found.views))

    def _lesson(self, round: Round) -> tuple[Float[Tensor, "B 2"], Float[Tensor, " B"]] | None:
        """Return inputs and losses of the previous purchase; None if no model chose it or fewer than two have an answer."""
        last = round.last
        if last is None or last.outputs is None:
            return None
        usable = (last.labels >= 0) | last.outside
        earlier = ~torch.isin(round.labeled_indices, last.indices)
        if int(usable.sum()) < 2 or not bool(earlier.any()):
            return None
        found = round.features(self.features)
        pure = purity(found.last, found.labeled[earlier], found.views)
        return _meta(self._informative(last.outputs)[usable], pure[usable]), _losses(last, last.outputs)[usable]

    def _informative(self, outputs: Outputs) -> Float[Tensor, " B"]:
        return 1 - outputs.logits.softmax(1).max(1).values if self.mode == "confidence" else outputs.aux[HEAD][:, 0]


class _Net:
    """2 -> 64 -> 1 with sigmoid units and non-negative weights; parameters start uniform in [0, 1), as the authors'."""

    def __init__(self, generator: torch.Generator) -> None:
        shapes = ((2, HIDDEN), (HIDDEN,), (HIDDEN,))
        self.w1, self.b1, self.w2 = (torch.rand(shape, generator=generator, device=generator.device) for shape in shapes)

    def __call__(self, x: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
        """Return scores; an offset would change no rank, nor the loss, and is left out."""
        return torch.sigmoid(x @ self.w1.relu() + self.b1) @ self.w2.relu()

    def taught(self, x: Float[Tensor, "B 2"], losses: Float[Tensor, " B"], generator: torch.Generator, how: MQNet) -> "_Net":
        """Return the net after ranking random pairs of the purchase by their losses."""
        pairs = min(how.batch_size, len(x)) // 2
        for epoch in range(how.epochs):
            lr = how.lr if epoch < how.epochs / 2 else how.lr / 10
            lots = torch.rand(how.steps, len(x), generator=generator, device=x.device).argsort(1)[:, : 2 * pairs]
            for rows in lots:
                for part, gradient in zip((self.w1, self.b1, self.w2), self.gradients(x[rows], losses[rows]), strict=True):
                    part.sub_(gradient, alpha=lr)
        return self

    def gradients(self, x: Float[Tensor, "n 2"], losses: Float[Tensor, " n"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return those of `heads.ranking_loss` by hand: the net is so small that autograd takes twice as long."""
        pairs = len(x) // 2
        hidden = torch.sigmoid(x @ self.w1.relu() + self.b1)
        scores = hidden @ self.w2.relu()
        sign = torch.where(losses[:pairs] > losses.flip(0)[:pairs], 1.0, -1.0)
        push = -sign * (sign * (scores[:pairs] - scores.flip(0)[:pairs]) < 1) / pairs
        push = torch.cat([push, -push.flip(0)])  # (n,), d loss / d score
        w2 = hidden.T @ push * (self.w2 > 0)
        inner = push[:, None] * (hidden * (1 - hidden) * self.w2.relu())
        return x.T @ inner * (self.w1 > 0), inner.sum(0), w2


def purity(x: Float[Tensor, "n E"], labeled: Float[Tensor, "L E"], views: int) -> Float[Tensor, " n"]:
    """Return the largest cosine with a labelled example, averaged over views; block by block."""
    unit = [F.normalize(part.unflatten(1, (views, -1)), dim=2).transpose(0, 1) for part in (x, labeled)]
    rows = max(1, CHUNK_ELEMENTS // max(1, len(labeled)))
    found = [
        torch.cat([(block @ anchors.T).max(1).values for block in mine.split(rows)]) for mine, anchors in zip(*unit, strict=True)
    ]
    return torch.stack(found).mean(0)


def _meta(informative: Float[Tensor, " n"], pure: Float[Tensor, " n"]) -> Float[Tensor, "n 2"]:
    """Return exp of the standard scores of both; values that are all equal become 1."""
    x = torch.stack([informative, pure], 1)
    spread = x.std(0, unbiased=False)
    return ((x - x.mean(0)) / torch.where(spread > 1e-8, spread, torch.inf)).exp()


def _losses(purchase: Purchase, outputs: Outputs) -> Float[Tensor, " B"]:
    """Return the cross-entropy of what was bought, 0 for what has no class."""
    return F.cross_entropy(outputs.logits, purchase.labels.clamp(min=0), reduction="none") * (purchase.labels >= 0)


def _loss(batch: HeadBatch) -> Tensor:
    losses = -(batch.targets * batch.logits.log_softmax(1)).sum(1)
    return ranking_loss(batch.outputs[:, 0], losses)
