"""The plain setting: a pool, a validation split drawn by the seed, the test split of the data set."""

import torch

from alenv.streams import Streams
from alenv.task import Source, Split

VALIDATION_SHARE, VALIDATION_MOST = 0.1, 200


def standard(source: Source, validation: float | int | None, streams: Streams, pool: int | None = None) -> Split:
    """Split `source`.

    Args:
        source: the data set.
        validation: size (a whole number, or >= 1) or share (< 1) of the training examples; None for 10 % of those with a known
            label, at most 200; 0 for none. Only examples with a known label are drawn, uniformly.
        streams: randomness of the seed.
        pool: how many of the remaining examples are drawn for the pool; None for all.
    """
    known = torch.nonzero(source.train.targets >= 0).flatten()
    size = validation_size(len(source.train) if validation is not None else len(known), validation)
    if size > len(known):
        raise ValueError(
            f"validation={validation} asks for {size} labelled examples but {source.name} has {len(known)}; lower it"
        )
    lot = known[torch.randperm(len(known), generator=streams("split"))[:size]]
    rest = torch.ones(len(source.train), dtype=torch.bool)
    rest[lot] = False
    remaining = torch.nonzero(rest).flatten()
    if pool is not None:
        if not 0 < pool <= len(remaining):
            raise ValueError(f"setting.pool={pool}: {source.name} has 1..{len(remaining)} examples for the pool")
        lot_of_pool = torch.randperm(len(remaining), generator=streams("split/pool"))[:pool]
        remaining = remaining[lot_of_pool.sort().values]
    test = len(source.test) if source.test is not None else 0
    return Split(pool=remaining, validation=lot.sort().values, test=torch.arange(test))


def validation_size(examples: int, validation: float | int | None) -> int:
    """Return how many examples `validation` means."""
    if validation is None:
        return min(VALIDATION_MOST, int(VALIDATION_SHARE * examples))
    if isinstance(validation, bool) or not isinstance(validation, int | float) or validation < 0:
        raise ValueError(f"expected validation to be a number >= 0 (a size, or a share below 1), got {validation!r}")
    return int(validation * examples) if isinstance(validation, float) and validation < 1 else int(validation)
