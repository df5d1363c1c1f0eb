"""The open-set setting: part of the pool is of classes that are not asked about (as in ALScope, arXiv 2508.04937)."""

from collections.abc import Sequence

import torch

from alenv.settings.standard import validation_size
from alenv.streams import Streams
from alenv.task import Source, Split


def openset(
    source: Source,
    validation: float | int | None,
    streams: Streams,
    rate: float = 0.4,
    classes: int | Sequence[int] | None = None,
) -> Split:
    """Split `source` so that `rate` of the pool is of no class of the task.

    Buying such an example costs as much as any other and gives no label. Validation and test examples are of the task's classes
    only. Examples without a known label take no part. Sizes do not depend on the seed: where classes are drawn, as many
    examples are used as there are whichever classes are drawn.

    Args:
        source: the data set.
        validation: size (a whole number, or >= 1) or share (< 1) of the examples of the task's classes; None for 10 %, at
            most 200; 0 for none.
        streams: randomness of the seed.
        rate: share of the pool that is of no class; the smaller part of the two decides how many are used.
        classes: the task's classes by number, or how many are drawn (default: (1 - rate) of them, at least two).
    """
    if not 0 < rate < 1:
        raise ValueError(f"expected setting.rate between 0 and 1, got {rate}; for no outside examples use setting=standard")
    kept = _classes(source, classes, rate, streams)
    counts = torch.bincount(source.train.targets[source.train.targets >= 0], minlength=len(source.classes))
    inside, outside = _sizes(counts, kept, drawn=not isinstance(classes, Sequence))
    held = validation_size(inside, validation)
    if held >= inside:
        raise ValueError(f"validation={validation} asks for {held} of the {inside} examples of the task's classes; lower it")
    inside = min(inside - held, round((1 - rate) / rate * outside))
    outside = min(outside, round(rate / (1 - rate) * inside))
    known = torch.isin(source.train.targets, torch.tensor(kept))
    generator = streams("split")
    mine = _shuffled(known, generator)
    others = _shuffled(~known & (source.train.targets >= 0), generator)
    pool = torch.cat([mine[held : held + inside], others[:outside]]).sort().values
    test = torch.zeros(0, dtype=torch.int64)
    if source.test is not None:
        test = torch.nonzero(torch.isin(source.test.targets, torch.tensor([-1, *kept]))).flatten()
    facts = {"outside_rate": round(outside / len(pool), 6), "outside": outside, "classes": [source.classes[c] for c in kept]}
    return Split(pool, mine[:held].sort().values, test, tuple(kept), facts)


def _classes(source: Source, classes: int | Sequence[int] | None, rate: float, streams: Streams) -> list[int]:
    total = len(source.classes)
    if isinstance(classes, Sequence):
        kept = sorted(set(classes))
        if len(kept) < 2 or len(kept) >= total or not all(0 <= c < total for c in kept):
            raise ValueError(f"expected setting.classes to be 2..{total - 1} of the classes 0..{total - 1}, got {list(classes)}")
        return kept
    count = max(2, round((1 - rate) * total)) if classes is None else classes
    if not 2 <= count < total:
        raise ValueError(f"an open set needs 2..{total - 1} of the {total} classes of {source.name} inside, got {count}")
    return sorted(torch.randperm(total, generator=streams("split/classes"))[:count].tolist())


def _sizes(counts: torch.Tensor, kept: Sequence[int], drawn: bool) -> tuple[int, int]:
    """Return how many examples there are inside and outside: at least, if the classes are drawn."""
    if drawn:
        counts = counts.sort().values
        return int(counts[: len(kept)].sum()), int(counts[: len(counts) - len(kept)].sum())
    inside = int(counts[list(kept)].sum())
    return inside, int(counts.sum()) - inside


def _shuffled(mask: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    rows = torch.nonzero(mask).flatten()
    return rows[torch.randperm(len(rows), generator=generator)]
