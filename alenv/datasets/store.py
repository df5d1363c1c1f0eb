"""Arrays that took work to make (decoded images, tokens): kept as memory-mapped files, so they need not fit in memory."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alenv.durable import beside
from alenv.encoder import default_folder

Allocate = Callable[[Sequence[int], str], np.ndarray]


def kept(key: str, make: Callable[[Allocate], None], cache: str | None = "auto") -> Tensor:
    """Return the array that `make` fills, from the file of an earlier call if there is one.

    Args:
        key: a hash of all that the array depends on.
        make: calls `allocate(shape, dtype)` once and fills the array it gets, from front to back if it is large.
        cache: folder of the files; "auto" is `arrays` in `alenv.encoder.default_folder`; None keeps no file (all in memory).

    Returns:
        A tensor; if there is a file its pages are read when they are touched, and writing to it changes memory only.
    """
    if cache is None:
        arrays: list[np.ndarray] = []

        def in_memory(shape: Sequence[int], dtype: str) -> np.ndarray:
            arrays.append(np.empty(tuple(shape), dtype))
            return arrays[0]

        make(in_memory)
        return torch.from_numpy(arrays[0])
    folder = default_folder() / "arrays" if cache == "auto" else Path(cache).expanduser()
    path = folder / f"{key}.npy"
    if not path.exists():
        try:
            _write(path, make)
        except OSError as error:
            raise ValueError(
                f"{folder} cannot hold the data as an array ({error.strerror or error}); "
                "set dataset.cache to a folder with room, or to null to keep it in memory"
            ) from error
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def _write(path: Path, make: Callable[[Allocate], None]) -> None:
    """Write a whole file or none, whoever else writes the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    mapped: list[np.memmap] = []

    def in_file(shape: Sequence[int], dtype: str) -> np.ndarray:
        mapped.append(np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=tuple(shape)))
        return mapped[0]

    try:
        make(in_file)
        mapped[0].flush()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
