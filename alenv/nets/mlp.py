"""A multi-layer perceptron on flattened inputs."""

import math
from collections.abc import Sequence

from torch import Tensor

from alenv.model import TaskModel
from alenv.stacked import Layers


def mlp(
    input_shape: Sequence[int], num_outputs: int, mean: Tensor | float = 0.0, std: Tensor | float = 1.0,
    width: int = 256, depth: int = 2, dropout: float = 0.3,
) -> TaskModel:  # fmt: skip
    """Return `depth` ReLU layers of `width` units, dropout and a linear head."""
    if depth < 1:
        raise ValueError(f"expected depth >= 1, got {depth}; for no hidden layer use net=linear")
    body = Layers([math.prod(input_shape), *[width] * depth])
    return TaskModel(
        body, width, num_outputs, mean=mean, std=std, dropout=dropout,
        companion=lambda outputs: mlp(input_shape, outputs, mean, std, width, depth, dropout),
    )  # fmt: skip
