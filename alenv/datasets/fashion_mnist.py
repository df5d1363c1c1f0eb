"""Fashion-MNIST (Xiao, Rasul & Vollgraf 2017): 60,000 + 10,000 grey images of 28 x 28, ten classes."""

from pathlib import Path

import torch

from alenv.datasets.idx import find_folder, read_part
from alenv.task import Augmentation, Source

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
MEAN, STD = 0.2860 * 255, 0.3530 * 255


def fashion_mnist(root: str = "data", download: bool = False) -> Source:
    """Return Fashion-MNIST.

    Args:
        root: folder of the IDX files (`train-images-idx3-ubyte`, ..., plain or .gz), or of torchvision's copy of them.
        download: let torchvision fetch them into `root` if they are not there.

    Raises:
        ValueError: the files are not there, cannot be read, or are cut short.
    """
    folder = find_folder(Path(root).expanduser(), "FashionMNIST")
    if folder is None and download:
        from alenv.vision import torchvision_module

        torchvision_module("datasets").FashionMNIST(root, download=True)
        folder = find_folder(Path(root).expanduser(), "FashionMNIST")
    if folder is None:
        raise ValueError(
            f"no Fashion-MNIST files in {Path(root).absolute()}: expected train-images-idx3-ubyte(.gz) and its three companions; "
            "set dataset.root to their folder (Debian: apt install dataset-fashion-mnist, "
            "dataset.root=/usr/share/datasets/fashion-mnist) or dataset.download=true"
        )
    train, test = read_part(folder, "train"), read_part(folder, "test")
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    return Source("fashion_mnist", train, test, CLASSES, mean, std, Augmentation(pad=2, flip=True))
