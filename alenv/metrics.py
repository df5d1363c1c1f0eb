"""What a classifier is worth on labelled examples.

Five numbers out of one pass, without the four seconds that importing torchmetrics takes; tests compare them with torchmetrics.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alenv.certainty import LINE, likeliest
from alenv.ops import class_log_softmax

ECE_BINS = 15
PIECE_ELEMENTS = 2**17  # logits looked at together: 512 kB, which with what is made of them stays near


def confusion(predictions: Int[Tensor, "*M n"], targets: Int[Tensor, "*M n"], num_classes: int) -> Float[Tensor, "*M C C"]:
    """Return counts by (true class, predicted class)."""
    cells = targets * num_classes + predictions
    many = cells.shape[:-1].numel()
    lanes = torch.arange(many, device=cells.device).unsqueeze(1) * num_classes**2
    counts = torch.bincount((cells.view(many, -1) + lanes).flatten(), minlength=many * num_classes**2)
    return counts.view(*cells.shape[:-1], num_classes, num_classes).double()


def classification(
    logits: Float[Tensor, "n C"], targets: Int[Tensor, " n"], groups: Mapping[str, Sequence[int]] | None = None
) -> dict[str, float]:
    """Return accuracy, macro F1, balanced accuracy, negative log-likelihood (nats) and expected calibration error.

    Macro averages run over the classes that occur: balanced accuracy over true ones, F1 over true or predicted ones.
    Calibration error is the L1 form over 15 equal bins of confidence (Guo et al. 2017). Empty input gives an empty dict.

    Args:
        logits: of n examples.
        targets: their classes.
        groups: classes by name; under each name the mean recall of those that occur is returned too (if any does).
    """
    return classifications(logits.unsqueeze(0), targets.unsqueeze(0), groups)[0]


def classifications(
    logits: Float[Tensor, "M n C"], targets: Int[Tensor, "M n"], groups: Mapping[str, Sequence[int]] | None = None
) -> list[dict[str, float]]:
    """Return `classification` of M models; each has the numbers it has alone."""
    rows = max(LINE, PIECE_ELEMENTS // max(1, logits[:, :1].numel()) // LINE * LINE)
    pieces = zip(logits.split(rows, 1), targets.split(rows, 1), strict=True)
    return Judged.joined([judged(*piece) for piece in pieces]).metrics(targets, logits.shape[2], groups)


class Judged(NamedTuple):
    """What metrics take of every example, for M models.

    Attributes:
        predictions: the likeliest class.
        confidence: its probability.
        likelihood: log-probability of the true class, nats.
    """

    predictions: Int[Tensor, "M n"]
    confidence: Float[Tensor, "M n"]
    likelihood: Float[Tensor, "M n"]

    @classmethod
    def joined(cls, pieces: Sequence["Judged"]) -> "Judged":
        """Return the examples of all pieces, in their order."""
        return pieces[0] if len(pieces) == 1 else cls(*(torch.cat(parts, 1) for parts in zip(*pieces, strict=True)))

    def some(self, lane: int, examples: Int[Tensor, " e"]) -> "Judged":
        """Return some examples, for one of the models."""
        return Judged(*(part[lane : lane + 1].index_select(1, examples) for part in self))

    def metrics(
        self, targets: Int[Tensor, "M n"], num_classes: int, groups: Mapping[str, Sequence[int]] | None = None
    ) -> list[dict[str, float]]:
        """Return what they come to, for each model."""
        if targets.shape[1] == 0:
            return [{} for _ in targets]
        table = confusion(self.predictions, targets, num_classes)
        hits, true, predicted = table.diagonal(dim1=1, dim2=2), table.sum(2), table.sum(1)
        present, seen = true > 0, (true + predicted) > 0
        recall = hits / true.clamp(min=1)
        values = torch.stack([
            hits.sum(1) / targets.shape[1],
            (2 * hits / (true + predicted).clamp(min=1)).sum(1) / seen.sum(1),
            recall.sum(1) / present.sum(1), -self.likelihood.double().mean(1),
            _calibration_error(self.confidence, self.predictions == targets),
        ], 1)  # fmt: skip
        names = ("accuracy", "macro_f1", "balanced_accuracy", "nll", "ece")
        found = [dict(zip(names, row, strict=True)) for row in values.tolist()]
        if not groups:
            return found
        recalls = zip(found, recall.tolist(), present.tolist(), strict=True)
        return [numbers | _of_groups(mine, there, groups) for numbers, mine, there in recalls]


def judged(logits: Float[Tensor, "M n C"], targets: Int[Tensor, "M n"]) -> Judged:
    """Return what takes a look at every logit; an example's numbers depend on no other, so it may be done in pieces."""
    log_probs = class_log_softmax(logits)
    highest, predictions = likeliest(log_probs)
    return Judged(predictions, highest.exp(), log_probs.gather(1, targets.unsqueeze(1)).squeeze(1))


def purchase(labels: Int[Tensor, " B"], labeled: int, inside: int) -> dict[str, float]:
    """Return precision and recall of a purchase in an open set (Ning et al., CVPR 2022, section 4).

    Args:
        labels: what the bought examples turned out to be; negative: not usable.
        labeled: usable labels so far, these included.
        inside: examples of the task's classes in the pool, bought or not.
    """
    return {"query_precision": int((labels >= 0).sum()) / max(1, len(labels)), "query_recall": labeled / max(1, inside)}


def auroc(scores: Float[Tensor, " n"], positive: Bool[Tensor, " n"]) -> float | None:
    """Return the probability that a positive scores higher than a negative, ties counting half; None if one kind is absent."""
    many = int(positive.sum())
    if many in (0, len(positive)):
        return None
    _, place, counts = scores.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2.0).double()[place]  # from 1; equal scores share their mean rank
    return float((ranks[positive].sum() - many * (many + 1) / 2) / (many * (len(positive) - many)))


def _of_groups(recall: Sequence[float], present: Sequence[bool], groups: Mapping[str, Sequence[int]]) -> dict[str, float]:
    there = {name: [recall[c] for c in classes if present[c]] for name, classes in groups.items()}
    return {name: sum(values) / len(values) for name, values in there.items() if values}


def _calibration_error(confidence: Float[Tensor, "M n"], right: Bool[Tensor, "M n"]) -> Float[Tensor, " M"]:
    bins = (confidence * ECE_BINS).ceil_().long().clamp_(1, ECE_BINS).sub_(1)
    over = (right.float() - confidence).double()
    sums = over.new_zeros(len(over), ECE_BINS).scatter_add_(1, bins, over)
    return sums.abs().sum(1) / confidence.shape[1]
