"""Mean and standard deviation of stored inputs."""

import torch
from torch import Tensor

from alenv.task import blocks

FLAT = 1e-6  # a spread below this is none: the feature is only centred


def moments(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation: of images of bytes per channel (channels, 1, 1), of everything else per feature.

    Inputs are read twice, in blocks, so they may lie in a file. A constant feature gets the deviation 1.
    """
    images = inputs.dtype == torch.uint8 and inputs.dim() == 4
    axes, each = ([0, 2, 3], inputs[0, 0].numel()) if images else ([0], 1)
    count = len(inputs) * each
    mean = sum((block.double().sum(axes, keepdim=True) for block in blocks(inputs)), torch.zeros(())) / count
    square = sum(((block.double() - mean).square().sum(axes, keepdim=True) for block in blocks(inputs)), torch.zeros(())) / count
    std = square.sqrt()
    return mean[0].float(), torch.where(std > FLAT * mean.abs().clamp(min=FLAT), std, 1.0)[0].float()
