"""A folder of images in one folder per class."""

from pathlib import Path

import torch

from alenv.datasets.images import image_files, read_images
from alenv.datasets.moments import moments
from alenv.task import Augmentation, Examples, Source

UNLABELED = "unlabeled"
TEST = ("test", "val")


def image_folder(
    root: str = "data", title: str = "images", side: int | None = None, channels: int = 3, shift: int = 0, flip: bool = False,
    cache: str | None = "auto",
) -> Source:  # fmt: skip
    """Return the images below `root/train/<class>/`, and below `root/test/<class>/` (or `val`) for a test split if there is one.

    Without a folder `train`, `root/<class>/` is read and there is no test split. Images in a folder `unlabeled` beside the
    classes, or in no folder, have no label. Class names and labels are folder names and ids are paths: neither needs decoding.

    Args:
        root: the folder.
        title: what to call the data set.
        side: pixels to which images are resized (shorter side) and cut at the centre; None: they all have one size already.
        channels: 3 for colours, 1 for grey.
        shift: pixels by which training images may be shifted without changing their class.
        flip: whether they may be flipped horizontally.
        cache: where decoded images are kept: "auto", a folder, or null for memory only (see `alenv.datasets.store.kept`).

    Raises:
        ValueError: no images, one that cannot be decoded, several sizes without `side`, or a test class that training lacks.
    """
    folder = Path(root).expanduser()
    part = folder / "train" if (folder / "train").is_dir() else folder
    classes = tuple(sorted(f.name for f in part.iterdir() if _class_folder(f))) if part.is_dir() else ()
    train = _examples(folder, part, classes, side, channels, cache)
    held = next((folder / t for t in TEST if part != folder and (folder / t).is_dir()), None)
    test = None if held is None else _examples(folder, held, classes, side, channels, cache)
    mean, std = moments(train.inputs)
    augmentation = Augmentation(shift, flip) if shift or flip else None
    return Source(title, train, test, classes, mean, std, augmentation, folder=folder.absolute())


def _class_folder(folder: Path) -> bool:
    return folder.is_dir() and not folder.name.startswith(".") and folder.name != UNLABELED


def _examples(root: Path, part: Path, classes: tuple[str, ...], side: int | None, channels: int, cache: str | None) -> Examples:
    paths = image_files(part) if part.is_dir() else []
    if not paths:
        raise ValueError(f"no images in {part.absolute()}; set dataset.root to a folder of one folder of images per class")
    number = {name: c for c, name in enumerate(classes)} | {UNLABELED: -1}
    targets = []
    for path in paths:
        above = path.relative_to(part).parts[:-1]
        if above and above[0] not in number:
            raise ValueError(f"{part}: no training example of class {above[0]}; the classes are {', '.join(classes[:12])}")
        targets.append(number[above[0]] if above else -1)
    ids = tuple(path.relative_to(root).as_posix() for path in paths)
    return Examples(read_images(paths, side, channels, cache), torch.tensor(targets), ids)
