"""A multi-layer perceptron on flattened inputs."""

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from alenv.model import TaskModel


class _Layers(nn.Module):
    """Hidden layers that also hand out what each of them computed."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(sizes))

    def stages(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        x, maps = x.flatten(1), []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps, x

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x)[1]


def mlp(
    input_shape: Sequence[int], num_outputs: int, mean: Tensor | float = 0.0, std: Tensor | float = 1.0,
    width: int = 256, depth: int = 2, dropout: float = 0.3,
) -> TaskModel:  # fmt: skip
    """Return `depth` ReLU layers of `width` units, dropout and a linear head."""
    if depth < 1:
        raise ValueError(f"expected depth >= 1, got {depth}; for no hidden layer use net=linear")
    body = _Layers([math.prod(input_shape), *[width] * depth])
    return TaskModel(
        body, width, num_outputs, mean=mean, std=std, dropout=dropout,
        companion=lambda outputs: mlp(input_shape, outputs, mean, std, width, depth, dropout),
    )  # fmt: skip
