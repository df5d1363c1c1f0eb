"""Extra heads: small nets on a task model's feature maps that strategies declare and the trainer trains."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
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
    """

    name: str
    build: Callable[[list[torch.Size], int, int], nn.Module]
    loss: Callable[[HeadBatch], Tensor]
    joint: bool = False
