"""A setting with label noise: some training examples carry the label of another class, once and for all."""

from typing import Literal

import torch

from alenv.settings.standard import standard
from alenv.streams import Streams
from alenv.task import Source, Split


def noisy(
    source: Source, validation: float | int | None, streams: Streams, rate: float = 0.2,
    kind: Literal["uniform", "pair"] = "uniform", pool: int | None = None,
) -> Split:  # fmt: skip
    """Split `source` as `standard` does, with wrong labels in the pool and the validation split; the test split stays true.

    This is a data set whose annotations are bad, validation included. For one annotator who errs when asked, use oracle=noisy.

    Args:
        source: the data set.
        validation: see `alenv.settings.standard.standard`.
        streams: randomness of the seed.
        rate: probability that a label is wrong, in [0, 1).
        kind: "uniform": any other class, equally likely; "pair": always the class after the true one, the last one's is 0.
        pool: see `alenv.settings.standard.standard`.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"expected setting.rate in [0, 1), got {rate}")
    if kind not in ("uniform", "pair"):
        raise ValueError(f"expected setting.kind=uniform or pair, got '{kind}'")
    split = standard(source, validation, streams, pool)
    true, classes = source.train.targets, len(source.classes)
    generator = streams("split/noise")
    wrong = (torch.rand(len(true), generator=generator) < rate) & (true >= 0)
    shift = torch.randint(1, classes, (len(true),), generator=generator) if kind == "uniform" else torch.ones_like(true)
    targets = torch.where(wrong, (true + shift) % classes, true)
    share = float(wrong[split.pool].double().mean())
    return Split(split.pool, split.validation, split.test, facts={"noise_rate": round(share, 6)}, targets=targets)
