"""Hugging Face data sets: a hub id, a folder of data files, or what `save_to_disk` wrote (extra `hf`)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from torch import Tensor

from alenv.datasets.images import pixels_of, sizes_agree
from alenv.datasets.moments import moments
from alenv.datasets.store import Allocate, kept
from alenv.datasets.table import frame_source
from alenv.datasets.text import Reading
from alenv.task import Examples, Source, number_ids


def huggingface(
    path: str = "data", title: str = "huggingface", train: str = "train", test: str | None = "test", label_column: str = "label",
    text_column: str | None = None, image_column: str | None = None, subset: str | None = None, revision: str | None = None,
    download: bool = False, classes: Sequence[str] | None = None, side: int | None = None, channels: int = 3,
    text: Literal["tfidf", "tokens"] = "tfidf", width: int = 256, tokenizer: str | None = None, length: int = 128,
    cache: str | None = "auto",
) -> Source:  # fmt: skip
    """Return a Hugging Face data set. What an example is made of follows from its columns unless it is named.

    Args:
        path: what `Dataset.save_to_disk` wrote, a folder of data files, or a hub id such as "fancyzhx/ag_news".
        title: what to call the data set.
        train: name of the training split.
        test: name of the test split; None, or one that is not there, for none.
        label_column: column of the classes; -1 or nothing where unknown.
        text_column: column of texts.
        image_column: column of images; without this and `text_column`: the image column, else the one text column, else numbers.
        subset: configuration of a hub data set.
        revision: branch, tag or commit of a hub data set.
        download: fetch a hub data set; otherwise only what the machine already holds is read.
        classes: class names in order; None: those of the label's type, else those that occur.
        side: of images, see `alenv.datasets.image_folder.image_folder`.
        channels: of images, 3 or 1.
        text: "tfidf" or "tokens", see `alenv.datasets.text.Reading`.
        width: features of tf-idf.
        tokenizer: folder of the tokenizer, for tokens.
        length: tokens per text.
        cache: where what was read is kept, see `alenv.datasets.store.kept`.

    Raises:
        ValueError: data, split or column are not there, or an image cannot be decoded.
        ImportError: the package `datasets` is not installed.
    """
    splits = _load(path, subset, revision, download)
    if train not in splits:
        raise ValueError(f"{path} has no split '{train}'; set dataset.train to one of {', '.join(splits)}")
    parts = {"train": splits[train]} | ({"test": splits[test]} if test in splits else {})
    features = parts["train"].features
    for column in (label_column, text_column, image_column):
        if column is not None and column not in features:
            raise ValueError(f"{path}: no column '{column}'; its columns are {', '.join(features)}")
    known = list(getattr(features[label_column], "names", None) or []) or None
    labels = {part: _labels(rows, label_column, known) for part, rows in parts.items()}
    kinds = {column: _kind(feature) for column, feature in features.items() if column != label_column}
    if image_column is None and text_column is None:
        image_column = next((column for column, kind in kinds.items() if kind == "image"), None)
        texts = [column for column, kind in kinds.items() if kind == "text"]
        text_column = texts[0] if image_column is None and len(texts) == 1 else None
    if image_column is not None:
        made = {part: _images(rows, image_column, side, channels, cache) for part, rows in parts.items()}
        return _image_source(title, path, made, labels, classes or known)
    columns = [text_column] if text_column is not None else [column for column, kind in kinds.items() if kind == "number"]
    frames = {part: _frame(rows, columns, part).assign(**{label_column: labels[part].to_numpy()}) for part, rows in parts.items()}
    reading = Reading(text, width, tokenizer, length, cache)
    return frame_source(title, path, frames["train"], frames.get("test"), label_column, text_column, reading, classes or known)


def download_parquet(path: str, columns: Sequence[str], folder: Path, revision: str | None = None) -> None:
    """Fetch a hub data set and write `train.parquet` and `test.parquet`: text (all but the last of `columns`) and label."""
    splits = _load(path, None, revision, download=True)
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("test", "train"):  # training last: where it is, the set is whole
        frame = splits[part].select_columns(list(columns)).to_pandas()
        texts = frame[list(columns[:-1])].agg(" ".join, axis=1)
        pd.DataFrame({"text": texts, "label": frame[columns[-1]]}).to_parquet(folder / f"{part}.parquet")


def _load(path: str, subset: str | None, revision: str | None, download: bool) -> dict[str, Any]:
    """Return the splits by name."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f'Hugging Face data sets need the package datasets ({error}): pip install "alenv[hf]"') from error
    local = Path(path).expanduser()
    try:
        if (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
            found = datasets.load_from_disk(str(local))
        else:
            config = datasets.DownloadConfig(local_files_only=not download and not local.exists())
            where = str(local) if local.exists() else path
            found = datasets.load_dataset(where, subset, revision=revision, download_config=config)
    except Exception as error:  # the package raises a dozen kinds
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        remedy = "look at the folder" if local.exists() else "set dataset.path to a folder, or dataset.download=true for a hub id"
        raise ValueError(f"no Hugging Face data set at '{path}' ({first}); {remedy}") from error
    return dict(found) if isinstance(found, dict) else {"train": found}


def _kind(feature: Any) -> str:
    """Return what a column holds: image, text, number or other."""
    if type(feature).__name__ == "Image":
        return "image"
    dtype = str(getattr(feature, "dtype", ""))
    if dtype in ("string", "large_string"):
        return "text"
    return "number" if dtype.startswith(("int", "uint", "float", "bool")) else "other"


def _labels(rows: Any, column: str, names: Sequence[str] | None) -> pd.Series:
    """Return the label column alone, names where its type has some."""
    found = rows.with_format(None).data.column(column).to_pandas() if rows._indices is None else pd.Series(rows[column])
    if names is None:
        return found
    return found.map(lambda c: names[int(c)] if pd.notna(c) and c >= 0 else "")


def _frame(rows: Any, columns: Sequence[str], part: str) -> pd.DataFrame:
    frame = rows.select_columns(list(columns)).with_format(None).to_pandas()
    return frame.set_index(pd.Index(number_ids(len(frame), f"{part}-")))


def _images(rows: Any, column: str, side: int | None, channels: int, cache: str | None) -> Tensor:
    """Return (n, channels, height, width) bytes, kept under the data set's own fingerprint."""
    images = rows.select_columns([column]).with_format(None)

    def decoded() -> Iterator[Any]:
        for i in range(len(images)):
            try:
                yield images[i][column]
            except Exception as error:  # whatever decoding a damaged image raises
                raise ValueError(f"image {i} of column '{column}' cannot be decoded ({error}); drop or replace it") from error

    def make(allocate: Allocate) -> None:
        width, height = (side, side) if side else sizes_agree((f"image {i}", image.size) for i, image in enumerate(decoded()))
        array = allocate((len(images), channels, height, width), "uint8")
        for i, image in enumerate(decoded()):
            array[i] = pixels_of(image, side, channels)

    return kept(f"huggingface-{images._fingerprint}-{side}-{channels}", make, cache)


def _image_source(
    title: str, path: str, inputs: dict[str, Tensor], labels: dict[str, pd.Series], classes: Sequence[str] | None
) -> Source:
    from alenv.datasets.labels import class_numbers

    targets, held, known = class_numbers(path, labels["train"], labels.get("test"), classes)
    train = Examples(inputs["train"], targets, number_ids(len(targets), "train-"))
    test = None if held is None else Examples(inputs["test"], held, number_ids(len(held), "test-"))
    return Source(title, train, test, known, *moments(train.inputs))
