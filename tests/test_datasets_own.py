"""Data sets that come as objects: torch's `Dataset`, Hugging Face's."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from alenv.datasets.huggingface import download_parquet, huggingface
from alenv.datasets.torch_dataset import torch_dataset


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# torch


class Pairs(torch.utils.data.Dataset):
    def __init__(self, count=6, listed=False, kind="tensor"):
        self.count, self.kind, self.read = count, kind, 0
        if listed:
            self.targets = [i % 2 for i in range(count)]

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if i >= self.count:
            raise IndexError(i)
        self.read += 1
        value = pixels(4, 5, 3, seed=i)
        made = {"tensor": lambda: torch.from_numpy(value).float().mean(2), "array": lambda: value.transpose(2, 0, 1)}
        return (Image.fromarray(value) if self.kind == "image" else made[self.kind]()), i % 2


@pytest.mark.parametrize(("kind", "dtype"), [("tensor", torch.float32), ("array", torch.uint8), ("image", torch.uint8)])
def test_a_dataset_becomes_tensors(kind, dtype):
    source = torch_dataset(Pairs(kind=kind), test=Pairs(4, kind=kind))
    assert source.train.inputs.dtype == dtype
    expected = pixels(4, 5, 3, seed=3)
    assert np.allclose(source.train.inputs[3], expected.mean(2) if kind == "tensor" else expected.transpose(2, 0, 1), atol=1e-4)
    assert source.train.targets.tolist() == [0, 1] * 3
    assert source.classes == ("0", "1")
    assert len(source.test) == 4


@pytest.mark.parametrize(("listed", "reads"), [(True, 6), (False, 12)])
def test_labels_that_are_listed_need_no_second_reading(listed, reads):
    data = Pairs(listed=listed)
    torch_dataset(data)
    assert data.read == reads


def test_a_subset_has_the_labels_of_its_rows():
    data = Pairs(listed=True)
    data.classes = ["ape", "bee"]
    source = torch_dataset(torch.utils.data.Subset(data, [1, 3, 4]), classes=["ape", "bee"])
    assert source.train.targets.tolist() == [1, 1, 0]
    assert data.read == 3


def test_the_dataset_s_own_class_names_are_taken_and_minus_one_is_unknown():
    data = Pairs(listed=True)
    data.classes, data.targets = ["ape", "bee"], [0, 1, -1, -1, 0, 1]
    source = torch_dataset(data)
    assert source.classes == ("ape", "bee")
    assert source.train.targets.tolist() == [0, 1, -1, -1, 0, 1]


def test_a_dataset_may_be_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pairs_of_mine", type(sys)("pairs_of_mine"))
    sys.modules["pairs_of_mine"].Pairs = Pairs
    assert len(torch_dataset("pairs_of_mine:Pairs", arguments={"count": 8}).train) == 8


def test_a_dataset_may_be_kept_in_a_file(tmp_path):
    first = torch_dataset(Pairs(), cache=str(tmp_path), key="mine").train.inputs
    data = Pairs(listed=True)
    assert torch.equal(torch_dataset(data, cache=str(tmp_path), key="mine").train.inputs, first)
    assert data.read == 0
    with pytest.raises(ValueError, match=r"dataset\.cache needs dataset\.key"):
        torch_dataset(Pairs(), cache=str(tmp_path))


class Ragged(Pairs):
    def __getitem__(self, i):
        return torch.zeros(3 + (i == 4)), i % 2


class Single(Pairs):
    def __getitem__(self, i):
        return torch.zeros(3)


class Values(Pairs):
    def __getitem__(self, i):
        return torch.zeros(3), i / 4


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (Ragged(), r"items have several shapes \(\(3,\), then \(4,\) at 4\)"),
        (Single(), r"expected items \(input, label\), got Tensor at 0"),
        (Values(), r"got decimals such as 0\.25; bin them first"),
        (Pairs(0), "expected a Dataset with a length above 0"),
        (Pairs(1), "expected at least two classes"),
    ],
)
def test_items_that_are_no_examples_are_refused(data, said):
    with pytest.raises(ValueError, match=said):
        torch_dataset(data)


# Hugging Face


@pytest.fixture
def hub():
    return pytest.importorskip("datasets", reason="the extra 'hf' is not installed")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ALENV_CACHE", str(tmp_path / "cache"))


TEXTS = [f"{a} and {b}" for a in ("cat", "dog", "cow", "horse") for b in ("saw", "nail", "hammer")]


def test_without_the_package_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'pip install "alenv\[hf\]"'):
        huggingface(str(tmp_path))


def test_a_saved_text_data_set_is_read_with_its_class_names(hub, tmp_path):
    features = hub.Features({"text": hub.Value("string"), "label": hub.ClassLabel(names=["ape", "bee"])})
    rows = hub.Dataset.from_dict({"text": TEXTS, "label": [0, 1, -1] * 4}, features=features)
    hub.DatasetDict({"train": rows, "test": rows.select(range(2))}).save_to_disk(str(tmp_path / "saved"))
    source = huggingface(str(tmp_path / "saved"), width=3)
    assert source.classes == ("ape", "bee")
    assert source.train.targets.tolist() == [0, 1, -1] * 4
    assert list(source.train.texts) == TEXTS
    assert list(source.test.texts) == TEXTS[:2]


def test_rows_that_were_selected_keep_their_labels(hub, tmp_path):
    rows = hub.Dataset.from_dict({"text": TEXTS, "label": [0, 1, 2] * 4}).select([5, 4, 3, 2])
    rows.save_to_disk(str(tmp_path / "saved"))
    source = huggingface(str(tmp_path / "saved"), width=2)
    assert source.train.targets.tolist() == [2, 1, 0, 2]
    assert list(source.train.texts) == [TEXTS[i] for i in (5, 4, 3, 2)]


def test_a_folder_of_data_files_is_read(hub, tmp_path, monkeypatch):
    import pandas as pd

    (tmp_path / "data").mkdir()
    for part in ("train", "test"):
        pd.DataFrame({"x": [1.0, 2, 3], "y": [4, 5, 7], "label": ["a", "b", "a"]}).to_parquet(
            tmp_path / "data" / f"{part}.parquet"
        )
    monkeypatch.setattr(hub.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    source = huggingface(str(tmp_path / "data"))
    assert source.train.inputs.tolist() == [[1, 4], [2, 5], [3, 7]]
    assert source.classes == ("a", "b")


def test_images_are_decoded_once_and_labels_without_decoding(hub, tmp_path, monkeypatch):
    pictures = [Image.fromarray(pixels(6, 6, 3, seed=i)) for i in range(4)]
    features = hub.Features({"image": hub.Image(), "label": hub.ClassLabel(names=["ape", "bee"])})
    rows = hub.Dataset.from_dict({"image": pictures, "label": [0, 1, 0, 1]}, features=features)
    rows.save_to_disk(str(tmp_path / "saved"))
    source = huggingface(str(tmp_path / "saved"))
    assert np.array_equal(source.train.inputs[2], pixels(6, 6, 3, seed=2).transpose(2, 0, 1))
    monkeypatch.setattr("alenv.datasets.huggingface.pixels_of", None)
    assert torch.equal(huggingface(str(tmp_path / "saved")).train.inputs, source.train.inputs)
    monkeypatch.undo()
    assert huggingface(str(tmp_path / "saved"), side=4, cache=None).train.inputs.shape == (4, 3, 4, 4)


def test_a_corrupt_image_of_a_hub_data_set_is_named(hub, tmp_path):
    features = hub.Features({"image": hub.Image(), "label": hub.ClassLabel(names=["ape", "bee"])})
    bad = [{"bytes": b"not an image", "path": None}] * 2
    hub.Dataset.from_dict({"image": bad, "label": [0, 1]}, features=features).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match="image 0 of column 'image' cannot be decoded"):
        huggingface(str(tmp_path / "saved"))


def test_what_is_not_there_says_so(hub, tmp_path, monkeypatch):
    rows = hub.Dataset.from_dict({"text": TEXTS, "label": [0, 1, 2] * 4})
    rows.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match="no column 'kind'; its columns are text, label"):
        huggingface(str(tmp_path / "saved"), label_column="kind")
    with pytest.raises(ValueError, match=r"has no split 'validation'; set dataset\.train to one of train"):
        huggingface(str(tmp_path / "saved"), train="validation")
    monkeypatch.setattr(hub.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"no Hugging Face data set at 'nobody/nothing' .*dataset\.download=true"):
        huggingface("nobody/nothing")


def test_a_hub_set_is_written_as_parquet_files(hub, tmp_path, monkeypatch):
    rows = hub.Dataset.from_dict({"title": ["a", "b"], "content": ["c", "d"], "label": [1, 0]})
    monkeypatch.setattr(hub, "load_dataset", lambda *a, **k: hub.DatasetDict({"train": rows, "test": rows}))
    download_parquet("some/set", ("title", "content", "label"), tmp_path / "out")
    import pandas as pd

    assert pd.read_parquet(tmp_path / "out" / "train.parquet").to_dict("list") == {"text": ["a c", "b d"], "label": [1, 0]}
