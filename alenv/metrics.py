"""What a classifier is worth on labelled examples.

Five numbers out of one pass, without the four seconds that importing torchmetrics takes; tests compare them with torchmetrics.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

ECE_BINS = 15


def confusion(predictions: Int[Tensor, " n"], targets: Int[Tensor, " n"], num_classes: int) -> Float[Tensor, "C C"]:
    """Return counts by (true class, predicted class)."""
    cells = torch.bincount(targets * num_classes + predictions, minlength=num_classes**2)
    return cells.view(num_classes, num_classes).double()


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
    if len(targets) == 0:
        return {}
    table = confusion(logits.argmax(1), targets, logits.shape[1])
    hits, true, predicted = table.diagonal(), table.sum(1), table.sum(0)
    present, seen = true > 0, (true + predicted) > 0
    recall = hits / true.clamp(min=1)
    values = torch.stack([
        hits.sum() / table.sum(),
        (2 * hits / (true + predicted).clamp(min=1))[seen].mean(),
        recall[present].mean(),
        F.cross_entropy(logits.double(), targets),
        _calibration_error(logits, targets),
    ])  # fmt: skip
    found = dict(zip(("accuracy", "macro_f1", "balanced_accuracy", "nll", "ece"), values.tolist(), strict=True))
    return found | _of_groups(recall.tolist(), present.tolist(), groups or {})


def purchase(labels: Int[Tensor, " B"], labeled: int, inside: int) -> dict[str, float]:
    """Return precision and recall of a purchase in an open set (Ning et al., CVPR 2022, section 4).

    Args:
        labels: what the bought examples turned out to be; negative: not usable.
        labeled: usable labels so far, these included.
        inside: examples of the task's classes in the pool, bought or not.
    """
    return {"query_precision": int((labels >= 0).sum()) / max(1, len(labels)), "query_recall": labeled / max(1, inside)}


def _of_groups(recall: Sequence[float], present: Sequence[bool], groups: Mapping[str, Sequence[int]]) -> dict[str, float]:
    there = {name: [recall[c] for c in classes if present[c]] for name, classes in groups.items()}
    return {name: sum(values) / len(values) for name, values in there.items() if values}


def _calibration_error(logits: Tensor, targets: Tensor) -> Tensor:
    confidence, predictions = logits.double().softmax(1).max(1)
    bins = (confidence * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1
    gap = (predictions == targets).double() - confidence
    return torch.zeros(ECE_BINS, dtype=torch.float64, device=logits.device).index_add_(0, bins, gap).abs().sum() / len(targets)
