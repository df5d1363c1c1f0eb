"""Published text sets, read from the archives they were released in or from Parquet files.

AG News, Yelp reviews, DBpedia (Zhang, Zhao & LeCun, NeurIPS 2015), IMDB (Maas et al., ACL 2011), SST-5 (Socher et al., EMNLP
2013), TREC-6 (Li & Roth, COLING 2002).
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd

from alenv.datasets.frames import read_frame
from alenv.datasets.huggingface import download_parquet
from alenv.datasets.table import frame_source
from alenv.datasets.text import Reading
from alenv.task import Source, number_ids


class _Set(NamedTuple):
    """A set: class names, the file that shows that its archive is there, how a part is read, and where the hub has it.

    `columns` are the hub's columns of the text (joined by a blank) and of the class number.
    """

    classes: tuple[str, ...]
    folder: str
    shown_by: str
    read: Callable[[Path, str], list[tuple[str, int]]]
    hub: str
    columns: tuple[str, ...]
    revision: str | None = None


def text_set(
    name: Literal["ag_news", "yelp5", "dbpedia14", "imdb", "sst5", "trec6"], root: str = "data", download: bool = False,
    text: Literal["tfidf", "tokens"] = "tfidf", width: int = 256, tokenizer: str | None = None, length: int = 128,
    cache: str | None = "auto",
) -> Source:  # fmt: skip
    """Return a published text set; of SST-5 whole sentences without its development part, of IMDB the labelled reviews.

    Args:
        name: which one.
        root: the unpacked archive, the folder that holds it, or one of `train.parquet` and `test.parquet` (columns text, label).
        download: fetch the set from the Hugging Face hub into `root/<name>` if it is not there (extra `hf`).
        text: "tfidf" or "tokens", see `alenv.datasets.text.Reading`.
        width: features of tf-idf.
        tokenizer: folder of the tokenizer, for tokens.
        length: tokens per text.
        cache: where what was read is kept, see `alenv.datasets.store.kept`.

    Raises:
        ValueError: the files are not there or hold something else.
    """
    if name not in SETS:
        raise ValueError(f"expected name to be one of {', '.join(SETS)}, got '{name}'")
    base, chosen = Path(root).expanduser(), SETS[name]
    if download and not _there(base, name):
        download_parquet(chosen.hub, chosen.columns, base / name, chosen.revision)
    train, test = (_part(base, name, part) for part in ("train", "test"))
    reading = Reading(text, width, tokenizer, length, cache)
    return frame_source(name, str(base), train, test, "label", "text", reading, chosen.classes)


def _there(base: Path, name: str) -> Path | None:
    """Return the folder of the set's Parquet files or of its archive."""
    chosen = SETS[name]
    candidates = [base / name / "train.parquet", base / "train.parquet", base / chosen.shown_by]
    return next((f for f in [*candidates, base / chosen.folder / chosen.shown_by] if f.exists()), None)


def _part(base: Path, name: str, part: str) -> pd.DataFrame:
    found, chosen = _there(base, name), SETS[name]
    if found is None:
        raise ValueError(
            f"no {name} in {base.absolute()}: expected {chosen.folder}/{chosen.shown_by} or {name}/train.parquet; "
            "set dataset.root to its folder, or dataset.download=true"
        )
    if found.suffix == ".parquet":
        frame = read_frame(found.with_name(f"{part}.parquet"), ["text", "label"], columns=[])
    else:
        levels = len(Path(chosen.shown_by).parts)
        frame = pd.DataFrame(_archive(found.parents[levels - 1], chosen, part), columns=["text", "label"])
    outside = frame[~frame["label"].isin(range(len(chosen.classes)))]
    if len(frame) == 0 or len(outside):
        said = f"class {outside['label'].iloc[0]}" if len(outside) else "no text"
        raise ValueError(f"{found}: expected {part} texts of classes 0..{len(chosen.classes) - 1}, got {said}; get it again")
    frame["label"] = frame["label"].map(dict(enumerate(chosen.classes)))
    return frame.set_index(pd.Index(number_ids(len(frame), f"{part}-")))


def _archive(folder: Path, chosen: _Set, part: str) -> list[tuple[str, int]]:
    try:
        return chosen.read(folder, part)
    except OSError as error:
        raise ValueError(f"{error.filename} is missing; get the archive again") from error
    except (ValueError, IndexError) as error:
        raise ValueError(f"{folder}: the {part} part is damaged ({error}); get the archive again") from error


def _rows(folder: Path, part: str) -> list[tuple[str, int]]:
    """Read "class","title","text" rows of Zhang, Zhao & LeCun: classes from 1, line ends written as backslash n."""
    frame = pd.read_csv(folder / f"{part}.csv", header=None, dtype=str, keep_default_na=False, encoding="utf-8")
    texts = frame.iloc[:, 1:].agg(" ".join, axis=1).str.replace("\\\\n|\\\\", " ", regex=True).str.strip()
    return list(zip(texts, frame[0].astype(int) - 1, strict=True))


def _reviews(folder: Path, part: str) -> list[tuple[str, int]]:
    """Read one file per review, negative ones first."""
    found = []
    for label, sense in enumerate(("neg", "pos")):
        paths = sorted((folder / part / sense).glob("*.txt"))
        found += [(path.read_text(encoding="utf-8").replace("<br />", " "), label) for path in paths]
    return found


def _trees(folder: Path, part: str) -> list[tuple[str, int]]:
    """Read one parse tree per line: the number at its root is the class, its leaves are the words."""
    lines = (folder / f"{part}.txt").read_text(encoding="utf-8").splitlines()
    brackets = {"-LRB-": "(", "-RRB-": ")"}
    leaves = [[brackets.get(word, word) for word in re.findall(r"\(\d ([^()]+)\)", line)] for line in lines]
    return [(" ".join(words).replace("\\/", "/"), int(line[1])) for words, line in zip(leaves, lines, strict=True) if line]


def _questions(folder: Path, part: str) -> list[tuple[str, int]]:
    """Read "COARSE:fine question" lines, which are Latin-1."""
    file = folder / {"train": "train_5500.label", "test": "TREC_10.label"}[part]
    found = []
    for line in file.read_text(encoding="latin-1").splitlines():
        kind, _, question = line.partition(" ")
        found.append((question, COARSE.index(kind.partition(":")[0])))
    return found


COARSE = ("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM")
SETS = {
    "ag_news": _Set(
        ("world", "sports", "business", "sci/tech"), "ag_news_csv", "train.csv", _rows, "fancyzhx/ag_news", ("text", "label")
    ),
    "yelp5": _Set(
        ("1 star", "2 stars", "3 stars", "4 stars", "5 stars"), "yelp_review_full_csv", "train.csv", _rows,
        "Yelp/yelp_review_full", ("text", "label"),
    ),
    "dbpedia14": _Set(
        ("company", "educational institution", "artist", "athlete", "office holder", "mean of transportation", "building",
         "natural place", "village", "animal", "plant", "album", "film", "written work"),
        "dbpedia_csv", "train.csv", _rows, "fancyzhx/dbpedia_14", ("title", "content", "label"),
    ),
    "imdb": _Set(("negative", "positive"), "aclImdb", "train/pos", _reviews, "stanfordnlp/imdb", ("text", "label")),
    "sst5": _Set(
        ("very negative", "negative", "neutral", "positive", "very positive"), "trees", "train.txt", _trees, "SetFit/sst5",
        ("text", "label"),
    ),
    "trec6": _Set(
        ("abbreviation", "entity", "description", "human", "location", "number"), "trec", "train_5500.label", _questions,
        "CogComp/trec", ("text", "coarse_label"), "refs/convert/parquet",
    ),
}  # fmt: skip
