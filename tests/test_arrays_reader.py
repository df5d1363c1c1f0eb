"""A folder of numpy arrays as a data set."""

import numpy as np
import pytest
import torch

from alenv.datasets.arrays import arrays


def write(folder, **files):
    for name, values in files.items():
        np.save(folder / f"{name}.npy", np.asarray(values))


@pytest.fixture
def features(tmp_path):
    rows = np.random.default_rng(0).normal(3, 2, (12, 5))
    write(tmp_path, train_inputs=rows, train_targets=np.arange(12) % 3, test_inputs=rows[:4], test_targets=[0, 1, 2, 0])
    return tmp_path


def test_features_are_standardised_by_the_training_examples(features):
    source = arrays(str(features))
    assert source.train.inputs.dtype == torch.float32
    assert torch.allclose((source.train.inputs - source.mean).div(source.std).std(0, unbiased=False), torch.ones(5), atol=1e-5)
    assert len(source.train) == 12
    assert len(source.test) == 4
    assert source.classes == ("0", "1", "2")
    assert source.train.ids[0] != source.test.ids[0]


def test_byte_images_stay_bytes_and_are_standardised_per_channel(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (6, 3, 4, 4), dtype=np.uint8)
    write(tmp_path, train_inputs=pixels, train_targets=[0, 1] * 3)
    source = arrays(str(tmp_path))
    assert source.train.inputs.dtype == torch.uint8
    np.testing.assert_allclose(source.mean.flatten(), pixels.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(source.std.flatten(), pixels.std((0, 2, 3)), rtol=1e-5)
    assert source.mean.shape == (3, 1, 1)
    assert source.test is None


def test_class_names_come_from_a_file(features):
    (features / "classes.txt").write_text("ape\nbee\n cat \n", encoding="utf-8")
    assert arrays(str(features), title="zoo").classes == ("ape", "bee", "cat")


def test_an_absent_file_says_where_it_should_be(tmp_path):
    with pytest.raises(ValueError, match=r"no array train_inputs in .*; set dataset\.root to the folder"):
        arrays(str(tmp_path))


@pytest.mark.parametrize(
    ("targets", "said"),
    [([0, 1], r"one class number per train input \(12,\), got"), (np.linspace(0, 1, 12), "got torch.float64")],
)
def test_targets_that_do_not_belong_are_refused(features, targets, said):
    write(features, train_targets=targets)
    with pytest.raises(ValueError, match=said):
        arrays(str(features))


def test_test_inputs_of_another_width_are_refused(features):
    write(features, test_inputs=np.zeros((4, 6)))
    with pytest.raises(ValueError, match=r"test inputs of the training inputs' shape \(5,\), got \(6,\)"):
        arrays(str(features))


def test_pickled_arrays_are_not_opened(features):
    np.save(features / "train_inputs.npy", np.array([{"a": 1}] * 12, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"is no plain numeric array: .*; write it with numpy\.save"):
        arrays(str(features))
