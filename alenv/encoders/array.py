"""Features somebody else computed, from a file."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from alenv.encoder import Encoder, Unlabeled, checked


class Array(Encoder):
    """Rows of a `.npy` or `.safetensors` file, which stays on disk: only the rows that are asked for are read.

    Row i belongs to the i-th training example of the data set (validation examples included), whatever the seed draws
    from them. A file may hold (n, F), or (n, V, F) for V views of each example.

    Args:
        path: the file; relative to the working directory.
        tensor: which tensor of a safetensors file; may be left out where there is one.
    """

    costly = False

    def __init__(self, path: str = "features.npy", tensor: str | None = None) -> None:
        self.path, self.tensor = path, tensor

    def check(self, pool: Unlabeled) -> None:
        """Raise ValueError if the file is absent or unreadable, or does not have one row per training example."""
        values = self._values()
        if values.dim() not in (2, 3) or len(values) != pool.total:
            raise ValueError(
                f"{self.path}: expected one row of features per training example ({pool.total}, F), got {tuple(values.shape)}"
            )

    def encode(self, pool: Unlabeled) -> "_Mapped":
        """Return the rows of the pool's examples."""
        return _Mapped(self._values(), pool.positions, self.path)

    def _values(self) -> Tensor:
        path = Path(self.path)
        if not path.exists():
            raise ValueError(f"no file {path.absolute()}; set features.<name>.path to where the features are")
        try:
            return self._from_safetensors(path) if path.suffix == ".safetensors" else _from_npy(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{path.absolute()} cannot be read: {error}") from error

    def _from_safetensors(self, path: Path) -> Tensor:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            name = self.tensor if self.tensor is not None else names[0]
            if name not in names or (self.tensor is None and len(names) > 1):
                raise ValueError(f"it holds the tensors {', '.join(names)}; say which with tensor=")
            return file.get_tensor(name)


class _Mapped:
    """Rows of a mapped file by pool index."""

    def __init__(self, values: Tensor, positions: Int[Tensor, " N"], path: str) -> None:
        self._values, self._positions, self._path = values, positions.to(values.device), path

    def __getitem__(self, indices: Int[Tensor, " k"]) -> Float[Tensor, "k ..."]:
        rows = self._values[self._positions[indices.to(self._values.device)]]
        return checked(rows.float().to(indices.device), self._path)


def _from_npy(path: Path) -> Tensor:
    # "c": changes would stay in memory; a read-only array makes torch warn
    return torch.from_numpy(np.load(path, mmap_mode="c"))
