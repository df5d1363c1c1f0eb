"""Honeypot ("ThreeClust"): Werner, Burchert, Stubbemann & Schmidt-Thieme, NeurIPS 2024 (Datasets & Benchmarks), CDALBench."""

import torch

from alenv.datasets.plane import plane
from alenv.task import Source

MEANS = (((0.0, 0.0), (4.0, 3.0)), ((0.0, 6.0), (4.0, 3.0)))  # of each class


def honeypot(size: int = 150, seed: int = 0) -> Source:
    """Return two classes of two Gaussian clusters each; one cluster of each lies in the same place, where labels are noise.

    What is uncertain there stays uncertain whatever is bought: uncertainty sampling is caught in it.

    Args:
        size: points a cluster.
        seed: of the points; runs of other seeds split and buy other ones of the same points. Null in a configuration stands
            for the run's own seed.
    """
    generator = torch.Generator().manual_seed(seed)
    means = torch.tensor(MEANS).reshape(4, 1, 2)
    points = means + torch.randn(4, size, 2, generator=generator)
    targets = torch.tensor([1, 1, 0, 0]).repeat_interleave(size)
    return plane("honeypot", points.reshape(-1, 2), targets, ("negative", "positive"), generator)
