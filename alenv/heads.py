"""Extra heads: small nets on a task model's feature maps that strategies declare and the trainer trains."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn


class HeadBatch(NamedTuple):
    """What a head's loss is computed from; `logits` are detached.

    Attributes:
        module: the head itself (per-example state may live in its buffers).
        outputs: (B, K) what the head returned.
        logits: (B, C) of the task model.
        targets: (B, C) class probabilities the model was trained on.
        rows: (B,) positions in the labelled set.
        epoch: 0-based.
        epochs: how many there are.
    """

    module: nn.Module
    outputs: Tensor
    logits: Tensor
    targets: Tensor
    rows: Tensor
    epoch: int
    epochs: int


@dataclass(frozen=True)
class Head:
    """A head to train beside the task model's own.

    Attributes:
        name: strategies find its outputs as `round.aux[name]`.
        build: makes the module from the stages' shapes (without the batch axis), the number of classes and of training
            examples (virtual ones included). The module maps the list of stages to (B, K).
        loss: scalar loss of one batch.
        joint: whether its gradient may reach the task model's body. Heads of mere candidates never do, so that adding a
            candidate does not change the task model.
        joint_until: share of the epochs after which a joint head is trained on detached features, in [0, 1].
        parameters: the numbers `build` and `loss` were made with, which tell heads of one name apart.
    """

    name: str
    build: Callable[[list[torch.Size], int, int], nn.Module]
    loss: Callable[[HeadBatch], Tensor]
    joint: bool = False
    joint_until: float = 1.0
    parameters: tuple[float, ...] = ()

    def same(self, other: "Head") -> bool:
        """Whether training one of them gives what the other would."""
        mine, theirs = ((h.parameters, h.joint_until, getattr(h.loss, "__qualname__", "")) for h in (self, other))
        return mine == theirs

    def reaches_body(self, epoch: int, epochs: int) -> bool:
        """Whether its gradient reaches the body in this epoch (0-based)."""
        return self.joint and epoch < self.joint_until * epochs


def distinct(heads: Iterable[Head]) -> tuple[Head, ...]:
    """Return one head of each name.

    Raises:
        ValueError: heads of one name differ: one module cannot be trained as both.
    """
    found: dict[str, Head] = {}
    for head in heads:
        first = found.setdefault(head.name, head)
        if not first.same(head):
            raise ValueError(
                f"two heads are called '{head.name}' but differ: {_described(first)} and {_described(head)}; give the strategies "
                "that share it the same parameters, or the head of one of them another name"
            )
    return tuple(found.values())


def _described(head: Head) -> str:
    return f"{getattr(head.loss, '__qualname__', 'loss')} with {(*head.parameters, head.joint_until)}"


class StageHead(nn.Module):
    """The head of Yoo & Kweon ("Learning Loss for Active Learning", CVPR 2019): every stage pooled, projected, joined.

    Per stage: mean over space (any size), linear to `width`, ReLU; then one linear layer on all of them.

    Args:
        shapes: of the stages, without the batch axis.
        outputs: K.
        width: units per stage.
    """

    def __init__(self, shapes: Sequence[Sequence[int]], outputs: int = 1, width: int = 128) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(shape[0], width) for shape in shapes)
        self.joined = nn.Linear(width * len(shapes), outputs)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Return (B, K)."""
        pooled = [stage.flatten(2).mean(2) if stage.dim() > 2 else stage for stage in stages]
        return self.joined(torch.cat([layer(x).relu() for layer, x in zip(self.projections, pooled, strict=True)], dim=1))


def ranking_loss(predicted: Float[Tensor, " B"], losses: Float[Tensor, " B"], margin: float = 1.0) -> Float[Tensor, ""]:
    """Return Yoo & Kweon's loss: mean over pairs (i, B + 1 - i) of max(0, margin - sign(l_i - l_j) (p_i - p_j)).

    The true losses are detached; sign(0) is -1, as in the paper's code. An odd middle sample pairs with nobody, and
    a batch of one has no loss.
    """
    half = len(losses) // 2
    fixed = losses.detach()
    above = fixed[:half] > fixed.flip(0)[:half]
    difference = predicted[:half] - predicted.flip(0)[:half]
    return (margin - torch.where(above, 1.0, -1.0) * difference).clamp(min=0).sum() / max(1, half)
