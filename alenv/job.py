"""What a trainer is asked for: a net, labelled inputs, and everything else that decides the result."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from alenv.convex import one_hot
from alenv.heads import Head
from alenv.model import TaskModel
from alenv.streams import Streams
from alenv.task import Augmentation


class Virtual(NamedTuple):
    """Training examples nobody bought: inputs as stored, and soft targets (v, C)."""

    inputs: Num[Tensor, "v ..."]
    targets: Float[Tensor, "v C"]


@dataclass(frozen=True, eq=False)
class Job:
    """One training: everything that decides its result.

    Attributes:
        net: makes the untrained model; called inside a seeded scope, so it starts from the same weights every round.
        inputs: (n, ...) labelled inputs, as stored.
        targets: (n,) their classes.
        streams: randomness of the campaign.
        round: selects the streams of this training.
        heads: extra heads.
        virtual: virtual examples, or None.
        weights: (n,) sample weights, or None for all one.
        augmentation: what the trainer may do to the inputs.
        like: a bare model of this net, ready on the device, if there is one: its twin is fitted, and `net` is not called.
    """

    net: Callable[[], TaskModel]
    inputs: Num[Tensor, "n ..."]
    targets: Int[Tensor, " n"]
    streams: Streams
    round: int = 0
    heads: tuple[Head, ...] = ()
    virtual: Virtual | None = None
    weights: Float[Tensor, " n"] | None = None
    augmentation: Augmentation | None = None
    like: TaskModel | None = None

    def __post_init__(self) -> None:
        if len(self.targets) == 0 and self.virtual is None:
            raise ValueError("expected at least one labelled example to train on, got none; buy a larger initial set")

    @property
    def size(self) -> int:
        """How many examples are trained on, virtual ones included."""
        return len(self.targets) + (0 if self.virtual is None else len(self.virtual.targets))

    def examples(self, num_classes: int) -> tuple[Tensor, Float[Tensor, "m C"], Float[Tensor, " m"]]:
        """Return inputs, target probabilities and weights, virtual examples included."""
        inputs, targets = self.inputs, one_hot(self.targets, num_classes)
        weights = torch.ones(len(targets), device=targets.device) if self.weights is None else self.weights
        if self.virtual is not None:
            inputs = torch.cat([inputs, self.virtual.inputs])
            targets = torch.cat([targets, self.virtual.targets])
            weights = torch.cat([weights, weights.new_ones(len(self.virtual.targets))])
        return inputs, targets, weights
