"""Labels as people write them, as class numbers; and a test split where there is none."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

SHOWN = 12  # classes that a message lists


def class_numbers(
    where: str, train: pd.Series, test: pd.Series | None, classes: Sequence[str] | None = None
) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    """Return class numbers of training and test labels (-1 where none is written) and the class names.

    Args:
        where: what a message calls the data.
        train: labels: words, whole numbers, booleans; empty or missing where unknown.
        test: the same, or None.
        classes: their names in order; None: those in `train`, in numeric order if all are numbers, else by alphabet.

    Raises:
        ValueError: labels are decimals (a regression target), none is known and no `classes` are given, or one is of no class.
    """
    said = {"train": _words(where, train)} | ({} if test is None else {"test": _words(where, test)})
    known = [str(name) for name in classes] if classes is not None else _ordered(said["train"])
    if not known:
        raise ValueError(f"{where}: no row has a label, so there are no class names; set dataset.classes=[...] to them")
    number = {name: c for c, name in enumerate(known)} | {"": -1}
    found: dict[str, Tensor] = {}
    for part, words in said.items():
        strange = sorted(set(words) - number.keys())
        if strange:
            raise ValueError(
                f"{where}: the {part} label '{strange[0]}' is none of the classes {', '.join(known[:SHOWN])}"
                f"{', ...' if len(known) > SHOWN else ''}; mend it, or list all classes in dataset.classes"
            )
        found[part] = torch.tensor([number[word] for word in words], dtype=torch.int64)
    return found["train"], found.get("test"), tuple(known)


def hold_out(known: Bool[Tensor, " n"], share: float) -> tuple[Int[Tensor, " k"], Int[Tensor, " m"]]:
    """Return the rows that stay and the rows of a test split: a fixed random `share` of those whose label is known."""
    if not 0 < share < 1:
        raise ValueError(f"expected the share of test examples between 0 and 1, got {share}")
    rows = torch.nonzero(known).flatten()
    lot = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[: round(share * len(rows))]]
    stays = torch.ones(len(known), dtype=torch.bool)
    stays[lot] = False
    return torch.nonzero(stays).flatten(), lot.sort().values


def _words(where: str, labels: pd.Series) -> list[str]:
    """Return labels as words, "" where unknown; whole numbers lose their ".0"."""
    missing = labels.isna()
    if pd.api.types.is_float_dtype(labels):
        decimals = labels[~missing & (labels % 1 != 0)]
        if len(decimals):
            raise _regression(where, decimals.iloc[0])
        return ["" if gone else str(int(value)) for value, gone in zip(labels, missing, strict=True)]
    words = ["" if gone else str(value).strip() for value, gone in zip(labels, missing, strict=True)]
    decimals_said = [word for word in set(words) if _decimal(word)]
    if decimals_said and all(_number(word) is not None for word in set(words) - {""}):
        raise _regression(where, min(decimals_said))
    return words


def _regression(where: str, value: Any) -> ValueError:
    return ValueError(f"{where}: expected labels that are words or whole numbers, got decimals such as {value}; bin them first")


def _ordered(words: Sequence[str]) -> list[str]:
    distinct = sorted(set(words) - {""})
    numbers = {word: _number(word) for word in distinct}
    return sorted(distinct, key=lambda w: numbers[w] or 0) if all(n is not None for n in numbers.values()) else distinct


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _decimal(word: str) -> bool:
    value = _number(word)
    return value is not None and not value.is_integer()
