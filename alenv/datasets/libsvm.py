"""Sparse rows in the LIBSVM format (Chang & Lin 2011): `label index:value index:value ...`."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from alenv.datasets.labels import class_numbers, hold_out
from alenv.datasets.moments import moments
from alenv.task import Examples, Source, number_ids

MOST = 2**31  # numbers that are written out: 8 GiB


def libsvm(path: str = "data.svm", test: str | float | None = None, title: str = "libsvm") -> Source:
    """Return the data set in a LIBSVM file (plain, .gz or .bz2); rows are written out, features standardised by training rows.

    Args:
        path: the file.
        test: a file of test rows; a share (0.2) of the rows, drawn once and for all; or None.
        title: what to call the data set.

    Raises:
        ValueError: a file is missing or damaged, labels are decimals, or the rows are too wide to write out.
    """
    from sklearn.datasets import load_svmlight_files

    files = [Path(p).expanduser() for p in ((path, test) if isinstance(test, str) else (path,))]
    for file in files:
        if not file.is_file():
            raise ValueError(f"no file {file.absolute()}; set dataset.path (and dataset.test) to it")
    try:
        read = load_svmlight_files([str(file) for file in files], dtype=np.float32)
    except (ValueError, OSError, EOFError, OverflowError) as error:
        raise ValueError(f"{path} cannot be read as LIBSVM rows 'label index:value ...': {error}") from error
    if sum(x.shape[0] * x.shape[1] for x in read[::2]) > MOST:
        raise ValueError(f"{path}: {read[0].shape} numbers are too many to write out; choose columns or project them first")
    labels = [pd.Series(y) for y in read[1::2]]
    targets, held, classes = class_numbers(path, labels[0], labels[1] if len(labels) > 1 else None)
    train = Examples(torch.from_numpy(read[0].toarray()), targets, number_ids(len(targets), "train-" if len(files) > 1 else ""))
    kept = None
    if held is not None:
        kept = Examples(torch.from_numpy(read[2].toarray()), held, number_ids(len(held), "test-"))
    elif test:
        stays, rows = hold_out(torch.ones(len(train), dtype=torch.bool), float(test))
        train, kept = train.take(stays), train.take(rows)
    return Source(title, train, kept, classes, *moments(train.inputs))
