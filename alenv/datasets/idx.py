"""The IDX format of the MNIST family: a magic number, big-endian sizes, then the values."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

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
