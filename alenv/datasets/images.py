"""Image files as one array of bytes."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from alenv.datasets.store import Allocate, kept

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
AT_ONCE = 256  # images on their way between the decoders and the array


def image_files(folder: Path) -> list[Path]:
    """Return the image files below `folder`, in the order of their names; hidden ones are left out."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def read_images(paths: Sequence[Path], side: int | None = None, channels: int = 3, cache: str | None = "auto") -> Tensor:
    """Return (n, channels, side, side) bytes, decoded once: the array is kept in a file named by a hash of the files' contents.

    Args:
        paths: image files.
        side: images are resized and cut at their centre to this many pixels square; None: they must all have one size, which
            is kept.
        channels: 3 for colours, 1 for grey.
        cache: see `alenv.datasets.store.kept`.

    Raises:
        ValueError: a file cannot be decoded, or there are several sizes and no `side`.
    """
    digest = hashlib.blake2b(f"images 1 {side} {channels}".encode(), digest_size=16)
    for path in paths:
        data = path.read_bytes()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)

    def make(allocate: Allocate) -> None:
        width, height = (side, side) if side else _common_size(paths)
        array = allocate((len(paths), channels, height, width), "uint8")
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for start in range(0, len(paths), AT_ONCE):
                some = paths[start : start + AT_ONCE]
                for i, pixels in enumerate(threads.map(lambda path: _decoded(path, side, channels), some), start):
                    array[i] = pixels

    return kept(digest.hexdigest(), make, cache)


def pixels_of(image: Any, side: int | None = None, channels: int = 3) -> np.ndarray:
    """Return a PIL image as (channels, height, width) bytes, upright."""
    from PIL import Image, ImageOps

    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"mode {image.mode} holds more than 8 bits per channel; save it with 8, or bring arrays (dataset=arrays)"
        )
    upright = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
    if side is not None and upright.size != (side, side):
        upright = ImageOps.fit(upright, (side, side), Image.Resampling.BICUBIC)
    values = np.asarray(upright)
    return values[None] if channels == 1 else values.transpose(2, 0, 1)


def sizes_agree(sizes: Iterable[tuple[str, tuple[int, int]]]) -> tuple[int, int]:
    """Return the one (width, height) of images given with their names; several raise ValueError."""
    first: tuple[str, tuple[int, int]] | None = None
    for name, size in sizes:
        first = first or (name, size)
        if size != first[1]:
            raise ValueError(
                f"images have several sizes ({first[0]} is {first[1][0]} x {first[1][1]}, {name} is {size[0]} x {size[1]}); "
                "set dataset.side to the pixels they are to be resized to"
            )
    if first is None:
        raise ValueError("expected at least one image, got none")
    return first[1]


def _common_size(paths: Sequence[Path]) -> tuple[int, int]:
    return sizes_agree((str(path), _size(path)) for path in paths)


def _size(path: Path) -> tuple[int, int]:
    """Return (width, height) once upright, from the file's header."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) >= 5  # the orientations that swap the sides
            return (image.height, image.width) if turned else (image.width, image.height)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _corrupt(path, error) from error


def _decoded(path: Path, side: int | None, channels: int) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return pixels_of(image, side, channels)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _corrupt(path, error) from error


def _corrupt(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be decoded ({error}); get it again, or remove it")
