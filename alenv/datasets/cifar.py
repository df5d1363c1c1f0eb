"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32 x 32.

Read from the binary version: the Python version of the archives, which torchvision reads, is a pickle, and unpickling a file runs
whatever it says.
"""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from alenv.task import Augmentation, Examples, Source, number_ids

PIXELS = 3 * 32 * 32


class _Release(NamedTuple):
    url: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    labels: int  # bytes in front of the pixels; the last is the class
    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


RELEASES = {
    "cifar10": _Release(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-batches-bin",
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",), "batches.meta.txt", 1, 10,
        (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616),
    ),
    "cifar100": _Release(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", "cifar-100-binary",
        ("train.bin",), ("test.bin",), "fine_label_names.txt", 2, 100,
        (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762),
    ),
}  # fmt: skip


def cifar(name: Literal["cifar10", "cifar100"], root: str = "data", download: bool = False) -> Source:
    """Return CIFAR-10 or CIFAR-100 (its 100 fine classes).

    Args:
        name: which one.
        root: folder of the binary version (`cifar-10-batches-bin`, `cifar-100-binary`), or the one that holds it.
        download: fetch and unpack the archive (160 MB) into `root` if it is not there; its checksum is verified.

    Raises:
        ValueError: the files are not there, or one is cut short or damaged.
    """
    if name not in RELEASES:
        raise ValueError(f"expected name=cifar10 or cifar100, got '{name}'")
    release = RELEASES[name]
    folder = _folder(Path(root).expanduser(), release)
    if folder is None and download:
        from alenv.vision import torchvision_module

        tool = torchvision_module("datasets.utils")
        tool.download_and_extract_archive(release.url, str(Path(root).expanduser()), md5=release.md5)
        folder = _folder(Path(root).expanduser(), release)
    if folder is None:
        raise ValueError(
            f"no {name} in {Path(root).absolute()}: expected {release.train[0]} of the binary version ({release.url}); "
            "set dataset.root to its folder, or dataset.download=true"
        )
    lines = (folder / release.names).read_text(encoding="utf-8").splitlines() if (folder / release.names).is_file() else []
    classes = tuple(line.strip() for line in lines if line.strip()) or tuple(map(str, range(release.classes)))
    train, test = (_examples(folder, release, part) for part in ("train", "test"))
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (release.mean, release.std))
    return Source(name, train, test, classes, mean, std, Augmentation(pad=4, flip=True))


def _examples(folder: Path, release: _Release, part: str) -> Examples:
    records = np.concatenate([_records(folder / file, release) for file in getattr(release, part)])
    pixels = torch.from_numpy(records[:, release.labels :]).reshape(-1, 3, 32, 32)
    targets = torch.from_numpy(records[:, release.labels - 1].astype(np.int64))
    return Examples(pixels, targets, number_ids(len(pixels), f"{part}-"))


def _records(path: Path, release: _Release) -> np.ndarray:
    """Return (n, labels + pixels) bytes, read when they are touched."""
    size = release.labels + PIXELS
    if not path.is_file():
        raise ValueError(f"{path} is missing; get the archive again ({release.url})")
    length = path.stat().st_size
    if length == 0 or length % size:
        raise ValueError(f"{path} is cut short or damaged: expected a multiple of {size} bytes, got {length}; get it again")
    return np.memmap(path, np.uint8, "r").reshape(-1, size)


def _folder(root: Path, release: _Release) -> Path | None:
    return next((f for f in (root, root / release.folder) if (f / release.train[0]).is_file()), None)
