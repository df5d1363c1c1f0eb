"""Text sets: small files in the formats they are released in, and the two ways in which texts become inputs."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from alenv import library
from alenv.datasets.store import kept
from alenv.datasets.table import table
from alenv.datasets.text import Corpus, Reading, text_source
from alenv.datasets.text_sets import SETS, text_set
from alenv.settings.standard import standard
from alenv.streams import Streams
from alenv.task import Task, number_ids


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ALENV_CACHE", str(tmp_path / "cache"))


ANIMALS, TOOLS = ("cat dog horse", "dog cow cat", "horse cow dog"), ("saw hammer nail", "nail drill saw", "drill hammer file")
TEXTS = [f"{words} number{i}" for i in range(4) for group in (ANIMALS, TOOLS) for words in group]
WORDS = {"cat": 0.3, "dog": 0.2, "cow": 0.15, "saw": 0.15, "nail": 0.1, "file": 0.06, "horse": 0.04}
TARGETS = torch.tensor([0, 0, 0, 1, 1, 1] * 4)


def corpus(texts=TEXTS, targets=TARGETS, prefix="train-"):
    return Corpus(texts, targets[: len(texts)], number_ids(len(texts), prefix))


def of(train=None, test=None, **reading):
    return text_source("words", corpus() if train is None else train, test, ("animals", "tools"), Reading(**reading))


# tf-idf


def test_tfidf_features_are_weighted_words_in_fewer_directions():
    """A plain twin: (1 + log tf) idf, unit rows, the leading right singular vectors, unit rows again."""
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(list(WORDS), draw.integers(2, 9), p=list(WORDS.values()))) for _ in range(40)]
    source = of(corpus(texts, torch.arange(40) % 2), width=3)
    vocabulary = sorted({word for text in texts for word in text.split()})
    counts = np.array([[text.split().count(word) for word in vocabulary] for text in texts], dtype=float)
    idf = np.log((1 + len(texts)) / (1 + (counts > 0).sum(0))) + 1
    weights = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * idf
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    right = np.linalg.svd(weights, full_matrices=False)[2][:3]
    expected = weights @ right.T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = source.train.inputs.double().numpy()
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-3)  # directions have no sign
    scaled = source.train.inputs / source.std
    assert float(scaled.square().mean()) == pytest.approx(1, abs=1e-4)


def test_test_texts_teach_nothing():
    test = corpus(["cat cow", "strange words only"], prefix="test-")
    with_test, without = of(test=test), of()
    assert torch.equal(with_test.train.inputs, without.train.inputs)
    assert with_test.test.inputs[1].abs().sum() == 0
    assert torch.equal(with_test.std, without.std)


def test_texts_stay_with_their_examples_through_a_task():
    source = of(test=corpus(TEXTS[:3], prefix="test-"))
    task = Task.build(source, standard(source, 6, Streams(0)))
    written = dict(zip(source.train.ids, TEXTS, strict=True))
    assert list(task.texts) == [written[id_] for id_ in task.ids]
    assert list(task.validation.texts) == [written[id_] for id_ in task.validation.ids]
    assert list(task.test.texts) == TEXTS[:3]


def test_texts_are_read_once(monkeypatch):
    first = of()
    monkeypatch.setattr("sklearn.feature_extraction.text.TfidfVectorizer.fit_transform", None)
    assert torch.equal(of().train.inputs, first.train.inputs)
    with pytest.raises(TypeError):
        of(corpus([*TEXTS[:-1], "another text"]))


def test_two_texts_that_share_a_border_are_other_texts(tmp_path):
    one, other = of(corpus([*TEXTS[:-2], "saw nail ", "file"])), of(corpus([*TEXTS[:-2], "saw ", "nail file"]))
    assert not torch.equal(one.train.inputs, other.train.inputs)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([*TEXTS[:-1], None], "words: example train-23 has no text .None.; write one or drop the row"),
        (["?", "!", ""], r"no words in the training texts .*; is this the text column\?"),
        (["same", "same", "same"], "at least three texts with three different words"),
    ],
)
def test_texts_without_words_are_refused(texts, said):
    with pytest.raises(ValueError, match=said):
        of(corpus(texts))


def test_another_way_to_read_texts_is_refused():
    with pytest.raises(ValueError, match=r"expected dataset\.text=tfidf or tokens, got 'bert'"):
        of(text="bert")


# tokens


@pytest.fixture
def tokenizer(tmp_path):
    """A tokenizer in the files that transformers writes: whole words, padding 0."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"[PAD]": 0, "[UNK]": 1, "cat": 2, "dog": 3, "horse": 4, "saw": 5}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "tokenizer"
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    return str(folder)


def test_tokens_are_numbers_filled_up_with_padding(tokenizer):
    source = of(text="tokens", tokenizer=tokenizer, length=5, test=corpus(["saw dog cat dog cat dog cat"], prefix="test-"))
    assert source.train.inputs.dtype == torch.int32
    assert source.train.inputs[0].tolist() == [2, 3, 4, 1, 0]
    assert source.test.inputs.tolist() == [[5, 3, 2, 3, 2]]
    assert (source.tokens.tokenizer, source.tokens.vocabulary, source.tokens.pad) == (tokenizer, 6, 0)
    assert (float(source.mean), float(source.std)) == (0, 1)
    task = Task.build(source, standard(source, 0, Streams(0)))
    assert task.tokens is source.tokens
    assert torch.equal(task.inputs[:] != task.tokens.pad, task.inputs[:] > 0)


@pytest.mark.parametrize(
    ("change", "tokens"),
    [
        (lambda held: held["model"]["vocab"].update(cat=3, dog=2), [3, 2, 4, 1]),
        (lambda held: held.update(pre_tokenizer=None), [1, 0, 0, 0]),  # the same words, split otherwise
    ],
)
def test_another_tokenizer_of_the_same_size_makes_other_tokens(change, tokens, tokenizer, tmp_path):
    first = of(text="tokens", tokenizer=tokenizer, length=4).train.inputs.clone()
    file = tmp_path / "tokenizer" / "tokenizer.json"
    held = json.loads(file.read_text())
    change(held)
    file.write_text(json.dumps(held))
    assert of(text="tokens", tokenizer=tokenizer, length=4).train.inputs[0].tolist() == tokens
    assert first[0].tolist() == [2, 3, 4, 1]


def test_tokens_without_a_tokenizer_say_what_to_set(tmp_path):
    with pytest.raises(ValueError, match=r"needs dataset\.tokenizer: the folder of a transformers tokenizer"):
        of(text="tokens")
    with pytest.raises(ValueError, match=r"no tokenizer '.*nowhere' on this machine .*set dataset\.tokenizer"):
        of(text="tokens", tokenizer=str(tmp_path / "nowhere"))


# a text column


def test_rows_of_texts_are_read_from_a_table(tmp_path):
    rows = pd.DataFrame({"text": TEXTS, "label": ["a", "b", ""] * 8, "other": range(24)})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    source = table(str(tmp_path / "rows.csv"), text_column="text", width=4)
    assert list(source.train.texts) == TEXTS
    assert source.train.targets.tolist() == [0, 1, -1] * 8
    assert source.train.inputs.shape == (24, 4)


# published sets


def write_rows(folder, classes, columns):
    for part, count in (("train", 2 * classes), ("test", classes)):
        rows = [[i % classes + 1, *(f'{part} {c} \\n{i} say \\$5 "so"' for c in range(columns))] for i in range(count)]
        quoted = [",".join('"' + str(cell).replace('"', '""') + '"' for cell in row) for row in rows]
        (folder / f"{part}.csv").write_text("\n".join(quoted) + "\n", encoding="utf-8")


def write_archive(name, folder):
    folder.mkdir(parents=True)
    if name in ("ag_news", "yelp5", "dbpedia14"):
        write_rows(folder, len(SETS[name].classes), 1 if name == "yelp5" else 2)
    elif name == "imdb":
        for part in ("train", "test"):
            for sense in ("neg", "pos"):
                (folder / part / sense).mkdir(parents=True)
                for i in range(3):
                    (folder / part / sense / f"{i}_7.txt").write_text(f"{sense} review<br /><br />no {i}", encoding="utf-8")
    elif name == "sst5":
        trees = [f"({c} (2 (2 A) (3 small)) (4 (2 film) (3 (2 -LRB-) (2 (2 no{c}) (2 -RRB-)))))" for c in range(5)]
        for part in ("train", "dev", "test"):
            (folder / f"{part}.txt").write_text("\n".join(trees * 2) + "\n", encoding="utf-8")
    else:
        kinds = ("ABBR:exp", "ENTY:animal", "DESC:def", "HUM:ind", "LOC:city", "NUM:date")
        lines = [f"{kind} What is café {i} ?" for i, kind in enumerate(kinds)]
        for file in ("train_5500.label", "TREC_10.label"):
            (folder / file).write_text("\n".join(lines) + "\n", encoding="latin-1")


FIRST = {
    "ag_news": "train 0  0 say  $5 \"so\" train 1  0 say  $5 \"so\"", "yelp5": "train 0  0 say  $5 \"so\"",
    "dbpedia14": "train 0  0 say  $5 \"so\" train 1  0 say  $5 \"so\"", "imdb": "neg review  no 0",
    "sst5": "A small film ( no0 )",
    "trec6": "What is café 0 ?",
}  # fmt: skip


@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("name", sorted(SETS))
def test_published_texts_are_read_from_their_archives(name, inner, tmp_path):
    folder = tmp_path / SETS[name].folder
    write_archive(name, folder)
    source = library.build("dataset", name, root=str(tmp_path if inner else folder), width=3)
    classes = len(SETS[name].classes)
    assert source.train.texts[0] == FIRST[name]
    assert sorted(set(source.train.targets.tolist())) == list(range(classes))
    assert int(source.train.targets[0]) == 0
    assert source.classes == SETS[name].classes
    assert len(source.test) >= classes
    assert source.train.ids[0].startswith("train-")


@pytest.mark.parametrize("name", sorted(SETS))
def test_published_texts_are_read_from_parquet_files(name, tmp_path):
    classes = len(SETS[name].classes)
    (tmp_path / name).mkdir()
    for part in ("train", "test"):
        frame = pd.DataFrame(
            {"text": [f"{part} {i} words and {i * 7}" for i in range(2 * classes)], "label": [*range(classes)] * 2}
        )
        frame.to_parquet(tmp_path / name / f"{part}.parquet")
    source = text_set(name, str(tmp_path), width=3)
    assert source.train.targets.tolist() == [*range(classes)] * 2
    assert source.test.texts[1] == "test 1 words and 7"


@pytest.mark.parametrize("name", sorted(SETS))
def test_absent_texts_say_where_they_should_be(name, tmp_path):
    with pytest.raises(ValueError, match=rf"no {name} in .*expected {SETS[name].folder}/.*dataset\.download=true"):
        library.build("dataset", name, root=str(tmp_path))


def test_damaged_texts_are_named(tmp_path):
    write_archive("trec6", tmp_path / "trec")
    (tmp_path / "trec" / "TREC_10.label").unlink()
    with pytest.raises(ValueError, match=r"TREC_10\.label is missing; get the archive again"):
        text_set("trec6", str(tmp_path))
    (tmp_path / "trec" / "TREC_10.label").write_text("<html>\n")
    with pytest.raises(ValueError, match=r"the test part is damaged .*get the archive again"):
        text_set("trec6", str(tmp_path))
    write_archive("ag_news", tmp_path / "ag")
    (tmp_path / "ag" / "train.csv").write_text('"9","a","b"\n')
    with pytest.raises(ValueError, match=r"expected train texts of classes 0\.\.3, got class 8"):
        text_set("ag_news", str(tmp_path / "ag"))


def test_a_download_writes_parquet_files_once(tmp_path, monkeypatch):
    asked = []

    def download(hub, columns, folder, revision):
        asked.append((hub, columns))
        folder.mkdir()
        for part in ("train", "test"):
            pd.DataFrame({"text": TEXTS[:8], "label": [0, 1, 2, 3] * 2}).to_parquet(folder / f"{part}.parquet")

    monkeypatch.setattr("alenv.datasets.text_sets.download_parquet", download)
    for _ in range(2):
        assert len(text_set("ag_news", str(tmp_path), download=True, width=3).train) == 8
    assert asked == [("fancyzhx/ag_news", ("text", "label"))]


def test_the_cache_may_be_memory(tmp_path):
    assert torch.equal(of(cache=None).train.inputs, of().train.inputs)
    made = kept("x", lambda allocate: allocate((2,), "int32").fill(7), None)
    assert made.tolist() == [7, 7]
