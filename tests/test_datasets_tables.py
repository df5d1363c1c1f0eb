"""Your own rows: tables of features in every format, labels with gaps, and what is refused."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import dump_svmlight_file

from alenv import library
from alenv.campaign import Plan
from alenv.datasets.arrays import arrays
from alenv.datasets.labels import class_numbers, hold_out
from alenv.datasets.libsvm import libsvm
from alenv.datasets.table import table
from alenv.oracle import AwaitingLabels
from alenv.problem import assemble
from alenv.runner import Runner

ROWS = pd.DataFrame(
    {
        "age": [20.5, 31, 44, 50, 61, 72], "city": ["Ulm", "Bonn", "Ulm", "Köln", "Bonn", "Ulm"],
        "name": ["a", "b", "c", "d", "e", "f"], "kind": ["yes", "no", "yes", "no", "yes", "no"],
    }
)  # fmt: skip


def write(path, frame):
    """Write rows in the format of the ending, by means other than the reader's."""
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in frame.to_dict("records")) + "\n", encoding="utf-8")
    elif path.suffix == ".arff":
        head = ["% a comment", "@relation people", "@attribute age numeric"]
        head += [f"@attribute {c} {{{','.join(sorted(set(frame[c])))}}}" for c in frame.columns[1:]]
        path.write_text("\n".join([*head, "@data", *(",".join(map(str, row)) for row in frame.to_numpy())]), encoding="utf-8")
    else:
        text = frame.to_csv(index=False, sep="\t" if ".tsv" in path.suffixes else ",")
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def kinds(path, **options):
    return table(path, label_column="kind", id_column="name", **options)


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "tsv", "jsonl", "parquet", "arff"])
def test_every_format_gives_the_same_data_set(ending, tmp_path):
    source = kinds(write(tmp_path / f"people.{ending}", ROWS), title="people")
    assert source.train.ids == ("a", "b", "c", "d", "e", "f")
    assert source.classes == ("no", "yes")
    assert source.train.targets.tolist() == [1, 0, 1, 0, 1, 0]
    cities = torch.tensor([[0, 0, 1], [1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]])  # Bonn, Köln, Ulm
    assert torch.equal(source.train.inputs, torch.cat([torch.tensor(ROWS["age"], dtype=torch.float32)[:, None], cities], 1))
    assert torch.allclose(source.mean[0], source.train.inputs[:, 0].mean())
    assert source.test is None


def test_only_the_features_asked_for_are_read(tmp_path):
    source = kinds(write(tmp_path / "people.csv", ROWS), feature_columns=["age"])
    assert source.train.inputs[:, 0].tolist() == ROWS["age"].tolist()
    assert source.train.inputs.shape[1] == 1


def test_a_test_file_gets_the_training_file_s_words_and_classes(tmp_path):
    held = ROWS.iloc[:2].assign(city=["Bonn", "Mainz"], name=["x", "y"])
    source = kinds(write(tmp_path / "a.csv", ROWS), test=write(tmp_path / "b.csv", held))
    assert source.test.inputs.tolist() == [[20.5, 1, 0, 0], [31, 0, 0, 0]]
    assert source.test.targets.tolist() == [1, 0]
    assert source.test.ids == ("x", "y")


def test_a_share_of_the_labelled_rows_may_be_held_out(tmp_path):
    rows = pd.DataFrame({"x": np.arange(100.0), "label": ["a", "b", "", "a"] * 25})
    source = table(write(tmp_path / "rows.csv", rows), test=0.2)
    assert (len(source.train), len(source.test)) == (85, 15)
    assert int(source.test.targets.min()) == 0
    assert int((source.train.targets == -1).sum()) == 25
    for part in (source.train, source.test):
        assert [float(int(id_)) for id_ in part.ids] == part.inputs[:, 0].tolist()
    again = table(write(tmp_path / "rows.csv", rows), test=0.2)
    assert again.test.ids == source.test.ids


def test_holding_out_takes_a_share_of_the_known():
    stays, rows = hold_out(torch.arange(20) % 2 == 0, 0.3)
    assert sorted([*stays.tolist(), *rows.tolist()]) == list(range(20))
    assert len(rows) == 3
    assert not (rows % 2).any()
    with pytest.raises(ValueError, match=r"share of test examples between 0 and 1, got 1\.5"):
        hold_out(torch.ones(4, dtype=torch.bool), 1.5)


# labels


@pytest.mark.parametrize(
    ("said", "classes", "numbers"),
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        (["10", "9", "-1"], ("-1", "9", "10"), [2, 1, 0]),  # numbers are in order
        ([2.0, 1.0, float("nan")], ("1", "2"), [1, 0, -1]),  # JSON and pandas make floats of whole numbers with gaps
        ([True, False, None], ("False", "True"), [1, 0, -1]),
        (["NA", "None", ""], ("NA", "None"), [0, 1, -1]),  # words are words
    ],
)
def test_labels_become_class_numbers(said, classes, numbers):
    found, _, names = class_numbers("data", pd.Series(said), None)
    assert (names, found.tolist()) == (classes, numbers)


def test_a_class_called_na_survives_the_reading_of_a_csv(tmp_path):
    rows = pd.DataFrame({"x": [1.0, 2, 3], "label": ["NA", "null", ""]})
    source = table(write(tmp_path / "rows.csv", rows))
    assert source.classes == ("NA", "null")
    assert source.train.targets.tolist() == [0, 1, -1]


@pytest.mark.parametrize("said", [[0.5, 1.0], ["0.5", "1"], [1.25, None]])
def test_a_regression_target_is_refused(said):
    with pytest.raises(ValueError, match=r"expected labels that are words or whole numbers, got decimals such as .*; bin them"):
        class_numbers("data", pd.Series(said), None)


def test_a_test_label_that_training_lacks_is_named():
    with pytest.raises(ValueError, match="the test label 'c' is none of the classes a, b; mend it, or list all classes"):
        class_numbers("data", pd.Series(["a", "b"]), pd.Series(["a", "c"]))


def test_named_classes_keep_their_order_and_may_wait_for_their_first_example(tmp_path):
    rows = pd.DataFrame({"x": [1.0, 2, 3], "label": ["b", "", ""]})
    source = table(write(tmp_path / "rows.csv", rows), classes=["c", "b", "a"])
    assert source.classes == ("c", "b", "a")
    assert source.train.targets.tolist() == [1, -1, -1]


# what is refused, in one sentence each


def refusals():
    rows = pd.DataFrame({"x": [1.0, 2, 3, 4], "label": ["a", "b", "a", "b"]})
    many = pd.DataFrame({"x": [f"word {i}" for i in range(200)], "label": ["a", "b"] * 100})
    return {
        "one class": (rows.assign(label="a"), {}, r"expected at least two classes, got \['a'\]"),
        "no label at all": (rows.assign(label=""), {}, r"no row has a label, .*; set dataset\.classes="),
        "empty class": (rows, {"classes": ["a", "b", "c"]}, "no training example of class c"),
        "duplicate ids": (rows.assign(n=["p", "q", "p", "r"]), {"id_column": "n"}, r"ids repeat \(first 'p'\)"),
        "NaN": (rows.assign(x=[1, None, 3, None]), {}, r"empty or NaN cells in columns x of 2 rows \(ids 1, 3\); mend or drop"),
        "infinity": (rows.assign(x=[1, np.inf, 3, 4]), {}, r"NaN or infinite values in 1 inputs \(ids 1\)"),
        "wrong label column": (rows, {"label_column": "kind"}, "no column 'kind'; its columns are x, label"),
        "wrong feature": (rows, {"feature_columns": ["y"]}, "no column 'y'; its columns are x, label"),
        "no features": (rows[["label"]], {}, r"no columns of features; name some in dataset\.feature_columns"),
        "too many words": (many, {}, r"column 'x' holds 200 different words; leave it out .*dataset\.text_column"),
        "decimals": (rows.assign(label=[0.1, 0.2, 0.3, 0.4]), {}, "got decimals such as 0.1; bin them"),
    }


@pytest.mark.parametrize("case", refusals())
def test_bad_rows_are_refused_in_a_sentence(case, tmp_path):
    rows, options, said = refusals()[case]
    with pytest.raises(ValueError, match=said) as caught:
        table(write(tmp_path / "rows.csv", rows), **options)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_of_no_known_kind_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*none\.csv; set dataset\.path to it"):
        table(str(tmp_path / "none.csv"))
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"expected a file ending in \.csv, \.tsv, .*got 'rows\.xlsx'"):
        table(str(tmp_path / "rows.xlsx"))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet", "arff"])
def test_a_file_of_another_kind_says_so(ending, tmp_path):
    (tmp_path / f"rows.{ending}").write_bytes(b'"\x00{')
    with pytest.raises(ValueError, match=rf"rows\.{ending}"):
        table(str(tmp_path / f"rows.{ending}"))


def test_another_encoding_is_asked_for(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes("x,label\n1,schön\n2,übel\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"rows\.csv is not utf-8 text .*; save it as UTF-8, or set dataset\.encoding"):
        table(str(path))
    assert table(str(path), encoding="cp1252").classes == ("schön", "übel")
    with pytest.raises(ValueError, match=r"unknown encoding: nonsense; set dataset\.encoding to one that Python knows"):
        table(str(path), encoding="nonsense")


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes("label,x\na,1\nb,2\n".encode("utf-8-sig"))
    assert table(str(path)).classes == ("a", "b")


# LIBSVM


def test_libsvm_rows_are_written_out(tmp_path):
    x = np.array([[0, 1.5, 0], [2, 0, 0], [0, 0, 3], [1, 1, 1.0]])
    dump_svmlight_file(x, [1, -1, 1, -1], str(tmp_path / "a.svm"), zero_based=False)
    dump_svmlight_file(x[:2, :2], [1, -1], str(tmp_path / "b.svm"), zero_based=False)
    source = libsvm(str(tmp_path / "a.svm"), test=str(tmp_path / "b.svm"))
    assert source.classes == ("-1", "1")
    assert source.train.targets.tolist() == [1, 0, 1, 0]
    assert np.array_equal(source.train.inputs, x.astype(np.float32))
    assert np.array_equal(source.test.inputs, x[:2].astype(np.float32))  # as wide as training rows
    assert len(libsvm(str(tmp_path / "a.svm"), test=0.5).test) == 2


def test_libsvm_files_that_are_absent_damaged_or_regress_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*set dataset\.path"):
        libsvm(str(tmp_path / "none.svm"))
    (tmp_path / "bad.svm").write_text("1 2:3\nfish and chips\n")
    with pytest.raises(ValueError, match="cannot be read as LIBSVM rows"):
        libsvm(str(tmp_path / "bad.svm"))
    (tmp_path / "real.svm").write_text("0.5 1:1\n1.5 1:2\n")
    with pytest.raises(ValueError, match=r"got decimals such as 0\.5"):
        libsvm(str(tmp_path / "real.svm"))


# arrays in one file


def test_one_npz_file_holds_arrays_and_class_names(tmp_path):
    rows = np.random.default_rng(0).normal(size=(6, 4))
    path = tmp_path / "data.npz"
    np.savez(path, train_inputs=rows, train_targets=[0, 1] * 3, test_inputs=rows[:2], test_targets=[0, 1], classes=["ape", "bee"])
    source = arrays(str(path))
    assert source.classes == ("ape", "bee")
    assert np.array_equal(source.train.inputs, rows.astype(np.float32))
    assert len(source.test) == 2
    np.savez(path, train_inputs=rows)
    with pytest.raises(ValueError, match=r"no array train_targets in .*data\.npz"):
        arrays(str(path))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"is no \.npz file of plain arrays"):
        arrays(str(path))


def test_a_pickled_array_in_an_npz_file_is_not_opened(tmp_path):
    np.savez(tmp_path / "data.npz", train_inputs=np.array([{}] * 4, dtype=object), train_targets=[0, 1] * 2)
    with pytest.raises(ValueError, match=r"is no \.npz file of plain arrays"):
        arrays(str(tmp_path / "data.npz"))


def test_arrays_in_a_folder_are_mapped_and_never_written(tmp_path):
    rows = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    np.save(tmp_path / "train_inputs.npy", rows)
    np.save(tmp_path / "train_targets.npy", [0, 1] * 3)
    source = arrays(str(tmp_path))
    source.train.inputs.zero_()
    assert np.array_equal(np.load(tmp_path / "train_inputs.npy"), rows)


# pools without labels


def unlabelled(tmp_path):
    draw = np.random.default_rng(0)
    rows = pd.DataFrame(draw.normal(size=(60, 3)), columns=["x", "y", "z"]).assign(label=["a", "b", *[""] * 58])
    return {"name": "table", "path": write(tmp_path / "rows.csv", rows)}


def test_a_pool_without_labels_cannot_be_simulated(tmp_path):
    problem = assemble(dataset=unlabelled(tmp_path), strategies=["uniform"], plan=Plan(4, 2, 2), device="cpu", validation=0)
    with pytest.raises(
        ValueError, match="58 of 60 pool examples have no label, so labelling cannot be simulated; use oracle=file"
    ):
        problem.campaign(0)


def test_a_pool_without_labels_is_the_ordinary_case_of_a_file_of_questions(tmp_path):
    problem = assemble(dataset=unlabelled(tmp_path), strategies=["margin"], oracle="file", plan=Plan(4, 2, 2), device="cpu")
    run = tmp_path / "run"

    def runner():
        return Runner(problem, library.build("selector", "fixed", strategy="margin"), directory=run, config={"a": 1})

    for count in (4, 2):
        with pytest.raises(AwaitingLabels, match=f"{count} labels wanted"):
            runner().run()
        ids = [line.split(",")[0] for line in (run / "query.csv").read_text().splitlines()[1:]]
        (run / "query.csv").write_text("id,label\n" + "".join(f"{id_},{'ab'[i % 2]}\n" for i, id_ in enumerate(ids)))
