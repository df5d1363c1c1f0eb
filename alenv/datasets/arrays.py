"""A folder of numpy arrays: features somebody computed, or images, with their class numbers."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alenv.task import Examples, Source, number_ids


def arrays(root: str = "data", name: str = "arrays") -> Source:
    """Return the data set in a folder.

    It holds `train_inputs.npy` (n, ...), `train_targets.npy` (n,) of class numbers (-1: unknown), and, if there is a test split,
    `test_inputs.npy` and `test_targets.npy`. `classes.txt` may name the classes, one a line. Inputs are standardised by the
    training examples: images of bytes (n, channels, height, width) per channel, everything else per feature.

    Args:
        root: the folder.
        name: what to call the data set.

    Raises:
        ValueError: a file is missing or no plain array, or arrays do not belong together.
    """
    folder = Path(root).expanduser()
    train = _examples(folder, "train")
    test = _examples(folder, "test") if (folder / "test_inputs.npy").exists() else None
    if test is not None and test.inputs.shape[1:] != train.inputs.shape[1:]:
        raise ValueError(
            f"{folder}: expected test inputs of the training inputs' shape {tuple(train.inputs.shape[1:])}, "
            f"got {tuple(test.inputs.shape[1:])}"
        )
    mean, std = _moments(train.inputs)
    return Source(name, train, test, _classes(folder, train.targets), mean, std)


def _examples(folder: Path, part: str) -> Examples:
    inputs, targets = _array(folder / f"{part}_inputs.npy"), _array(folder / f"{part}_targets.npy")
    if len(inputs) != len(targets) or targets.dim() != 1 or targets.is_floating_point():
        raise ValueError(
            f"{folder}: expected one class number per {part} input ({len(inputs)},), got {targets.dtype} {tuple(targets.shape)}"
        )
    return Examples(
        inputs if inputs.dtype == torch.uint8 else inputs.float(), targets.long(), number_ids(len(inputs), f"{part}-")
    )


def _array(path: Path) -> Tensor:
    if not path.exists():
        raise ValueError(f"no file {path.absolute()}; set dataset.root to the folder of train_inputs.npy and train_targets.npy")
    try:
        return torch.from_numpy(np.load(path))
    except (ValueError, TypeError, OSError, EOFError) as error:
        raise ValueError(f"{path.absolute()} is no plain numeric array: {error}; write it with numpy.save") from error


def _moments(inputs: Tensor) -> tuple[Tensor, Tensor]:
    if inputs.dtype == torch.uint8 and inputs.dim() == 4:
        found = [torch.std_mean(inputs[:, c].float(), unbiased=False) for c in range(inputs.shape[1])]
        std, mean = (torch.stack(values)[:, None, None] for values in zip(*found, strict=True))
        return mean, std.clamp(min=1e-6)
    values = inputs.float()
    return values.mean(0), values.std(0, unbiased=False).clamp(min=1e-6)


def _classes(folder: Path, targets: Tensor) -> tuple[str, ...]:
    listed = folder / "classes.txt"
    if listed.exists():
        return tuple(line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip())
    return tuple(str(c) for c in range(int(targets.max()) + 1 if len(targets) else 0))
