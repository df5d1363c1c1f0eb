"""A multi-layer perceptron on flattened inputs."""

import math
from collections.abc import Sequence

from torch import Tensor

from alenv.model import TaskModel
from alenv.stacked import Layers


def mlp(
    input_shape: Sequence[int], num_outputs: int, mean: Tensor | float = 0.0, std: Tensor | float = 1.0,
    width: int | Sequence[int] = 256, depth: int = 2, dropout: float = 0.3,
) -> TaskModel:  # fmt: skip
    """Return ReLU layers, dropout and a linear head: `depth` layers of `width` units, or one for each width of a list."""
    widths = [width] * depth if isinstance(width, int) else list(width)
    if not widths:
        raise ValueError("expected depth >= 1 or a list of widths, got no hidden layer; for none use net=linear")
    body = Layers([math.prod(input_shape), *widths])
    return TaskModel(
        body, widths[-1], num_outputs, mean=mean, std=std, dropout=dropout,
        companion=lambda outputs: mlp(input_shape, outputs, mean, std, width, depth, dropout),
    )  # fmt: skip
