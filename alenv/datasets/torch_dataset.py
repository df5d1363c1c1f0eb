"""Any map-style `torch.utils.data.Dataset`, by import path or as an object."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from alenv.datasets.images import pixels_of
from alenv.datasets.labels import class_numbers
from alenv.datasets.moments import moments
from alenv.datasets.store import Allocate, kept
from alenv.library import resolve
from alenv.task import Examples, Source, number_ids

LABELS = ("targets", "labels", "_labels")  # where torchvision's and most others keep them


def torch_dataset(
    train: Any = "mymodule:MyDataset", test: Any = None, arguments: Mapping[str, Any] | None = None,
    test_arguments: Mapping[str, Any] | None = None, title: str = "torch_dataset", classes: Sequence[str] | None = None,
    side: int | None = None, channels: int = 3, cache: str | None = None, key: str | None = None,
) -> Source:  # fmt: skip
    """Return the data set in a `Dataset` whose items are (input, label): a PIL image, an array or a tensor, and a whole number.

    Labels come from its attribute `targets` or `labels` where it has one of its length, so that nothing is decoded to read them;
    otherwise from its items. Every item is read once; apply no random transform.

    Args:
        train: the `Dataset`, or "module:Class" (or any callable) that makes it.
        test: the same for the test examples; None for none.
        arguments: what `train` is called with if it is named.
        test_arguments: what `test` is called with.
        title: what to call the data set.
        classes: class names; None: the attribute `classes`, else the labels that occur.
        side: pixels PIL images are resized and cut to; None: all have one size.
        channels: 3 for colours, 1 for grey, of PIL images.
        cache: where inputs are kept as a file, so that they need not fit in memory; needs `key`.
        key: names the file in `cache`: change it when the data change.

    Raises:
        ValueError: items are no pairs, or have several shapes or no whole-number label.
    """
    if cache is not None and key is None:
        raise ValueError("dataset.cache needs dataset.key, a name for these data: a Dataset does not say what it holds")
    made = {"train": _made(train, arguments)} | ({} if test is None else {"test": _made(test, test_arguments)})
    labels = {part: _labels(dataset) for part, dataset in made.items()}
    names = classes or getattr(made["train"], "classes", None)
    if names is not None and all(pd.api.types.is_integer_dtype(said) for said in labels.values()):
        labels = {
            part: said.map(lambda c: str(names[c]) if 0 <= c < len(names) else "" if c == -1 else str(c))
            for part, said in labels.items()
        }
    targets, held, known = class_numbers(title, labels["train"], labels.get("test"), names)
    inputs = {part: _inputs(d, side, channels, cache, f"{key}-{part}-{side}-{channels}") for part, d in made.items()}
    examples = Examples(inputs["train"], targets, number_ids(len(targets), "train-"))
    kept_back = None if held is None else Examples(inputs["test"], held, number_ids(len(held), "test-"))
    return Source(title, examples, kept_back, known, *moments(examples.inputs))


def _made(dataset: Any, arguments: Mapping[str, Any] | None) -> Any:
    found = resolve(dataset)(**(arguments or {})) if isinstance(dataset, str) else dataset
    if not hasattr(found, "__getitem__") or not hasattr(found, "__len__") or len(found) == 0:
        raise ValueError(f"expected a Dataset with a length above 0 and items, got {type(found).__name__}")
    return found


def _labels(dataset: Any) -> pd.Series:
    """Return the labels without touching inputs, if the data set or the one it is a subset of lists them."""
    inner, rows = getattr(dataset, "dataset", None), getattr(dataset, "indices", None)
    if inner is not None and rows is not None:
        return _labels(inner).iloc[list(rows)].reset_index(drop=True)
    for attribute in LABELS:
        found = getattr(dataset, attribute, None)
        if found is not None and len(found) == len(dataset):
            return pd.Series(np.asarray(found).reshape(len(dataset), -1)[:, 0])
    return pd.Series([_label(dataset, i) for i in range(len(dataset))])


def _label(dataset: Any, i: int) -> Any:
    item = _item(dataset, i)[1]
    return item.item() if isinstance(item, Tensor | np.generic) else item


def _item(dataset: Any, i: int) -> Any:
    item = dataset[i]
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise ValueError(f"expected items (input, label), got {type(item).__name__} at {i}; wrap the Dataset")
    return item


def _inputs(dataset: Any, side: int | None, channels: int, cache: str | None, key: str) -> Tensor:
    def make(allocate: Allocate) -> None:
        array: np.ndarray | None = None
        for i in range(len(dataset)):
            value = _array(_item(dataset, i)[0], side, channels)
            if array is None:
                array = allocate((len(dataset), *value.shape), "uint8" if value.dtype == np.uint8 else "float32")
            if value.shape != array.shape[1:]:
                raise ValueError(f"items have several shapes ({array.shape[1:]}, then {value.shape} at {i}); set dataset.side")
            array[i] = value

    return kept(key, make, cache)


def _array(value: Any, side: int | None, channels: int) -> np.ndarray:
    return pixels_of(value, side, channels) if hasattr(value, "convert") else torch.as_tensor(value).numpy()
