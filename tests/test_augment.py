"""Augmentation against a loop over samples."""

import pytest
import torch

from alenv.augment import augmented
from alenv.streams import Streams
from alenv.task import Augmentation


def images(batch=12, channels=2, height=5, width=7):
    return torch.randint(1, 256, (batch, channels, height, width), generator=Streams(0)("images"), dtype=torch.uint8)


def generator(seed=0):
    return Streams(seed)("train/noise")


def looped(batch, pad, flip, generator):
    """The same draws, then sample by sample: flip, then copy what stays in view."""
    height, width = batch.shape[2:]
    shifts = torch.randint(0, 2 * pad + 1, (2, len(batch), 1), generator=generator).squeeze(2) - pad
    flips = (torch.rand(len(batch), 1, generator=generator) < 0.5).flatten() if flip else [False] * len(batch)
    result = torch.zeros_like(batch)
    for i, image in enumerate(batch):
        for row in range(height):
            for column in range(width):
                source_row, source_column = row + int(shifts[0, i]), column + int(shifts[1, i])
                if flips[i]:  # the shift counts in the image's own columns, whichever way it is read
                    source_column = width - 1 - column + int(shifts[1, i])
                if 0 <= source_row < height and 0 <= source_column < width:
                    result[i, :, row, column] = image[:, source_row, source_column]
    return result


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("pad", [0, 1, 3])
def test_augmentation_equals_a_loop_over_samples(pad, flip):
    x = images()
    assert torch.equal(augmented(x, Augmentation(pad, flip), generator()), looped(x, pad, flip, generator()))


def test_without_shift_and_flip_nothing_changes():
    x = images()
    assert torch.equal(augmented(x, Augmentation(), generator()), x)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_dtype_and_shape_are_kept(dtype):
    x = images().to(dtype)
    result = augmented(x, Augmentation(2, True), generator())
    assert result.dtype == dtype
    assert result.shape == x.shape


def test_each_sample_has_draws_of_its_own():
    x = images(1).expand(400, -1, -1, -1)
    distinct = augmented(x, Augmentation(1, True), generator()).flatten(1).unique(dim=0)
    assert len(distinct) == 3 * 3 * 2


def test_half_the_images_are_flipped():
    x = images(1).expand(2000, -1, -1, -1)
    result = augmented(x, Augmentation(0, True), generator())
    flipped = (result == x.flip(3)).flatten(1).all(1)
    assert ((result == x).flatten(1).all(1) ^ flipped).all()
    assert float(flipped.float().mean()) == pytest.approx(0.5, abs=0.05)


def test_zeros_move_in_and_shifts_reach_the_pad_on_all_sides():
    x = torch.ones(500, 1, 5, 7)
    result = augmented(x, Augmentation(2), generator())[:, 0]
    rows, columns = result.amax(2).sum(1), result.amax(1).sum(1)
    assert rows.unique().tolist() == [3, 4, 5]
    assert columns.unique().tolist() == [5, 6, 7]
    assert result[:, 0, 3].min() == result[:, -1, 3].min() == result[:, 2, 0].min() == result[:, 2, -1].min() == 0


def test_the_same_generator_gives_the_same_images_and_the_argument_stays():
    x = images()
    before = x.clone()
    first = augmented(x, Augmentation(2, True), generator())
    assert torch.equal(first, augmented(x, Augmentation(2, True), generator()))
    assert not torch.equal(first, augmented(x, Augmentation(2, True), generator(1)))
    assert torch.equal(x, before)
