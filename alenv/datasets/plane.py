"""What generated data sets in the plane share: a fixed fifth for the test, inputs scaled to [0, 1]."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alenv.task import Examples, Source, number_ids

TEST_SHARE = 0.2


def plane(
    name: str, points: Float[Tensor, "n 2"], targets: Int[Tensor, " n"], classes: tuple[str, ...], generator: torch.Generator
) -> Source:
    """Return the points as a data set; the range of the training points decides how all of them are scaled."""
    order = torch.randperm(len(points), generator=generator)
    cut = round(TEST_SHARE * len(points))
    examples = Examples(points.float(), targets, number_ids(len(points)))
    train, test = examples.take(order[cut:].sort().values), examples.take(order[:cut].sort().values)
    low, high = train.inputs.amin(0), train.inputs.amax(0)
    return Source(name, train, test, classes, low, high - low)
