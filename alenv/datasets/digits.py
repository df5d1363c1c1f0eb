"""scikit-learn's bundled handwritten digits: 1,797 images of 8 x 8, ten classes (Alpaydin & Kaynak 1998, CC BY 4.0)."""

import torch

from alenv.task import Augmentation, Examples, Source, number_ids

TEST_SIZE = 297  # leaves 1,500 for pool and validation


def digits() -> Source:
    """Return the digits as uint8 images with values 0..16; the test examples are a fixed random 297."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
    targets = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    examples = Examples(images, targets, number_ids(len(images)))
    train, test = examples.take(order[TEST_SIZE:].sort().values), examples.take(order[:TEST_SIZE].sort().values)
    values = train.inputs.float()
    classes = tuple(str(d) for d in range(10))
    return Source("digits", train, test, classes, values.mean(), values.std(), Augmentation(pad=1))
