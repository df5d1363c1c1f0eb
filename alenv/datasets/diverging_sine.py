"""Diverging Sine: Werner, Burchert, Stubbemann & Schmidt-Thieme, NeurIPS 2024 (Datasets & Benchmarks), CDALBench."""

import torch

from alenv.datasets.plane import plane
from alenv.task import Source


def diverging_sine(size: int = 100, seed: int = 0) -> Source:
    """Return two classes on sines that part: y = sin(2x) +- x/2 with noise of standard deviation 0.3, x uniform in [0, 10].

    They lie on top of each other at the left and far apart at the right: labels there are wasted.

    Args:
        size: points a class.
        seed: of the points; runs of other seeds split and buy other ones of the same points. Null in a configuration stands
            for the run's own seed.
    """
    generator = torch.Generator().manual_seed(seed)
    x = 10 * torch.rand(2, size, generator=generator)
    side = torch.tensor([[-0.5], [0.5]])
    y = torch.sin(2 * x) + side * x + 0.3 * torch.randn(2, size, generator=generator)
    targets = torch.tensor([0, 1]).repeat_interleave(size)
    return plane("diverging_sine", torch.stack([x, y], 2).reshape(-1, 2), targets, ("lower", "upper"), generator)
