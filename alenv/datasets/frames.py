"""Files of rows and columns as pandas frames: CSV, TSV, JSON lines, Parquet, ARFF."""

import gzip
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

PACKED = ".gz"


def read_frame(path: Path, words: Sequence[str], encoding: str = "utf-8", columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the rows of a file; its ending says what it is; CSV, TSV and JSON lines may be packed (.csv.gz).

    Args:
        path: the file.
        words: columns that are read as they are written ("007", "NA"); an empty cell is "".
        encoding: of text files.
        columns: which columns are wanted; None: all.

    Raises:
        ValueError: the file is missing, of an unknown kind or encoding, damaged, or lacks a column.
    """
    if not path.is_file():
        raise ValueError(f"no file {path.absolute()}; set dataset.path to it")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == PACKED else suffixes[-1] if suffixes else ""
    if kind not in READERS:
        raise ValueError(f"{path}: expected a file ending in {', '.join(READERS)} (text also .gz), got '{path.name}'")
    try:
        return READERS[kind](path, list(words), encoding, columns)
    except (UnicodeDecodeError, UnicodeError) as error:
        raise ValueError(f"{path} is not {encoding} text ({error}); save it as UTF-8, or set dataset.encoding") from error
    except LookupError as error:
        raise ValueError(f"{path}: {error}; set dataset.encoding to one that Python knows, such as utf-8 or cp1252") from error
    except _LackingColumnError:
        raise
    except Exception as error:  # readers of six formats fail in many ways
        raise ValueError(f"{path} cannot be read as {kind[1:]}: {error}") from error


class _LackingColumnError(ValueError):
    """A column that was asked for is not there."""


def _chosen(path: Path, there: Iterable[Any], words: Sequence[str], columns: Sequence[str] | None) -> list[str]:
    """Return the columns to read, in the file's order."""
    names = [str(name) for name in there]
    wanted = names if columns is None else [*columns, *words]
    lacking = [name for name in [*words, *(columns or ())] if name not in names]
    if lacking:
        raise _LackingColumnError(f"{path}: no column '{lacking[0]}'; its columns are {', '.join(names[:20])}")
    return [name for name in names if name in wanted]


def _separated(path: Path, words: list[str], encoding: str, columns: Sequence[str] | None, separator: str) -> pd.DataFrame:
    how: dict[str, Any] = {"sep": separator, "encoding": "utf-8-sig" if encoding == "utf-8" else encoding}
    chosen = _chosen(path, pd.read_csv(path, nrows=0, **how).columns, words, columns)
    said = pd.read_csv(path, usecols=[c for c in chosen if c in words], dtype=str, keep_default_na=False, **how)
    numbers = [c for c in chosen if c not in words]
    rest = pd.read_csv(path, usecols=numbers, low_memory=False, **how) if numbers else pd.DataFrame(index=said.index)
    return pd.concat([said, rest], axis=1)[chosen]


def _comma(path: Path, words: list[str], encoding: str, columns: Sequence[str] | None) -> pd.DataFrame:
    return _separated(path, words, encoding, columns, ",")


def _tab(path: Path, words: list[str], encoding: str, columns: Sequence[str] | None) -> pd.DataFrame:
    return _separated(path, words, encoding, columns, "\t")


def _lines(path: Path, words: list[str], encoding: str, columns: Sequence[str] | None) -> pd.DataFrame:
    with gzip.open(path, "rt", encoding=encoding) if path.suffix == ".gz" else path.open(encoding=encoding) as file:
        frame = pd.DataFrame([json.loads(line) for line in file if line.strip()])
    return frame[_chosen(path, frame.columns, words, columns)]


def _parquet(path: Path, words: list[str], encoding: str, columns: Sequence[str] | None) -> pd.DataFrame:
    import pyarrow.parquet

    del encoding
    chosen = _chosen(path, pyarrow.parquet.read_schema(path).names, words, columns)
    return pyarrow.parquet.read_table(path, columns=chosen, memory_map=True).to_pandas()


ATTRIBUTE = re.compile(r"""@attribute\s+('[^']*'|"[^"]*"|\S+)\s+(\S.*)""", re.IGNORECASE)


def _arff(path: Path, words: list[str], encoding: str, columns: Sequence[str] | None) -> pd.DataFrame:
    """Read dense ARFF (Weka): attributes of numbers, of listed words, of strings; ? is an empty cell."""
    lines = (line.strip() for line in path.read_text(encoding=encoding).splitlines())
    said = [line for line in lines if line and not line.startswith("%")]
    start = next((i for i, line in enumerate(said) if line.lower() == "@data"), None)
    if start is None:
        raise ValueError("there is no line @data")
    found = [match.groups() for line in said[:start] if (match := ATTRIBUTE.match(line))]
    kinds = {name.strip("'\""): kind for name, kind in found}
    if any(line.startswith("{") for line in said[start + 1 :]):
        raise ValueError("its rows are sparse; write them out")
    numeric = {name for name, kind in kinds.items() if kind.lower().startswith(("numeric", "real", "integer"))}
    chosen = _chosen(path, kinds, words, columns)
    frame = pd.read_csv(
        io.StringIO("\n".join(said[start + 1 :])), header=None, names=list(kinds), usecols=chosen, index_col=False, quotechar="'",
        escapechar="\\", skipinitialspace=True, dtype=str, keep_default_na=False,
    )  # fmt: skip
    frame = frame.replace("?", "")
    return frame.assign(**{c: pd.to_numeric(frame[c].replace("", None)) for c in chosen if c in numeric and c not in words})


READERS = {
    ".csv": _comma, ".tsv": _tab, ".jsonl": _lines, ".ndjson": _lines, ".parquet": _parquet, ".arff": _arff,
}  # fmt: skip
