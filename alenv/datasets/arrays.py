"""Numpy arrays: features somebody computed, or images, with their class numbers."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alenv.datasets.moments import moments
from alenv.task import Examples, Source, number_ids


def arrays(root: str = "data", title: str = "arrays") -> Source:
    """Return the data set in a folder of .npy files, or in one .npz file.

    It holds `train_inputs` (n, ...), `train_targets` (n,) of class numbers (-1: unknown), and, if there is a test split,
    `test_inputs` and `test_targets`. In a folder `classes.txt` may name the classes, one a line; in an .npz file the array
    `classes`. Inputs are standardised by the training examples: images of bytes (n, channels, height, width) per channel,
    everything else per feature. Files in a folder are memory-mapped: their inputs (float16 halves them)
    need not fit in memory.

    Args:
        root: the folder or the .npz file.
        title: what to call the data set.

    Raises:
        ValueError: a file is missing or no plain array, or arrays do not belong together.
    """
    path = Path(root).expanduser()
    held = _packed(path) if path.is_file() else _mapped(path)
    train = _examples(path, held, "train")
    test = _examples(path, held, "test") if "test_inputs" in held else None
    if test is not None and test.inputs.shape[1:] != train.inputs.shape[1:]:
        raise ValueError(
            f"{path}: expected test inputs of the training inputs' shape {tuple(train.inputs.shape[1:])}, "
            f"got {tuple(test.inputs.shape[1:])}"
        )
    known = int(train.targets.max()) + 1
    if known > len(train) and "classes" not in held:
        raise ValueError(
            f"{path}: the highest class number, {known - 1}, leaves classes without any of the {len(train)} training examples; "
            "number the classes from 0, or name them (classes.txt)"
        )
    classes = [str(name) for name in held["classes"]] if "classes" in held else [str(c) for c in range(known)]
    return Source(title, train, test, tuple(classes), *moments(train.inputs))


def _examples(path: Path, held: dict[str, np.ndarray], part: str) -> Examples:
    for name in (f"{part}_inputs", f"{part}_targets"):
        if name not in held:
            raise ValueError(
                f"no array {name} in {path.absolute()}; set dataset.root to the folder of train_inputs.npy and train_targets.npy "
                "(test_... the same way), or to an .npz file of these arrays"
            )
    inputs, targets = _tensor(path, held[f"{part}_inputs"]), _tensor(path, held[f"{part}_targets"])
    if inputs.dim() < 2 or inputs.numel() == 0 or inputs.is_complex():
        raise ValueError(
            f"{path}: expected {part}_inputs of real numbers (n, features) or (n, channels, height, width), none of them 0, "
            f"got {inputs.dtype} {tuple(inputs.shape)}; reshape them, or write the examples"
        )
    whole = not (targets.is_floating_point() or targets.is_complex())
    if len(inputs) != targets.numel() or targets.dim() != 1 or not whole:
        raise ValueError(
            f"{path}: expected one class number per {part} input ({len(inputs)},), got {targets.dtype} {tuple(targets.shape)}; "
            "write whole numbers, -1 where the class is unknown"
        )
    if int(targets.min()) < -1:
        raise ValueError(f"{path}: expected {part}_targets of class numbers 0, 1, ... or -1 (unknown), got {int(targets.min())}")
    stored = inputs if inputs.dtype in (torch.uint8, torch.float16, torch.float32) else inputs.float()
    return Examples(stored, targets.long(), number_ids(len(inputs), f"{part}-"))


def _mapped(folder: Path) -> dict[str, np.ndarray]:
    names = [f"{part}_{what}" for part in ("train", "test") for what in ("inputs", "targets")]
    held = {name: _load(folder / f"{name}.npy") for name in names if (folder / f"{name}.npy").exists()}
    listed = folder / "classes.txt"
    if listed.exists():
        lines = (line.strip() for line in listed.read_text(encoding="utf-8").splitlines())
        held["classes"] = np.array([line for line in lines if line])
    return held


def _packed(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file) as held:
            return {name: held[name] for name in held.files}
    except Exception as error:  # a damaged archive fails in many ways
        raise ValueError(f"{path.absolute()} is no .npz file of plain arrays: {error}; write it with numpy.savez") from error


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="c")  # pages are read when they are touched; writing changes memory only
    except (ValueError, TypeError, OSError, EOFError) as error:
        raise ValueError(f"{path.absolute()} is no plain numeric array: {error}; write it with numpy.save") from error


def _tensor(path: Path, array: np.ndarray) -> Tensor:
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise ValueError(f"{path.absolute()} holds no plain numeric array: {error}; write numbers") from error
