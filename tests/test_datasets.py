"""Readers of data sets, and what a source and a setting check."""

import gzip
import struct
from pathlib import Path

import pytest
import torch

from alenv.datasets.bundled import bundled
from alenv.datasets.digits import digits
from alenv.datasets.fashion_mnist import CLASSES, MEAN, STD, fashion_mnist
from alenv.datasets.idx import read_idx
from alenv.settings.standard import standard, validation_size
from alenv.streams import Streams
from alenv.task import Examples, Source, Split, Task, number_ids

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def idx_bytes(values, magic=0x08):
    """What the format's description says: two zeros, the type, the number of axes, big-endian sizes, the values."""
    return bytes([0, 0, magic, values.dim()]) + struct.pack(f">{values.dim()}I", *values.shape) + bytes(values.flatten().tolist())


def random_bytes(*shape, name="bytes"):
    return torch.randint(0, 256, shape, generator=Streams(0)(name), dtype=torch.uint8)


# digits


def test_digits_are_1797_small_images_in_two_disjoint_parts():
    source = digits()
    assert source.train.inputs.shape == (1500, 1, 8, 8)
    assert source.test.inputs.shape == (297, 1, 8, 8)
    assert source.train.inputs.dtype == torch.uint8
    assert int(source.train.inputs.max()) == 16
    assert source.classes == tuple("0123456789")
    assert len(set(source.train.ids) | set(source.test.ids)) == 1797


def test_digits_carry_sklearns_images_and_targets_under_their_ids():
    from sklearn.datasets import load_digits

    bunch, source = load_digits(), digits()
    for part in (source.train, source.test):
        for position in (0, 100, len(part) - 1):
            row = int(part.ids[position])
            assert part.inputs[position, 0].tolist() == bunch.images[row].tolist()
            assert part.targets[position] == bunch.target[row]
    counts = torch.bincount(source.train.targets) + torch.bincount(source.test.targets)
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_normalise_to_mean_zero_and_deviation_one():
    source = digits()
    values = (source.train.inputs.float() - source.mean) / source.std
    assert float(values.mean()) == pytest.approx(0, abs=1e-5)
    assert float(values.std()) == pytest.approx(1, abs=1e-5)


def test_digits_are_the_same_every_time():
    first, second = digits(), digits()
    assert first.test.ids == second.test.ids
    assert torch.equal(first.train.inputs, second.train.inputs)


# IDX


@pytest.mark.parametrize("shape", [(5,), (3, 4, 2), (0,)])
@pytest.mark.parametrize("compressed", [False, True])
def test_idx_files_are_read_back(shape, compressed, tmp_path):
    values = random_bytes(*shape)
    data = idx_bytes(values)
    if compressed:
        (tmp_path / "some-idx.gz").write_bytes(gzip.compress(data))
    else:
        (tmp_path / "some-idx").write_bytes(data)
    found = read_idx(tmp_path / "some-idx")
    assert found.dtype == torch.uint8
    assert torch.equal(found, values)


def test_an_idx_file_may_be_named_with_its_ending(tmp_path):
    (tmp_path / "some-idx.gz").write_bytes(gzip.compress(idx_bytes(random_bytes(4))))
    assert torch.equal(read_idx(tmp_path / "some-idx.gz"), random_bytes(4))


def test_a_missing_idx_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"some-idx\(\.gz\) is missing; .* dataset\.root"):
        read_idx(tmp_path / "some-idx")


@pytest.mark.parametrize("cut", [5, 8, 16, 30])
def test_a_truncated_idx_file_says_so(cut, tmp_path):
    (tmp_path / "some-idx").write_bytes(idx_bytes(random_bytes(3, 4, 2))[:cut])
    with pytest.raises(ValueError, match="cut short"):
        read_idx(tmp_path / "some-idx")


def test_an_idx_file_with_bytes_to_spare_says_so(tmp_path):
    (tmp_path / "some-idx").write_bytes(idx_bytes(random_bytes(3, 4)) + b"\0")
    with pytest.raises(ValueError, match=r"expected 12 values for shape \(3, 4\), got 13; get it again"):
        read_idx(tmp_path / "some-idx")


@pytest.mark.parametrize("cut", [0, 5, 20])
def test_a_truncated_compressed_file_says_so(cut, tmp_path):
    (tmp_path / "some-idx.gz").write_bytes(gzip.compress(idx_bytes(random_bytes(3, 4, 2)))[:cut])
    with pytest.raises(ValueError, match="get it again"):
        read_idx(tmp_path / "some-idx")


@pytest.mark.parametrize("position", [0, 10, 30])  # the magic number, the header of the compressed block, a value
def test_a_damaged_compressed_file_says_so(position, tmp_path):
    data = bytearray(gzip.compress(idx_bytes(random_bytes(30, 4, 2))))
    data[position] ^= 0b110
    (tmp_path / "some-idx.gz").write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"cannot be read .*damaged or cut short: get it again"):
        read_idx(tmp_path / "some-idx")


@pytest.mark.parametrize("data", [b"", b"\0\0", b"<html>not here</html>", idx_bytes(random_bytes(3), magic=0x0D)])
def test_a_file_of_another_kind_says_how_it_starts(data, tmp_path):
    (tmp_path / "some-idx").write_bytes(data)
    with pytest.raises(ValueError, match=f"not an IDX file of unsigned bytes .it starts with {data[:4].hex() or 'nothing'}"):
        read_idx(tmp_path / "some-idx")


# Fashion-MNIST


def write_fashion_mnist(folder, train=20, test=10, compressed=True):
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("t10k", test)):
        for kind, values in (
            ("images-idx3", random_bytes(count, 28, 28, name=part)),
            ("labels-idx1", (torch.arange(count) % 10).to(torch.uint8)),
        ):
            data, path = idx_bytes(values), folder / f"{part}-{kind}-ubyte"
            if compressed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
            else:
                path.write_bytes(data)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("inner", [".", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_from_plain_and_compressed_files_and_torchvisions_folder(compressed, inner, tmp_path):
    write_fashion_mnist(tmp_path / inner, compressed=compressed)
    source = fashion_mnist(str(tmp_path))
    assert torch.equal(source.train.inputs, random_bytes(20, 28, 28, name="train").unsqueeze(1))
    assert torch.equal(source.test.inputs, random_bytes(10, 28, 28, name="t10k").unsqueeze(1))
    assert source.train.targets.tolist() == [*range(10), *range(10)]
    assert source.train.targets.dtype == torch.int64
    assert source.train.ids[0] == "train-00"
    assert source.test.ids[-1] == "test-9"
    assert source.classes == CLASSES
    assert len(CLASSES) == 10
    assert [float(source.mean), float(source.std)] == pytest.approx([MEAN, STD])


def test_absent_fashion_mnist_says_where_to_get_it(tmp_path):
    remedies = r"dataset\.root.*apt install dataset-fashion-mnist.*dataset\.download=true"
    with pytest.raises(ValueError, match=rf"no Fashion-MNIST files in .*nowhere.*{remedies}"):
        fashion_mnist(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("missing", ["train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"])
def test_fashion_mnist_without_one_of_its_files_names_it(missing, tmp_path):
    write_fashion_mnist(tmp_path)
    (tmp_path / f"{missing}.gz").unlink()
    with pytest.raises(ValueError, match=rf"{missing}\(\.gz\) is missing"):
        fashion_mnist(str(tmp_path))


def test_fashion_mnist_with_images_and_labels_of_two_downloads_says_so(tmp_path):
    write_fashion_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(torch.zeros(19, dtype=torch.uint8))))
    with pytest.raises(ValueError, match=r"train images \(20, 28, 28\) and labels \(19,\) do not belong together"):
        fashion_mnist(str(tmp_path))


def test_fashion_mnist_downloads_only_when_asked_and_absent(tmp_path, monkeypatch):
    asked = []

    class Torchvision:
        @staticmethod
        def FashionMNIST(root, download):  # noqa: N802
            asked.append((root, download))
            write_fashion_mnist(Path(root) / "FashionMNIST" / "raw")

    monkeypatch.setattr("alenv.vision.torchvision_module", lambda name: Torchvision)
    assert len(fashion_mnist(str(tmp_path), download=True).train) == 20
    assert len(fashion_mnist(str(tmp_path), download=True).train) == 20
    assert asked == [(str(tmp_path), True)]


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist_has_its_published_counts_and_mean():
    source = fashion_mnist(str(DEBIAN))
    assert source.train.inputs.shape == (60_000, 1, 28, 28)
    assert source.test.inputs.shape == (10_000, 1, 28, 28)
    assert torch.bincount(source.train.targets).tolist() == [6000] * 10
    assert torch.bincount(source.test.targets).tolist() == [1000] * 10
    values = source.train.inputs.double()
    assert float(values.mean()) == pytest.approx(MEAN, abs=0.01 * 255)
    assert float(values.std()) == pytest.approx(STD, abs=0.01 * 255)
    assert source.train.targets[:3].tolist() == [9, 0, 0]


# sources


def examples(n=12, classes=3, **changes):
    parts = {
        "inputs": torch.randn(n, 2, generator=Streams(0)("inputs")),
        "targets": torch.arange(n) % classes,
        "ids": number_ids(n, "id-"),
    }
    return Examples(**parts | changes)


def source(train=None, test=None, classes=("a", "b", "c")):
    return Source("toy", examples() if train is None else train, test, classes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["train", "test"])
def test_values_that_are_not_finite_name_the_ids(value, part):
    bad = examples()
    bad.inputs[[4, 7], [0, 1]] = value
    with pytest.raises(ValueError, match=rf"toy {part}: NaN or infinite values in 2 inputs \(ids id-04, id-07\); mend"):
        source(**{part: bad})


def test_a_class_without_training_example_is_named():
    with pytest.raises(ValueError, match="toy: no training example of class c, d; remove the class name or add examples"):
        source(examples(classes=2), classes=("a", "b", "c", "d"))


def test_a_class_may_be_missing_from_the_test_examples():
    assert len(source(test=examples(classes=2)).test) == 12


@pytest.mark.parametrize("part", ["train", "test"])
def test_repeated_ids_are_refused(part):
    with pytest.raises(ValueError, match=f"toy {part}: ids repeat"):
        source(**{part: examples(ids=("x", *number_ids(10), "x"))})


@pytest.mark.parametrize("target", [3, -2])
@pytest.mark.parametrize("part", ["train", "test"])
def test_targets_out_of_range_are_refused(target, part):
    bad = examples()
    bad.targets[5] = target
    got = rf"got {min(target, 0)}\.\.{max(target, 2)}"
    with pytest.raises(ValueError, match=rf"toy {part}: expected targets in 0\.\.2 \(or -1 for unknown\), {got}"):
        source(**{part: bad})


@pytest.mark.parametrize("classes", [(), ("a",)])
def test_fewer_than_two_classes_are_refused(classes):
    with pytest.raises(ValueError, match="toy: expected at least two classes"):
        source(examples(classes=1), classes=classes)


@pytest.mark.parametrize("changes", [{"ids": number_ids(11)}, {"ids": number_ids(13)}])
def test_parts_of_different_length_are_refused(changes):
    with pytest.raises(ValueError, match=r"expected as many targets and ids as inputs \(12\), got 12 targets and 1[13] ids"):
        source(examples(**changes))


def test_unknown_labels_and_an_empty_test_split_are_fine():
    unknown = examples(targets=torch.full((12,), -1))
    assert len(source(unknown).train) == 12
    assert len(source(test=examples(0)).test) == 0


def test_taking_examples_keeps_rows_together_in_the_order_asked_for():
    taken = examples().take(torch.tensor([7, 2]))
    assert taken.ids == ("id-07", "id-02")
    assert taken.targets.tolist() == [1, 2]
    assert torch.equal(taken.inputs, examples().inputs[[7, 2]])


def test_ids_have_equal_width():
    assert number_ids(11, "x")[0] == "x00"
    assert number_ids(10)[-1] == "9"
    assert number_ids(0) == ()


# the standard setting and the task it makes


def split_of(validation, seed=0, train=None, test=None):
    return standard(source(examples(200) if train is None else train, test), validation, Streams(seed))


@pytest.mark.parametrize(
    ("validation", "size"), [(None, 20), (0, 0), (0.0, 0), (0.25, 50), (0.999, 199), (1, 1), (30, 30), (30.0, 30), (200, 200)]
)
def test_validation_is_a_number_or_a_share(validation, size):
    split = split_of(validation)
    assert len(split.validation) == size
    assert sorted(torch.cat([split.validation, split.pool]).tolist()) == list(range(200))


def test_validation_is_at_most_200_unless_asked_for_more():
    assert validation_size(100_000, None) == 200
    assert validation_size(100_000, 0.5) == 50_000


def test_the_split_is_a_pure_function_of_the_seed():
    first, again, other = split_of(50, 0), split_of(50, 0), split_of(50, 1)
    assert first.validation.tolist() == again.validation.tolist() != other.validation.tolist()
    assert first.pool.tolist() == again.pool.tolist()


def test_validation_is_drawn_uniformly():
    counts = sum(torch.nn.functional.one_hot(split_of(50, seed).validation, 200).sum(0) for seed in range(200))
    assert float(counts.double().mean()) == 50
    assert int(counts.min()) > 20
    assert int(counts.max()) < 85


def test_validation_takes_known_labels_only():
    targets = torch.arange(200) % 3
    targets[60:] = -1
    split = split_of(60, train=examples(200, targets=targets))
    assert split.validation.tolist() == list(range(60))


def test_more_validation_than_labels_is_refused():
    with pytest.raises(ValueError, match="validation=201 asks for 201 labelled examples but toy has 200; lower it"):
        split_of(201)
    with pytest.raises(ValueError, match=r"expected validation to be a number >= 0 .*, got -1"):
        split_of(-1)


def test_the_test_split_is_all_of_the_test_examples():
    assert split_of(0).test.tolist() == []
    assert split_of(0, test=examples(7)).test.tolist() == list(range(7))


def test_a_task_holds_the_examples_of_its_split():
    toy = source(examples(200), examples(7))
    task = Task.build(toy, standard(toy, 40, Streams(0)))
    assert (len(task), len(task.validation), len(task.test), task.num_classes) == (160, 40, 7, 3)
    assert not set(task.ids) & set(task.validation.ids)
    for part in (task, task.validation, task.test):
        whole = toy.test if part is task.test else toy.train
        rows = [whole.ids.index(i) for i in part.ids]
        assert torch.equal(part.inputs[:], whole.inputs[rows])
        assert torch.equal(part.targets, whole.targets[rows])


def test_a_task_without_validation_or_test_has_empty_splits():
    toy = source(examples(20))
    task = Task.build(toy, standard(toy, 0, Streams(0)))
    assert (len(task), len(task.validation), len(task.test)) == (20, 0, 0)


def test_a_task_without_pool_is_refused():
    with pytest.raises(ValueError, match="toy: the standard setting left no example in the pool; lower validation="):
        Task.build(source(examples(200)), split_of(200))


def test_equal_tasks_have_equal_fingerprints_and_any_change_shows():
    toy = source(examples(20), examples(7))
    prints = [Task.build(toy, standard(toy, 5, Streams(seed))).fingerprint() for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]
    for field in ("inputs", "targets"):
        for part in ("train", "test"):
            changed = source(examples(20), examples(7))
            values = getattr(getattr(changed, part), field)
            values[3] = 0 if field == "inputs" else (values[3] + 1) % 3
            everything = Split(torch.arange(20), torch.arange(0), torch.arange(7))
            assert Task.build(changed, everything).fingerprint() != Task.build(toy, everything).fingerprint()


@pytest.mark.parametrize(
    ("table", "rows", "columns", "classes"), [("wine", 178, 13, 3), ("breast_cancer", 569, 30, 2), ("iris", 150, 4, 3)]
)
def test_bundled_tables_are_whole_and_standardised(table, rows, columns, classes):
    source = bundled(table)
    assert len(source.train) + len(source.test) == rows
    assert not set(source.train.ids) & set(source.test.ids)
    assert source.train.inputs.shape[1] == columns
    assert len(source.classes) == classes
    standard_inputs = (source.train.inputs - source.mean) / source.std
    assert torch.allclose(standard_inputs.mean(0), torch.zeros(columns), atol=1e-4)
    assert torch.allclose(standard_inputs.std(0, unbiased=False), torch.ones(columns), atol=1e-4)


def test_an_unknown_bundled_table_is_refused():
    with pytest.raises(ValueError, match="expected table to be one of wine, breast_cancer, iris"):
        bundled("vine")
