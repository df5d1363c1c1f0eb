"""TinyImageNet (Stanford CS231n, 2015): 100,000 + 10,000 colour images of 64 x 64, 200 classes."""

from pathlib import Path

import torch

from alenv.datasets.images import read_images
from alenv.datasets.moments import moments
from alenv.task import Augmentation, Examples, Source

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


def tiny_imagenet(root: str = "data", download: bool = False, cache: str | None = "auto") -> Source:
    """Return TinyImageNet; its published validation images are the test split (labels of its test images are not public).

    Args:
        root: the folder `tiny-imagenet-200`, or the one that holds it.
        download: fetch and unpack the archive (240 MB) into `root` if it is not there.
        cache: where the decoded images (1.3 GB) are kept, see `alenv.datasets.store.kept`.

    Raises:
        ValueError: the files are not there or one of them is damaged.
    """
    folder = _folder(Path(root).expanduser())
    if folder is None and download:
        from alenv.vision import torchvision_module

        torchvision_module("datasets.utils").download_and_extract_archive(URL, str(Path(root).expanduser()), md5=MD5)
        folder = _folder(Path(root).expanduser())
    if folder is None:
        raise ValueError(
            f"no TinyImageNet in {Path(root).absolute()}: expected tiny-imagenet-200 with wnids.txt, train and val; "
            "set dataset.root to its folder, or dataset.download=true"
        )
    wnids = sorted((folder / "wnids.txt").read_text(encoding="utf-8").split())
    number = {wnid: c for c, wnid in enumerate(wnids)}
    train = [(path, number[wnid]) for wnid in wnids for path in sorted((folder / "train" / wnid / "images").glob("*.JPEG"))]
    said = (folder / "val" / "val_annotations.txt").read_text(encoding="utf-8").splitlines()
    test = [(folder / "val" / "images" / row[0], number[row[1]]) for row in (line.split("\t") for line in said if line)]
    parts = [_examples(folder, part, cache) for part in (train, test)]
    mean, std = moments(parts[0].inputs)
    return Source("tiny_imagenet", parts[0], parts[1], _names(folder, wnids), mean, std, Augmentation(pad=8, flip=True))


def _examples(folder: Path, part: list[tuple[Path, int]], cache: str | None) -> Examples:
    missing = [path for path, _ in part if not path.is_file()]
    if missing or not part:
        raise ValueError(f"{missing[0] if missing else folder / 'train'} is missing; get the archive again")
    ids = tuple(path.relative_to(folder).as_posix() for path, _ in part)
    return Examples(read_images([path for path, _ in part], 64, 3, cache), torch.tensor([c for _, c in part]), ids)


def _names(folder: Path, wnids: list[str]) -> tuple[str, ...]:
    """Return the first word of each class; the WordNet number where that is missing or means two classes."""
    lines = (folder / "words.txt").read_text(encoding="utf-8").splitlines()
    words = {wnid: said.split(",")[0] for wnid, _, said in (line.partition("\t") for line in lines)}
    names = [words.get(wnid) or wnid for wnid in wnids]
    return tuple(name if names.count(name) == 1 else wnid for name, wnid in zip(names, wnids, strict=True))


def _folder(root: Path) -> Path | None:
    return next((f for f in (root, root / "tiny-imagenet-200") if (f / "wnids.txt").is_file() and (f / "train").is_dir()), None)
