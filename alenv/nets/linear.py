"""A linear head on the inputs themselves (or on frozen embeddings that are the inputs): convex, fitted to its optimum."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from alenv.model import TaskModel
from alenv.nets.mlp import mlp


def linear(input_shape: Sequence[int], num_outputs: int, mean: Tensor | float = 0.0, std: Tensor | float = 1.0) -> TaskModel:
    """Return softmax regression on flattened inputs; its companions are small MLPs, since a linear net learns no features."""
    return TaskModel(
        nn.Flatten(), math.prod(input_shape), num_outputs, mean=mean, std=std, solver="lbfgs",
        companion=lambda outputs: mlp(input_shape, outputs, mean, std, width=128, depth=1),
    )  # fmt: skip
