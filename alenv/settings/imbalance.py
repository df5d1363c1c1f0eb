"""Imbalanced settings: examples of some classes are made rare.

Exponentially: Cui et al., CVPR 2019, as in ALScope (arXiv 2508.04937); in a step: Buda, Maki & Mazurowski, Neural Networks 2018.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alenv.settings.standard import validation_size
from alenv.streams import Streams
from alenv.task import Source, Split

Test = Literal["balanced", "matched", "whole"]
Order = Literal["given", "drawn"]
SLACK = 1e-9  # 500 x 0.1 is 50, whatever floating point makes of it


def longtail(
    source: Source, validation: float | int | None, streams: Streams, factor: float = 0.1, base: int | None = None,
    test: Test = "balanced", order: Order = "given",
) -> Split:  # fmt: skip
    """Split `source` so that class sizes fall exponentially: the class of rank i keeps int(base x factor^(i / (C - 1))) examples.

    Validation is drawn uniformly from what is kept, so it is as imbalanced as the pool. Examples without a known label take no
    part. Sizes do not depend on the seed. Test metrics gain the recall of every class and of the head, medium and tail
    thirds of the classes.

    Args:
        source: the data set.
        validation: size (a whole number, or >= 1) or share (< 1) of the kept examples; None for 10 %, at most 200; 0 for none.
        streams: randomness of the seed.
        factor: smallest class / largest class, in (0, 1].
        base: size of the largest class; None: as large as the data allow.
        test: "balanced": as many test examples of every class; "matched": as imbalanced as the pool; "whole": as they are.
        order: "given": class 0 is the largest; "drawn": the seed decides which classes are rare.
    """
    return _split(source, validation, streams, exponential(factor, len(source.classes)), base, test, order, factor)


def step(
    source: Source, validation: float | int | None, streams: Streams, factor: float = 0.1, base: int | None = None,
    test: Test = "balanced", order: Order = "given",
) -> Split:  # fmt: skip
    """Split `source` so that the first half of the classes keep `base` examples each and the others int(base x factor).

    With an odd number of classes the middle one belongs to the rare ones. All else is as in `longtail`; test metrics gain
    the recall of every class, of the head (full classes) and of the tail (rare ones).
    """
    return _split(source, validation, streams, halves(factor, len(source.classes)), base, test, order, factor)


def exponential(factor: float, classes: int) -> Float[Tensor, " C"]:
    """Return factor^(i / (C - 1)), i = 0..C-1."""
    _check(factor)
    return torch.full((classes,), factor, dtype=torch.float64) ** (torch.arange(classes, dtype=torch.float64) / (classes - 1))


def halves(factor: float, classes: int) -> Float[Tensor, " C"]:
    """Return 1 for the first half of the ranks and `factor` for the others."""
    _check(factor)
    return torch.where(torch.arange(classes) < classes // 2, 1.0, torch.tensor(factor, dtype=torch.float64))


def class_sizes(
    counts: Int[Tensor, " C"], share: Float[Tensor, " C"], base: int | None, names: Sequence[str], drawn: bool = False
) -> Int[Tensor, " C"]:
    """Return int(base x share) for every class.

    Args:
        counts: how many examples there are of each.
        share: of `base`, at most 1.
        base: None for the smallest count / share: as many as there are, and no class falls short.
        names: for the message.
        drawn: classes get their shares by lot, so every class must suffice for every share.

    Raises:
        ValueError: a class has too few examples for `base`, or would keep none.
    """
    there = counts.min().expand(len(counts)) if drawn else counts
    if base is None:
        base = int((there / share + SLACK).min())
    sizes = (base * share + SLACK).long()
    short = torch.nonzero(sizes > there).flatten().tolist()
    if short:
        c = int(counts.argmin()) if drawn else short[0]
        raise ValueError(
            f"setting.base={base}: class '{names[c]}' has {int(counts[c])} examples but should keep "
            f"{int(sizes.max() if drawn else sizes[c])}; lower setting.base, or leave it out to use as many as there are"
        )
    if int(sizes.min()) < 1:
        raise ValueError(
            f"setting.factor={float(share.min()):g} leaves no example of class '{names[int(sizes.argmin())]}' "
            f"(largest class: {base}); raise setting.factor or setting.base"
        )
    return sizes


def drawn_rows(targets: Int[Tensor, " n"], sizes: Int[Tensor, " C"], generator: torch.Generator) -> Int[Tensor, " k"]:
    """Return positions of `sizes[c]` random examples of each class c, ascending."""
    lot = torch.randperm(len(targets), generator=generator)
    by_class = lot[targets[lot].sort(stable=True).indices]  # a random order inside each class; unknown labels (-1) first
    ordered = targets[by_class]
    starts = torch.searchsorted(ordered, torch.arange(len(sizes)))
    rank = torch.arange(len(targets)) - starts[ordered.clamp(min=0)]
    return by_class[(ordered >= 0) & (rank < sizes[ordered.clamp(min=0)])].sort().values


def groups(share: Float[Tensor, " C"], names: Sequence[str]) -> Mapping[str, tuple[int, ...]]:
    """Return the classes whose recall is recorded: each one, and head, (medium) and tail by falling `share`.

    Thirds by rank; where there are but two shares, or two classes, head and tail.
    """
    ranked = share.sort(descending=True, stable=True).indices
    if len(share.unique()) == 2:
        parts = dict(zip(("head", "tail"), (ranked[share[ranked] == s] for s in (share.max(), share.min())), strict=True))
    else:
        parts = dict(zip(("head", "medium", "tail"), ranked.tensor_split(3), strict=True))
    found = {f"{part}_recall": tuple(sorted(rows.tolist())) for part, rows in parts.items()}
    return found | {f"recall/{name}": (c,) for c, name in enumerate(names)}


def facts_of(targets: Int[Tensor, " n"], names: Sequence[str], found: Mapping[str, tuple[int, ...]]) -> dict[str, object]:
    """Return the realised class sizes of a pool, their ratio, and which classes are head, medium and tail."""
    counts = torch.bincount(targets[targets >= 0], minlength=len(names))
    said = {name.removesuffix("_recall"): [names[c] for c in rows] for name, rows in found.items() if name.endswith("_recall")}
    return {
        "class_sizes": dict(zip(names, counts.tolist(), strict=True)),
        "imbalance": round(int(counts.min()) / max(1, int(counts.max())), 6),
        **said,
    }


def _split(
    source: Source, validation: float | int | None, streams: Streams, share: Tensor, base: int | None, test: Test,
    order: Order, factor: float,
) -> Split:  # fmt: skip
    if test not in ("balanced", "matched", "whole"):
        raise ValueError(f"expected setting.test=balanced, matched or whole, got '{test}'")
    if order not in ("given", "drawn"):
        raise ValueError(f"expected setting.order=given or drawn, got '{order}'")
    names, targets = source.classes, source.train.targets
    if order == "drawn":
        share = share[torch.randperm(len(names), generator=streams("split/classes"))]
    counts = torch.bincount(targets[targets >= 0], minlength=len(names))
    sizes = class_sizes(counts, share, base, names, order == "drawn")
    kept = drawn_rows(targets, sizes, streams("split/imbalance"))
    held = validation_size(len(kept), validation)
    if held >= len(kept):
        raise ValueError(f"validation={validation} asks for {held} of the {len(kept)} examples the setting keeps; lower it")
    lot = torch.randperm(len(kept), generator=streams("split"))
    pool, validating = kept[lot[held:]].sort().values, kept[lot[:held]].sort().values
    found = groups(share, names)
    facts = {"factor": factor, **facts_of(targets[pool], names, found)}
    return Split(pool, validating, _test(source, share, test, streams), facts=facts, groups=found)


def _test(source: Source, share: Tensor, test: Test, streams: Streams) -> Tensor:
    if source.test is None:
        return torch.zeros(0, dtype=torch.int64)
    if test == "whole":
        return torch.arange(len(source.test))
    targets = source.test.targets
    counts = torch.bincount(targets[targets >= 0], minlength=len(source.classes))
    there = torch.where(counts > 0, counts, counts.max())  # a class without test examples takes none from the others
    weights = share if test == "matched" else torch.ones_like(share)
    sizes = (int((there / weights + SLACK).min()) * weights + SLACK).long()
    return drawn_rows(targets, sizes, streams("split/test"))


def _check(factor: float) -> None:
    if not 0 < factor <= 1:
        raise ValueError(f"expected setting.factor (smallest class / largest class) in (0, 1], got {factor}")
