"""The IDX format of the MNIST family: a magic number, big-endian sizes, then the values; and the four files of a set."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from alenv.task import Examples, number_ids

UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> Tensor:
    """Return the uint8 array of an IDX file; `path` without .gz also finds the compressed file.

    Raises:
        ValueError: the file is absent, is not IDX of unsigned bytes, or is cut short.
    """
    compressed = path.with_name(path.name + ".gz")
    found = path if path.is_file() else compressed
    if not found.is_file():
        raise ValueError(f"{path}(.gz) is missing; put it there or set dataset.root to the folder that has it")
    try:
        data = gzip.decompress(found.read_bytes()) if found.suffix == ".gz" else found.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{found} cannot be read ({error}); it is damaged or cut short: get it again") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != UNSIGNED_BYTE:
        raise ValueError(
            f"{found} is not an IDX file of unsigned bytes (it starts with {data[:4].hex() or 'nothing'}); get it again"
        )
    axes = data[3]
    start = 4 + 4 * axes
    if len(data) < start or axes == 0:
        raise ValueError(f"{found} is cut short within its header of {start} bytes; get it again")
    shape = struct.unpack(f">{axes}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise ValueError(
            f"{found} is cut short or too long: expected {math.prod(shape)} values for shape {shape}, "
            f"got {max(0, len(data) - start)}; get it again"
        )
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)[start:].view(shape)


def read_part(folder: Path, part: Literal["train", "test"]) -> Examples:
    """Return the training or test images, (n, 1, height, width), and labels of the MNIST family in `folder`.

    Raises:
        ValueError: a file is absent or damaged, or the two do not belong together.
    """
    stem = {"train": "train", "test": "t10k"}[part]
    images, targets = read_idx(folder / f"{stem}-images-idx3-ubyte"), read_idx(folder / f"{stem}-labels-idx1-ubyte")
    if images.dim() != 3 or targets.dim() != 1 or len(images) != len(targets):
        raise ValueError(
            f"{folder}: {stem} images {tuple(images.shape)} and labels {tuple(targets.shape)} do not belong together; "
            "get the files again"
        )
    return Examples(images.unsqueeze(1), targets.long(), number_ids(len(images), f"{part}-"))


def find_folder(root: Path, inner: str) -> Path | None:
    """Return where the files are: `root`, or torchvision's folder `inner`/raw below it; None if they are in neither."""
    for folder in (root, root / inner / "raw"):
        if any((folder / f"train-images-idx3-ubyte{suffix}").is_file() for suffix in ("", ".gz")):
            return folder
    return None
