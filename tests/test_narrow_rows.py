"""Work that goes class by class where classes are few: the same numbers as torch's, and a row's bits depend on that row alone."""

import pytest
import torch

from alenv.ops import class_log_softmax, largest, softmax, top_two
from alenv.round import Round
from alenv.streams import Streams

COUNTS = [1, 2, 3, 7, 15, 16, 17, 33, 100, 501]


def logits(n=1003, classes=10, seed=0):
    return 5 * torch.randn(n, classes, generator=Streams(seed)("logits"))


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 15, 16, 40])
def test_probabilities_are_torchs(classes):
    z = logits(classes=classes)
    torch.testing.assert_close(softmax(z), z.softmax(1))
    torch.testing.assert_close(class_log_softmax(z).T, z.log_softmax(1))
    assert softmax(z).is_contiguous()


@pytest.mark.parametrize("classes", [2, 3, 10, 15, 16, 40])
@pytest.mark.parametrize("count", COUNTS)
def test_a_rows_bits_depend_on_that_row_alone(classes, count):
    z = logits(classes=classes)
    rows = torch.randperm(len(z), generator=Streams(count)("rows"))[:count]
    assert torch.equal(softmax(z[rows]), softmax(z)[rows])
    assert torch.equal(class_log_softmax(z[rows]), class_log_softmax(z)[:, rows])
    assert torch.equal(softmax(z.T.contiguous().T), softmax(z))  # nor on how the rows lie in memory


def test_log_probabilities_of_many_models_are_those_of_each():
    many = torch.stack([logits(seed=s) for s in range(3)])
    assert all(torch.equal(class_log_softmax(z), found) for z, found in zip(many, class_log_softmax(many), strict=True))


@pytest.mark.parametrize("classes", [1, 2, 10, 300, 2**15])
def test_the_first_of_equal_classes_is_the_largest(classes):
    n = 4 if classes == 2**15 else 200
    columns = torch.randint(0, 4, (2, classes, n), generator=Streams(classes)("ties")).float()
    values, which = largest(columns)
    assert torch.equal(values, columns.amax(1))
    assert torch.equal(which, columns.argmax(1))
    assert which.dtype == torch.int64


@pytest.mark.parametrize("classes", [2, 3, 10, 47, 48, 101])
def test_the_two_largest_are_those_of_a_sort(classes):
    values = torch.randint(0, 5, (400, classes), generator=Streams(classes)("two")).float()
    ordered = values.sort(1, descending=True).values
    assert torch.equal(top_two(values), ordered[:, :2].T)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [3, 20])
def test_every_precision_is_served(dtype, classes):
    z = logits(50, classes).to(dtype)
    torch.testing.assert_close(softmax(z), z.softmax(1))
    known, exact = Round.from_arrays(logits=z), Round.from_arrays(logits=z.double())
    assert known.probs.dtype == dtype
    assert known.certainty == pytest.approx(exact.certainty, abs=1e-5 if dtype == torch.float64 else 0.02)


def test_no_rows_give_no_rows():
    assert softmax(torch.zeros(0, 3)).shape == (0, 3)
    assert class_log_softmax(torch.zeros(2, 0, 3)).shape == (2, 3, 0)


def test_a_rounds_two_likeliest_classes_are_shared_and_sliced_like_its_probabilities():
    now = Round.from_arrays(logits=logits(40, 4))
    ordered = now.probs.sort(1, descending=True).values[:, :2].T
    assert torch.equal(now.top_two, ordered)
    assert now.top_two is now.top_two
    parts = [block.top_two for block in now.blocks("probs", size=7)]
    assert torch.equal(torch.cat(parts, 1), ordered)
    assert torch.equal(now.subset(torch.tensor([5, 2])).top_two, ordered[:, [5, 2]])
