"""Data that cannot be learned from: the command says in one line what is wrong and what to do, and leaves nothing behind."""

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alenv import train

Case = Callable[[Path], list[str]]


def table(rows: list[list[Any]], *words: str, encoding: str = "utf-8") -> Case:
    """A CSV file of rows, the first one its header."""

    def made(folder: Path) -> list[str]:
        with (folder / "data.csv").open("w", newline="", encoding=encoding) as file:
            csv.writer(file).writerows(rows)
        return ["dataset=table", f"dataset.path={folder / 'data.csv'}", *words]

    return made


def arrays(*words: str, classes: str | None = None, **changes: Any) -> Case:
    """A folder of arrays; None: the file is not there."""

    def made(folder: Path) -> list[str]:
        held = {"train_inputs": np.arange(120, dtype=np.float32).reshape(40, 3), "train_targets": np.arange(40) % 2} | changes
        for name, values in held.items():
            if values is not None:
                np.save(folder / f"{name}.npy", values)
        if classes is not None:
            (folder / "classes.txt").write_text(classes)
        return ["dataset=arrays", f"dataset.root={folder}", *words]

    return made


def images(change: Callable[[Path], Any], *words: str) -> Case:
    """A folder of twenty images of two classes, changed somehow."""

    def made(folder: Path) -> list[str]:
        for i in range(20):
            path = folder / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), 10 * i, dtype=np.uint8)).save(path)
        change(folder)
        return ["dataset=image_folder", f"dataset.root={folder}", "dataset.cache=null", *words]

    return made


def nothing(*words: str) -> Case:
    return lambda folder: [word.format(folder=folder) for word in words]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


HEAD: list[Any] = ["x", "y", "label"]
ROWS: list[list[Any]] = [HEAD, *([i, i % 7, "ab"[i % 2]] for i in range(40))]


def with_labels(label: Callable[[int], Any]) -> list[list[Any]]:
    return [HEAD, *([i, i % 7, label(i)] for i in range(40))]


WITH_GAP = np.where(np.arange(120).reshape(40, 3) == 16, np.nan, 1.0).astype(np.float32)
CASES: dict[str, tuple[Case, str]] = {
    "corrupt image": (images(lambda root: (root / "a" / "4.png").write_bytes(b"no")), r"a/4\.png cannot be decoded.*get it"),
    "image cut short": (images(lambda root: cut(root / "b" / "5.png")), r"b/5\.png cannot be decoded.*or remove it"),
    "images of two sizes": (
        images(lambda root: Image.new("RGB", (9, 9)).save(root / "a" / "new.png")), r"several sizes.*set dataset\.side",
    ),
    "decimal labels": (table(with_labels(lambda i: i / 8)), r"expected labels that are words or whole numbers, got.*bin them"),
    "a class number beyond all": (arrays(train_targets=np.full(40, 10**9)), r"the highest class number, 1000000000, leaves"),
    "float targets": (arrays(train_targets=np.zeros(40)), r"expected one class number per train input \(40,\), got.*float64"),
    "targets of words": (arrays(train_targets=np.array(["a", "b"] * 20)), r"no plain numeric array.*write numbers"),
    "one-hot targets": (arrays(train_targets=np.eye(2, dtype=int)[np.arange(40) % 2]), r"expected one class number per"),
    "targets below -1": (
        arrays(train_targets=np.arange(40) % 2 - 7), r"expected train_targets of class numbers 0, 1, .*\(unknown\), got -7",
    ),
    "class folder without images": (images(lambda root: (root / "c").mkdir()), r"no training example of class c; remove"),
    "class name without example": (arrays(classes="a\nb\nc\n"), r"no training example of class c; remove the class name or add"),
    "named class without row": (table(ROWS, "dataset.classes=[a,b,c]"), r"no training example of class c"),
    "class named twice": (table(ROWS, "dataset.classes=[b,a,b]"), r"the class name 'b' occurs twice"),
    "duplicate ids": (table(ROWS, "dataset.id_column=y"), r"ids repeat \(first '0'\); every example needs an id of its own"),
    "unknown encoding": (table(ROWS, "dataset.encoding=klingon"), r"unknown encoding: klingon; set dataset\.encoding"),
    "another encoding": (
        table([*ROWS, [1, 1, "äöü"]], encoding="latin-1"), r"is not utf-8 text.*save it as UTF-8, or set dataset\.encoding",
    ),
    "unlabelled rows, simulated": (
        table(with_labels(lambda i: "" if i % 3 else "ab"[i % 2])), r"pool examples have no label.*use oracle=file",
    ),
    "unlabelled images, simulated": (
        images(lambda root: (root / "a" / "0.png").rename(root / "0.png")), r"pool examples have no label.*use oracle=file",
    ),
    "no label at all": (table(with_labels(lambda i: "")), r"no row has a label.*set dataset\.classes"),
    "single class": (table(with_labels(lambda i: "a")), r"expected at least two classes, got \['a'\]"),
    "single class of arrays": (arrays(train_targets=np.zeros(40, dtype=int)), r"expected at least two classes"),
    "NaN in a table": (table([*ROWS, ["nan", 1, "a"]]), r"empty or NaN cells in columns x of 1 rows.*mend or drop them"),
    "infinity in a table": (table([*ROWS, ["inf", 1, "a"]]), r"NaN or infinite values in 1 inputs.*mend or drop them"),
    "NaN in arrays": (arrays(train_inputs=WITH_GAP), r"NaN or infinite values in 1 inputs \(ids train-05\); mend or drop them"),
    "NaN in test arrays": (
        arrays(test_inputs=WITH_GAP, test_targets=np.arange(40) % 2), r"test: NaN or infinite values in 1 inputs",
    ),
    "objects": (arrays(train_inputs=np.array([{}] * 40, dtype=object)), r"no plain numeric array.*write it with numpy\.save"),
    "complex inputs": (arrays(train_inputs=np.ones((40, 3), dtype=complex)), r"expected train_inputs of real.*complex128"),
    "inputs without axes": (arrays(train_inputs=np.float32(3)), r"expected train_inputs of.*reshape them"),
    "scalars": (arrays(train_inputs=np.arange(40.0)), r"expected train_inputs of.*float64 \(40,\); reshape them"),
    "inputs without rows": (
        arrays(train_inputs=np.zeros((0, 3)), train_targets=np.zeros(0, dtype=int)), r"expected train_inputs of.*\(0, 3\)",
    ),
    "inputs without columns": (arrays(train_inputs=np.zeros((40, 0))), r"expected train_inputs of.*\(40, 0\)"),
    "fewer targets": (arrays(train_targets=np.arange(30) % 2), r"expected one class number per train input \(40,\).*\(30,\)"),
    "no targets": (arrays(train_targets=None), r"no array train_targets in"),
    "no table": (nothing("dataset=table", "dataset.path={folder}/gone.csv"), r"no file .*gone\.csv; set dataset\.path"),
    "a folder for a table": (nothing("dataset=table", "dataset.path={folder}"), r"no file"),
    "no images": (nothing("dataset=image_folder", "dataset.root={folder}/gone"), r"no images in .*gone; set dataset\.root"),
    "no arrays": (nothing("dataset=arrays", "dataset.root={folder}/gone"), r"no array train_inputs in .*gone; set dataset\.root"),
    "no test file": (table(ROWS, "dataset.test=gone.csv"), r"no file .*gone\.csv"),
    "header alone": (table([HEAD]), r"no row"),
    "empty file": (table([]), r"data\.csv cannot be read as csv"),
    "no label column": (table(ROWS, "dataset.label_column=klass"), r"no column 'klass'; its columns are x, y, label"),
    "no text column": (table(ROWS, "dataset.text_column=words"), r"no column 'words'"),
    "labels alone": (table([[row[2]] for row in ROWS]), r"no columns of features"),
    "texts that are empty": (
        table([["label", "words"], *(["ab"[i % 2], ""] for i in range(40))], "dataset.text_column=words"), r".",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_data_are_one_clear_line(name: str, tmp_path: Path, issue: Callable[..., Any]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    case, said = CASES[name]
    words = case(data)
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    small = ("selector=random_pick", "hydra.run.dir=run", "device=cpu", "budget.initial=4", "budget.batch=2", "budget.rounds=1")
    answer = issue(train.main, *small, *words)
    assert answer.code == 1
    assert answer.complaint.startswith("alenv: ")
    assert re.search(said, answer.complaint)
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "run").exists(), "no empty folder is left behind"
