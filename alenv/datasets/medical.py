"""MedMNIST's single-label 2D sets (Yang et al. 2023), three of which AutoAL is measured on."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from alenv.datasets.moments import moments
from alenv.task import Augmentation, Examples, Source, number_ids


class _Set(NamedTuple):
    python_class: str
    classes: tuple[str, ...]
    flip: bool  # whether a mirrored image is of the same class


SETS = {
    "organcmnist": _Set(
        "OrganCMNIST",
        ("bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left", "lung-right",
         "pancreas", "spleen"),
        False,
    ),
    "pathmnist": _Set(
        "PathMNIST",
        ("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa",
         "cancer-associated stroma", "colorectal adenocarcinoma epithelium"),
        True,
    ),
    "tissuemnist": _Set(
        "TissueMNIST",
        ("collecting duct, connecting tubule", "distal convoluted tubule", "glomerular endothelial cells",
         "interstitial endothelial cells", "leukocytes", "podocytes", "proximal tubule segments", "thick ascending limb"),
        True,
    ),
}  # fmt: skip


def medmnist(
    name: Literal["organcmnist", "pathmnist", "tissuemnist"], root: str = "data", side: int = 28, download: bool = False
) -> Source:
    """Return a MedMNIST set: its training and test images; its validation images are not used (settings draw their own).

    Args:
        name: which one.
        root: folder of `<name>.npz` (28 pixels) or `<name>_<side>.npz`.
        side: 28, 64, 128 or 224 pixels.
        download: let the package `medmnist` (extra `medical`) fetch the file into `root` if it is not there.

    Raises:
        ValueError: the file is not there or cannot be read.
        ImportError: it is to be downloaded and `medmnist` is not installed.
    """
    if name not in SETS or side not in (28, 64, 128, 224):
        raise ValueError(f"expected name to be one of {', '.join(SETS)} and side 28, 64, 128 or 224, got {name} and {side}")
    folder = Path(root).expanduser()
    path = folder / (f"{name}.npz" if side == 28 else f"{name}_{side}.npz")
    if download and not path.is_file():
        _download(SETS[name].python_class, folder, side)
    if not path.is_file():
        raise ValueError(f"no {path.name} in {folder.absolute()}; set dataset.root to its folder, or dataset.download=true")
    train, test = (_examples(path, part) for part in ("train", "test"))
    mean, std = moments(train.inputs)
    return Source(name, train, test, SETS[name].classes, mean, std, Augmentation(pad=side // 14, flip=SETS[name].flip))


def _examples(path: Path, part: str) -> Examples:
    try:
        with path.open("rb") as file, np.load(file) as held:
            images, targets = held[f"{part}_images"], held[f"{part}_labels"]
    except Exception as error:  # a damaged archive fails in many ways
        raise ValueError(f"{path} cannot be read ({error}); it is damaged or cut short: get it again") from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or targets.size != len(images):
        raise ValueError(
            f"{path}: expected {part} images of bytes with one label each, got {images.dtype} {images.shape} "
            f"and labels {targets.shape}; get it again"
        )
    pixels = torch.from_numpy(images)
    pixels = pixels.unsqueeze(1) if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return Examples(pixels, torch.from_numpy(targets.astype(np.int64)).flatten(), number_ids(len(pixels), f"{part}-"))


def _download(python_class: str, folder: Path, side: int) -> None:
    try:
        import medmnist as package
    except ImportError as error:
        raise ImportError(f'downloading MedMNIST needs the package medmnist ({error}): pip install "alenv[medical]"') from error
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        getattr(package, python_class)(split=split, root=str(folder), size=side, download=True)
