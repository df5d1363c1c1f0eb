"""Your own rows: a file of features, or of texts, with a label column that may have gaps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from alenv.datasets.frames import read_frame
from alenv.datasets.labels import class_numbers, hold_out
from alenv.datasets.moments import moments
from alenv.datasets.text import Corpus, Reading, text_source
from alenv.task import Examples, Source, number_ids

MOST_WORDS = 100  # different words a feature column may hold


def table(
    path: str = "data.csv", test: str | float | None = None, title: str = "table", label_column: str = "label",
    text_column: str | None = None, feature_columns: Sequence[str] | None = None, id_column: str | None = None,
    classes: Sequence[str] | None = None, encoding: str = "utf-8", text: Literal["tfidf", "tokens"] = "tfidf",
    width: int = 256, tokenizer: str | None = None, length: int = 128, cache: str | None = "auto",
) -> Source:  # fmt: skip
    """Return the data set in a file of rows: .csv, .tsv, .jsonl, .parquet or .arff.

    A row whose label cell is empty has no label: use oracle=file to be asked for it. Feature columns are numbers, standardised by
    the training rows, or words, which become one feature of 0 or 1 per word.

    Args:
        path: the file.
        test: a file of test rows with the same columns; a share (0.2) of the labelled rows, drawn once and for all; or None.
        title: what to call the data set.
        label_column: column of the classes.
        text_column: column of texts; None: rows are features.
        feature_columns: columns of features; None: all but label and id.
        id_column: column of ids; None: rows are numbered.
        classes: class names in order; None: those that occur in `path`.
        encoding: of text files.
        text: "tfidf" or "tokens", see `alenv.datasets.text.Reading`.
        width: features of tf-idf.
        tokenizer: folder of the tokenizer, for tokens.
        length: tokens per text.
        cache: where what was read is kept, see `alenv.datasets.store.kept`.

    Raises:
        ValueError: a file, a column, a text or a label is missing or not what it should be.
    """
    reading = Reading(text, width, tokenizer, length, cache)
    words = [column for column in (label_column, id_column, text_column) if column is not None]
    columns = [] if text_column is not None else feature_columns
    train = read_frame(Path(path).expanduser(), words, encoding, columns)
    held = read_frame(Path(test).expanduser(), words, encoding, columns) if isinstance(test, str) else None
    train.index = _ids(train, id_column, "" if held is None else "train-")
    if held is not None:
        held.index = _ids(held, id_column, "test-")
    elif test:
        known = ~train[label_column].isin(["", None]) & train[label_column].notna()
        kept, rows = hold_out(torch.from_numpy(known.to_numpy(bool, copy=True)), float(test))
        train, held = train.iloc[kept.tolist()], train.iloc[rows.tolist()]
    return frame_source(
        title, path, train, held, label_column, text_column, reading, classes, drop=[] if id_column is None else [id_column]
    )


def frame_source(
    name: str, where: str, train: pd.DataFrame, test: pd.DataFrame | None, label: str, text: str | None, reading: Reading,
    classes: Sequence[str] | None = None, drop: Sequence[str] = (),
) -> Source:  # fmt: skip
    """Return the data set of two frames whose index is the ids; `where` names them in messages, `drop` are no features."""
    targets, held, known = class_numbers(where, train[label], None if test is None else test[label], classes)
    if text is not None:
        corpora = [Corpus(list(train[text]), targets, tuple(train.index))]
        corpora += [] if test is None or held is None else [Corpus(list(test[text]), held, tuple(test.index))]
        return text_source(name, corpora[0], corpora[1] if test is not None else None, known, reading)
    drop = [label, *drop]
    inputs, held_inputs = _features(where, train.drop(columns=drop), None if test is None else test.drop(columns=drop))
    held_part = None
    if test is not None and held is not None and held_inputs is not None:
        held_part = Examples(held_inputs, held, tuple(test.index))
    return Source(name, Examples(inputs, targets, tuple(train.index)), held_part, known, *moments(inputs))


def _ids(frame: pd.DataFrame, column: str | None, prefix: str) -> pd.Index:
    return pd.Index(number_ids(len(frame), prefix) if column is None else frame[column].astype(str), dtype=object)


def _features(where: str, train: pd.DataFrame, test: pd.DataFrame | None) -> tuple[Tensor, Tensor | None]:
    """Return the float features of both frames; columns of words become a column per word that occurs in training rows."""
    if train.shape[1] == 0:
        raise ValueError(f"{where}: no columns of features; name some in dataset.feature_columns, or dataset.text_column")
    worded = [c for c in train if not pd.api.types.is_numeric_dtype(train[c]) and not pd.api.types.is_bool_dtype(train[c])]
    for column in worded:
        different = train[column].astype(str).nunique()
        if different > MOST_WORDS:
            raise ValueError(
                f"{where}: column '{column}' holds {different} different words; leave it out with dataset.feature_columns, "
                "or read it as text with dataset.text_column"
            )
    wide = pd.get_dummies(train, columns=worded)
    gaps = [str(c) for c in wide if wide[c].isna().any()]
    if gaps:
        rows = wide.index[wide[gaps].isna().any(axis=1)]
        raise ValueError(
            f"{where}: empty or NaN cells in columns {', '.join(gaps[:5])} of {len(rows)} rows (ids {', '.join(rows[:3])}); "
            "mend or drop them"
        )
    if test is None:
        return _tensor(wide), None
    return _tensor(wide), _tensor(pd.get_dummies(test, columns=worded).reindex(columns=wide.columns, fill_value=0))


def _tensor(frame: pd.DataFrame) -> Tensor:
    return torch.from_numpy(frame.to_numpy("float32", copy=True))
