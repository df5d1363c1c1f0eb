"""Image sets, read from small files in the formats they are released in."""

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from alenv import library
from alenv.datasets import images, store
from alenv.datasets.cifar import cifar
from alenv.datasets.image_folder import image_folder
from alenv.datasets.images import read_images
from alenv.datasets.medical import SETS, medmnist
from alenv.datasets.mnist import mnist
from alenv.datasets.moments import moments
from alenv.datasets.svhn import svhn
from alenv.datasets.tiny_imagenet import tiny_imagenet


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ALENV_CACHE", str(tmp_path / "cache"))


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, values):
    """Write (height, width, 3) or (height, width) bytes without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, format="PNG")


# moments


def test_moments_of_images_are_per_channel_and_of_features_per_feature(monkeypatch):
    monkeypatch.setattr("alenv.task.BLOCK_ELEMENTS", 50)  # several blocks
    stored = torch.from_numpy(pixels(7, 3, 4, 5))
    mean, std = moments(stored)
    np.testing.assert_allclose(mean.flatten(), stored.numpy().mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std.flatten(), stored.numpy().std((0, 2, 3)), rtol=1e-6)
    rows = torch.tensor([[1e6, 2.0, 0.1], [1e6 + 2, 4.0, 0.1]])
    mean, std = moments(rows)
    assert torch.equal((rows - mean) / std, torch.tensor([[-1.0, -1, 0], [1, 1, 0]]))  # a constant feature is only centred


# CIFAR


def write_cifar(folder, name, train=20, test=10):
    """The binary version: one or two bytes of labels, then 1,024 red, green and blue values."""
    folder.mkdir(parents=True)
    fine = name == "cifar100"
    parts = {"train.bin": train, "test.bin": test} if fine else {f"data_batch_{i}.bin": train // 5 for i in range(1, 6)}
    parts |= {} if fine else {"test_batch.bin": test}
    start = 0
    for file, count in parts.items():
        start = 0 if "test" in file else start
        label = np.arange(start, start + count, dtype=np.uint8)[:, None] % (100 if fine else 10)
        head = [label // 5, label] if fine else [label]
        (folder / file).write_bytes(np.hstack([*head, pixels(count, 3072, seed=len(file) + start)]).tobytes())
        start += count
    names = [f"name {c}" for c in range(100 if fine else 10)]
    (folder / ("fine_label_names.txt" if fine else "batches.meta.txt")).write_text("\n".join(names) + "\n\n", encoding="utf-8")


@pytest.mark.parametrize("inner", [".", "cifar-10-batches-bin"])
def test_cifar10_is_read_from_its_binary_version(inner, tmp_path):
    folder = tmp_path / "root" / inner
    write_cifar(folder, "cifar10")
    source = cifar("cifar10", str(tmp_path / "root"))
    raw = np.frombuffer((folder / "data_batch_2.bin").read_bytes(), np.uint8).reshape(4, 3073)
    assert source.train.inputs.shape == (20, 3, 32, 32)
    assert source.train.inputs[5, 1, 2, 3] == raw[1, 1 + 1024 + 2 * 32 + 3]
    assert source.train.targets.tolist() == [*range(10), *range(10)]
    assert source.test.targets.tolist() == [*range(10)]
    assert source.classes[3] == "name 3"
    assert (source.train.ids[0], source.test.ids[-1]) == ("train-00", "test-9")


def test_cifar100_has_its_fine_classes(tmp_path):
    write_cifar(tmp_path / "cifar-100-binary", "cifar100", train=200, test=10)
    source = cifar("cifar100", str(tmp_path))
    assert source.train.targets.tolist() == [*range(100), *range(100)]
    assert len(source.classes) == 100


def test_a_cifar_file_that_is_cut_short_or_missing_is_named(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-bin", "cifar10")
    file = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(
        ValueError, match=r"data_batch_3\.bin is cut short or damaged: expected a multiple of 3073 bytes, got 12285"
    ):
        cifar("cifar10", str(tmp_path))
    file.unlink()
    with pytest.raises(ValueError, match=r"data_batch_3\.bin is missing; get the archive again"):
        cifar("cifar10", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cifar10", r"no cifar10 in .*cifar-10-binary\.tar\.gz.*dataset\.download=true"),
        ("cifar100", "no cifar100 in "),
        ("mnist", r"no MNIST files in .*dataset\.root.*dataset\.download=true"),
        ("svhn", r"no SVHN in .*train_32x32\.mat.*dataset\.download=true"),
        ("tiny_imagenet", r"no TinyImageNet in .*dataset\.download=true"),
        ("organcmnist", r"no organcmnist\.npz in .*dataset\.download=true"),
        ("image_folder", r"no images in .*one folder of images per class"),
    ],
)
def test_absent_files_say_where_they_should_be(name, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        library.build("dataset", name, root=str(tmp_path / "nowhere"))


def test_a_download_goes_through_torchvision_with_the_published_checksum(tmp_path, monkeypatch):
    asked = []

    class Utils:
        @staticmethod
        def download_and_extract_archive(url, root, md5):
            asked.append((url.rpartition("/")[2], md5))
            write_cifar(Path(root) / "cifar-10-batches-bin", "cifar10")

    monkeypatch.setattr("alenv.vision.torchvision_module", lambda name: Utils)
    for _ in range(2):
        assert len(cifar("cifar10", str(tmp_path), download=True).train) == 20
    assert asked == [("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530")]


# MNIST, SVHN


def test_mnist_is_read_from_idx_files(tmp_path):
    for part, count in (("train", 20), ("t10k", 10)):
        values = pixels(count, 28, 28, seed=count)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, count, 28, 28) + values.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, count) + labels.tobytes())
    source = mnist(str(tmp_path))
    assert np.array_equal(source.train.inputs[:, 0], pixels(20, 28, 28, seed=20))
    assert source.test.targets.tolist() == [*range(10)]


def write_svhn(folder, train=20):
    for part, count in (("train", train), ("test", 10)):
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]  # 10 means the digit 0
        savemat(folder / f"{part}_32x32.mat", {"X": pixels(32, 32, 3, count), "y": labels}, do_compression=True)


def test_svhn_is_read_from_matlab_files_and_its_class_10_is_the_digit_0(tmp_path):
    write_svhn(tmp_path)
    source = svhn(str(tmp_path))
    assert source.train.inputs.shape == (20, 3, 32, 32)
    assert source.train.inputs[4, 2, 5, 6] == pixels(32, 32, 3, 20)[5, 6, 2, 4]
    assert source.train.targets[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


@pytest.mark.parametrize("damage", [lambda data: data[:200], lambda data: b"<html>" * 40])
def test_a_damaged_svhn_file_is_named(damage, tmp_path):
    write_svhn(tmp_path)
    file = tmp_path / "train_32x32.mat"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"train_32x32\.mat cannot be read .*get it again"):
        svhn(str(tmp_path))


def test_svhn_labels_that_do_not_fit_the_images_are_refused(tmp_path):
    write_svhn(tmp_path)
    savemat(tmp_path / "train_32x32.mat", {"X": pixels(32, 32, 3, 20), "y": np.ones((19, 1), np.uint8)})
    with pytest.raises(ValueError, match=r"expected images X \(32, 32, 3, n\) and labels y"):
        svhn(str(tmp_path))


# MedMNIST


def write_medmnist(path, classes, colour, **changes):
    shape = (28, 28, 3) if colour else (28, 28)
    held = {}
    for part, count in (("train", 2 * classes), ("val", 3), ("test", classes)):
        held |= {f"{part}_images": pixels(count, *shape, seed=count), f"{part}_labels": np.arange(count)[:, None] % classes}
    np.savez_compressed(path, **held | changes)


@pytest.mark.parametrize(("name", "colour"), [("organcmnist", False), ("pathmnist", True), ("tissuemnist", False)])
def test_medical_sets_are_read_from_medmnists_files(name, colour, tmp_path):
    classes = len(SETS[name].classes)
    write_medmnist(tmp_path / f"{name}.npz", classes, colour)
    source = library.build("dataset", name, root=str(tmp_path))
    assert source.train.inputs.shape == (2 * classes, 3 if colour else 1, 28, 28)
    assert source.train.targets.tolist() == [*range(classes), *range(classes)]
    assert len(source.test) == classes
    raw = pixels(2 * classes, 28, 28, *([3] if colour else []), seed=2 * classes)
    assert source.train.inputs[3, 0, 4, 5] == (raw[3, 4, 5, 0] if colour else raw[3, 4, 5])


def test_a_medical_set_of_larger_images_has_its_own_file(tmp_path):
    with pytest.raises(ValueError, match=r"no pathmnist_64\.npz"):
        medmnist("pathmnist", str(tmp_path), side=64)
    with pytest.raises(ValueError, match="side 28, 64, 128 or 224, got pathmnist and 30"):
        medmnist("pathmnist", str(tmp_path), side=30)


def test_a_damaged_medical_file_is_named(tmp_path):
    path = tmp_path / "pathmnist.npz"
    write_medmnist(path, 9, True)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"pathmnist\.npz cannot be read .*get it again"):
        medmnist("pathmnist", str(tmp_path))
    write_medmnist(path, 9, True, train_labels=np.zeros((4, 1)))
    with pytest.raises(ValueError, match="expected train images of bytes with one label each"):
        medmnist("pathmnist", str(tmp_path))


def test_downloading_a_medical_set_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "medmnist", None)
    with pytest.raises(ImportError, match=r'pip install "alenv\[medical\]"'):
        medmnist("pathmnist", str(tmp_path), download=True)


@pytest.mark.parametrize("name", sorted(SETS))
def test_the_names_of_medical_classes_are_the_packages(name):
    info = pytest.importorskip("medmnist", reason="the extra 'medical' is not installed").INFO[name]
    assert [said.lower() for said in info["label"].values()] == list(SETS[name].classes)
    assert info["python_class"] == SETS[name].python_class


# TinyImageNet


def write_tiny_imagenet(folder):
    wnids = ["n02", "n01", "n03"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "wnids.txt").write_text("\n".join(wnids), encoding="utf-8")
    (folder / "words.txt").write_text("n01\tfish, animal\nn02\tbird\nn03\tbird, other\nn99\tboat\n", encoding="utf-8")
    said = []
    for c, wnid in enumerate(wnids):
        for i in range(2):
            save(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", pixels(64, 64, 3, seed=10 * c + i))
        save(folder / "val" / "images" / f"val_{c}.JPEG", pixels(64, 64, 3, seed=100 + c))
        said.append(f"val_{c}.JPEG\t{wnid}\t0\t0\t62\t62")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(said) + "\n", encoding="utf-8")


def test_tiny_imagenet_has_words_for_names_and_its_validation_images_for_a_test(tmp_path):
    write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    source = tiny_imagenet(str(tmp_path))
    assert source.classes == ("fish", "n02", "n03")  # two classes called bird keep their numbers
    assert source.train.targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert source.test.targets.tolist() == [1, 0, 2]
    assert source.train.ids[2] == "train/n02/images/n02_0.JPEG"
    assert np.array_equal(source.train.inputs[2], pixels(64, 64, 3, seed=0).transpose(2, 0, 1))


def test_tiny_imagenet_without_one_of_its_images_names_it(tmp_path):
    write_tiny_imagenet(tmp_path)
    (tmp_path / "val" / "images" / "val_1.JPEG").unlink()
    with pytest.raises(ValueError, match=r"val_1\.JPEG is missing; get the archive again"):
        tiny_imagenet(str(tmp_path))


# folders of images


@pytest.fixture
def zoo(tmp_path):
    root = tmp_path / "zoo"
    for c, name in enumerate(("ape", "bee")):
        for i in range(3):
            save(root / "train" / name / f"{i}.png", pixels(8, 8, 3, seed=10 * c + i))
        save(root / "test" / name / "0.png", pixels(8, 8, 3, seed=50 + c))
    return root


def test_a_folder_of_images_has_folders_for_classes_and_paths_for_ids(zoo):
    source = image_folder(str(zoo), title="zoo", shift=2, flip=True)
    assert source.classes == ("ape", "bee")
    assert source.train.ids == tuple(f"train/{name}/{i}.png" for name in ("ape", "bee") for i in range(3))
    assert source.train.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.test.ids == ("test/ape/0.png", "test/bee/0.png")
    assert np.array_equal(source.train.inputs[4], pixels(8, 8, 3, seed=11).transpose(2, 0, 1))
    assert (source.augmentation.pad, source.augmentation.flip) == (2, True)


def test_a_folder_without_a_folder_train_is_all_training(zoo):
    source = image_folder(str(zoo / "train"))
    assert source.train.ids[0] == "ape/0.png"
    assert source.test is None


def test_images_in_no_class_folder_have_no_label(zoo):
    save(zoo / "train" / "unlabeled" / "x.png", pixels(8, 8, 3))
    save(zoo / "train" / "y.png", pixels(8, 8, 3))
    source = image_folder(str(zoo))
    unknown = {id_ for id_, target in zip(source.train.ids, source.train.targets.tolist(), strict=True) if target == -1}
    assert unknown == {"train/unlabeled/x.png", "train/y.png"}
    assert source.classes == ("ape", "bee")


def test_an_empty_class_folder_is_named(zoo):
    (zoo / "train" / "cat").mkdir()
    with pytest.raises(ValueError, match="no training example of class cat; remove the class name or add examples"):
        image_folder(str(zoo))


def test_a_test_class_that_training_lacks_is_named(zoo):
    save(zoo / "test" / "cow" / "0.png", pixels(8, 8, 3))
    with pytest.raises(ValueError, match="no training example of class cow; the classes are ape, bee"):
        image_folder(str(zoo))


@pytest.mark.parametrize("data", [b"", b"not an image", None])
def test_a_corrupt_image_is_named(data, zoo):
    file = zoo / "train" / "bee" / "1.png"
    file.write_bytes(file.read_bytes()[:60] if data is None else data)
    with pytest.raises(ValueError, match=r"bee.1\.png cannot be decoded .*; get it again, or remove it"):
        image_folder(str(zoo))
    assert not list((zoo.parent / "cache").rglob("*.npy"))  # nothing half made is kept
    assert not [f for f in (zoo.parent / "cache").rglob("*") if f.is_file()]


def test_images_of_several_sizes_need_a_side(zoo):
    save(zoo / "train" / "ape" / "2.png", pixels(12, 8, 3))
    with pytest.raises(ValueError, match=r"images have several sizes .* is 8 x 8, .* is 8 x 12\); set dataset\.side"):
        image_folder(str(zoo))
    assert image_folder(str(zoo), side=6).train.inputs.shape == (6, 3, 6, 6)


def test_grey_images_palettes_and_turned_images_are_read_as_they_are_seen(tmp_path):
    grey = pixels(8, 6)
    save(tmp_path / "grey.png", grey)
    Image.fromarray(pixels(8, 6, 3)).quantize(256).save(tmp_path / "palette.png")
    turned = Image.fromarray(grey)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    turned.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    found = read_images([tmp_path / "grey.png", tmp_path / "turned.png"], channels=1)
    assert np.array_equal(found[0, 0], grey)
    assert np.array_equal(found[1, 0], grey)
    assert read_images([tmp_path / "palette.png"]).shape == (1, 3, 8, 6)


def test_images_of_more_than_8_bits_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png cannot be decoded .*more than 8 bits per channel"):
        read_images([tmp_path / "deep.png"])


def test_labels_are_read_without_decoding_and_images_are_decoded_once(zoo, monkeypatch):
    first = image_folder(str(zoo))

    def refuse(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(images, "_decoded", refuse)
    again = image_folder(str(zoo))
    assert torch.equal(first.train.inputs, again.train.inputs)
    save(zoo / "train" / "ape" / "0.png", pixels(8, 8, 3, seed=77))  # another content is another array
    with pytest.raises(AssertionError, match="decoded again"):
        image_folder(str(zoo))


def test_writing_to_kept_inputs_leaves_the_file_as_it_is(zoo):
    first = image_folder(str(zoo)).train.inputs
    before = first.clone()
    first.zero_()
    assert torch.equal(image_folder(str(zoo)).train.inputs, before)


def test_without_a_cache_nothing_is_written(zoo, tmp_path):
    with_file = image_folder(str(zoo))
    for file in (tmp_path / "cache").rglob("*.npy"):
        file.unlink()
    assert torch.equal(image_folder(str(zoo), cache=None).train.inputs, with_file.train.inputs)
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_a_folder_that_cannot_be_written_says_what_to_set(zoo, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot hold the data as an array .*set dataset\.cache to a folder with room"):
        image_folder(str(zoo), cache=str(tmp_path / "file"))


def test_a_kept_array_is_whole_or_absent(tmp_path):
    def killed(allocate):
        allocate((4, 2), "uint8")[:] = 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.kept("key", killed, str(tmp_path / "arrays"))
    assert list((tmp_path / "arrays").iterdir()) == []

    def whole(allocate):
        allocate((4, 2), "uint8")[:] = 2

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.kept("key", whole, str(tmp_path / "arrays")).tolist() == [[2, 2]] * 4
    assert [f.name for f in (tmp_path / "arrays").iterdir()] == ["key.npy"]
