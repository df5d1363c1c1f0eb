"""SVHN, cropped digits (Netzer et al. 2011): 73,257 + 26,032 colour images of 32 x 32, ten classes."""

from pathlib import Path
from typing import Any

import torch

from alenv.task import Augmentation, Examples, Source, number_ids

MEAN, STD = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)


def svhn(root: str = "data", download: bool = False) -> Source:
    """Return SVHN; its 531,131 extra images are not used.

    Args:
        root: folder of `train_32x32.mat` and `test_32x32.mat`.
        download: let torchvision fetch them into `root` if they are not there.

    Raises:
        ValueError: the files are not there or cannot be read.
    """
    folder = Path(root).expanduser()
    if download and not (folder / "train_32x32.mat").is_file():
        from alenv.vision import torchvision_module

        for split in ("train", "test"):
            torchvision_module("datasets").SVHN(str(folder), split=split, download=True)
    train, test = _examples(folder, "train"), _examples(folder, "test")
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (MEAN, STD))
    return Source("svhn", train, test, tuple("0123456789"), mean, std, Augmentation(pad=2))


def _examples(folder: Path, part: str) -> Examples:
    path = folder / f"{part}_32x32.mat"
    if not path.is_file():
        raise ValueError(
            f"no SVHN in {folder.absolute()}: expected {path.name}; set dataset.root to its folder, or dataset.download=true"
        )
    found = _read(path)
    images, targets = torch.from_numpy(found["X"]).permute(3, 2, 0, 1).contiguous(), torch.from_numpy(found["y"]).flatten().long()
    return Examples(images, targets % 10, number_ids(len(images), f"{part}-"))  # the files call the digit 0 class 10


def _read(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        found = loadmat(path, variable_names=["X", "y"])
    except Exception as error:  # scipy raises whatever a damaged file leads to
        raise ValueError(f"{path} cannot be read ({error}); it is damaged or cut short: get it again") from error
    images = found.get("X")
    if images is None or "y" not in found or images.ndim != 4 or images.shape[3] != found["y"].size:
        raise ValueError(f"{path}: expected images X (32, 32, 3, n) and labels y (n, 1); get it again")
    return found
