"""MNIST (LeCun, Cortes & Burges 1998): 60,000 + 10,000 grey images of 28 x 28, the ten digits."""

from pathlib import Path

import torch

from alenv.datasets.idx import find_folder, read_part
from alenv.task import Augmentation, Source

MEAN, STD = 0.1307 * 255, 0.3081 * 255


def mnist(root: str = "data", download: bool = False) -> Source:
    """Return MNIST.

    Args:
        root: folder of the IDX files (`train-images-idx3-ubyte`, ..., plain or .gz), or of torchvision's copy of them.
        download: let torchvision fetch them into `root` if they are not there.

    Raises:
        ValueError: the files are not there, cannot be read, or are cut short.
    """
    folder = find_folder(Path(root).expanduser(), "MNIST")
    if folder is None and download:
        from alenv.vision import torchvision_module

        torchvision_module("datasets").MNIST(root, download=True)
        folder = find_folder(Path(root).expanduser(), "MNIST")
    if folder is None:
        raise ValueError(
            f"no MNIST files in {Path(root).absolute()}: expected train-images-idx3-ubyte(.gz) and its three companions; "
            "set dataset.root to their folder, or dataset.download=true"
        )
    train, test = read_part(folder, "train"), read_part(folder, "test")
    return Source("mnist", train, test, tuple("0123456789"), torch.tensor(MEAN), torch.tensor(STD), Augmentation(pad=2))
