"""Gaussian mixtures drawn by a seed: small classification problems of every difficulty, to train selectors on."""

import torch

from alenv.streams import Streams
from alenv.task import Examples, Source, number_ids

HARDNESS = (1.0, 4.0)  # distance of centres, in standard deviations of a component
NOISE = 0.1  # labels that are wrong, at most


def mixtures(seed: int = 0, size: int = 300, test: int = 300, classes: int | None = None, features: int | None = None) -> Source:
    """Return a data set whose every property is drawn by `seed`.

    Each class has one to three components, a centre and a scale each; classes have unequal shares; some features say nothing; in
    half of the data sets up to a tenth of the labels is wrong.

    Args:
        seed: of everything.
        size: training examples.
        test: test examples.
        classes: C; None draws 2 to 6.
        features: None draws 2 to 16.
    """
    draw = Streams(seed)("mixtures")
    classes = classes or _between(2, 6, draw)
    features = features or _between(2, 16, draw)
    if size < 4 * classes or test < 1:
        raise ValueError(f"mixtures: expected size >= {4 * classes} (four examples a class) and test >= 1, got {size} and {test}")
    parts = _between(1, 3, draw)
    informative = torch.rand(features, generator=draw) < 0.75
    informative[0] = True
    low, high = HARDNESS
    spread = low + (high - low) * torch.rand((), generator=draw)
    centres = spread * torch.randn(classes, parts, features, generator=draw) * informative / informative.sum().sqrt()
    scales = 0.5 + torch.rand(classes, parts, 1, generator=draw)
    shares = 0.3 + torch.rand(classes, generator=draw)
    noise = NOISE * torch.rand((), generator=draw) * (torch.rand((), generator=draw) < 0.5)

    def examples(count: int, prefix: str) -> Examples:
        targets = torch.multinomial(shares, count, replacement=True, generator=draw)
        targets[: 4 * classes] = torch.arange(4 * classes)[:count] % classes  # no class is missing
        which = torch.randint(parts, (count,), generator=draw)
        inputs = centres[targets, which] + scales[targets, which] * torch.randn(count, features, generator=draw)
        wrong = torch.rand(count, generator=draw) < noise
        wrong[: 4 * classes] = False
        labels = torch.where(wrong, torch.randint(classes, (count,), generator=draw), targets)
        return Examples(inputs, labels, number_ids(count, prefix))

    train, held = examples(size, "train-"), examples(test, "test-")
    spreads = train.inputs.std(0, unbiased=False).clamp(min=1e-6)
    return Source("mixtures", train, held, tuple(str(c) for c in range(classes)), train.inputs.mean(0), spreads)


def _between(low: int, high: int, draw: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=draw))
