"""The open-set setting: part of the pool is of classes that are not asked about (as in ALScope, arXiv 2508.04937)."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from alenv.settings.imbalance import class_sizes, drawn_rows, exponential, facts_of, groups, halves
from alenv.settings.standard import validation_size
from alenv.streams import Streams
from alenv.task import Source, Split

PROFILES = {"longtail": exponential, "step": halves}


def openset(
    source: Source,
    validation: float | int | None,
    streams: Streams,
    rate: float = 0.4,
    classes: int | Sequence[int] | None = None,
    factor: float = 1.0,
    profile: Literal["longtail", "step"] = "longtail",
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
        factor: smallest / largest class of the task in the training examples, as in `alenv.settings.imbalance`; 1: as they are.
        profile: how class sizes fall where factor < 1.
    """
    if not 0 < rate < 1:
        raise ValueError(f"expected setting.rate between 0 and 1, got {rate}; for no outside examples use setting=standard")
    if profile not in PROFILES:
        raise ValueError(f"expected setting.profile=longtail or step, got '{profile}'")
    kept, drawn = _classes(source, classes, rate, streams), not isinstance(classes, Sequence)
    names = [source.classes[c] for c in kept]
    targets = source.train.targets
    counts = torch.bincount(targets[targets >= 0], minlength=len(source.classes))
    inside, outside = _sizes(counts, kept, drawn)
    known = torch.isin(targets, torch.tensor(kept))
    found: Mapping[str, tuple[int, ...]] = {}
    if factor != 1:
        share = PROFILES[profile](factor, len(kept))
        sizes = torch.zeros_like(counts)
        sizes[kept] = class_sizes(counts.min().expand(len(kept)) if drawn else counts[kept], share, None, names)
        rows = drawn_rows(targets, sizes, streams("split/imbalance"))
        known = torch.zeros_like(known).index_fill_(0, rows, True)
        inside, found = len(rows), groups(share, names)
    held = validation_size(inside, validation)
    if held >= inside:
        raise ValueError(f"validation={validation} asks for {held} of the {inside} examples of the task's classes; lower it")
    inside = min(inside - held, round((1 - rate) / rate * outside))
    outside = min(outside, round(rate / (1 - rate) * inside))
    generator = streams("split")
    mine = _shuffled(known, generator)
    others = _shuffled(~torch.isin(targets, torch.tensor([-1, *kept])), generator)
    pool = torch.cat([mine[held : held + inside], others[:outside]]).sort().values
    test = torch.zeros(0, dtype=torch.int64)
    if source.test is not None:
        test = torch.nonzero(torch.isin(source.test.targets, torch.tensor([-1, *kept]))).flatten()
    facts = {"outside_rate": round(outside / len(pool), 6), "outside": outside, "classes": names}
    if found:
        number = torch.full((len(source.classes),), -1)
        number[kept] = torch.arange(len(kept))
        facts |= {"factor": factor, **facts_of(number[targets[pool]], names, found)}
    return Split(pool, mine[:held].sort().values, test, tuple(kept), facts, found)


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
