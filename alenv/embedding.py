"""Frozen encoders: features that are a function of one example, computed once, kept in files, read without loading them."""

import hashlib
import json
import warnings
import zlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from alenv.durable import beside
from alenv.encoder import Encoder, Unlabeled
from alenv.memory import in_blocks
from alenv.streams import Streams
from alenv.task import Examples, Source, blocks
from alenv.vision import imagenet_images

Reads = Literal["inputs", "images", "texts"]
READS = ("inputs", "images", "texts")
CHECKED_AT_ONCE = 2**24  # bytes


@dataclass(frozen=True, eq=False)
class Shown:
    """Examples without labels: what a frozen encoder may look at.

    Attributes:
        inputs: (n, ...) as stored.
        texts: n texts, or None.
        mean: see `alenv.task.Source`.
        std: see `alenv.task.Source`.
    """

    inputs: Num[Tensor, "n ..."]
    texts: Sequence[str] | None
    mean: Tensor
    std: Tensor

    def digest(self, reads: Reads) -> str:
        """Return a hash of what an encoder that reads texts, or inputs, sees of them."""
        found = hashlib.blake2b(digest_size=16)
        if reads == "texts":
            for text in self.texts or ():
                data = text.encode("utf-8", "surrogatepass")
                found.update(len(data).to_bytes(8, "little") + data)
            return found.hexdigest()
        found.update(f"{self.inputs.dtype} {list(self.inputs.shape)}".encode())
        for tensor in (*blocks(self.inputs), *(self.mean, self.std) * (reads == "inputs")):
            found.update(tensor.cpu().contiguous().numpy().data)
        return found.hexdigest()


class Frozen(Encoder):
    """An encoder that learns nothing from the data.

    As `features=` its rows serve strategies; as `embed=` they take the inputs' place, and any net is trained on them.

    Attributes:
        reads: "texts"; "images": floats (b, 3, side, side), resized and normalised as ImageNet's; "inputs": as the data set
            normalises them.
        side: of the images, in pixels.
        batch_size: examples per forward pass.
    """

    costly = False  # it keeps its features itself, whatever the seed draws from them
    reads: Reads
    side: int = 224
    batch_size: int = 64
    telling: ClassVar[Sequence[str]] = ()  # parameters that change nothing in the features

    @abstractmethod
    def weights_digest(self) -> str:
        """Return a hash of the weights."""

    @abstractmethod
    def load(self, device: torch.device) -> Callable[[Any], Tensor]:
        """Return what maps a batch (tensor, or list of texts) to (b, F) features, without noise."""

    def check(self, pool: Unlabeled) -> None:
        """Raise ValueError if the data set has not what the encoder reads."""
        self.suits(pool.everything)

    def suits(self, shown: Shown) -> None:
        """Raise ValueError if the encoder cannot read such examples."""
        name = type(self).__name__
        if self.reads == "texts" and shown.texts is None:
            raise ValueError(f"{name} encodes texts, and this data set has none; choose an encoder of images or inputs")
        if self.reads == "images" and (shown.inputs.dim() != 4 or shown.inputs.shape[1] not in (1, 3)):
            raise ValueError(
                f"{name} encodes images (1 or 3 channels, height, width), got inputs of shape {tuple(shown.inputs.shape[1:])}"
            )

    def encode(self, pool: Unlabeled) -> "Selected":
        """Return the rows of the pool's examples."""
        return Selected(embed(self, pool.everything, pool.trainer.device, pool.folder), pool.positions)

    def identity(self, shown: Shown) -> dict[str, Any]:
        """Return what decides the features: encoder, parameters, weights, data."""
        unimportant = {"batch_size", *self.telling}
        parameters = {key: value for key, value in vars(self).items() if not key.startswith("_") and key not in unimportant}
        return {
            "encoder": f"{type(self).__module__}.{type(self).__qualname__}",
            "parameters": json.loads(json.dumps(parameters, sort_keys=True, default=repr)),
            "weights": self.weights_digest(),
            "data": shown.digest(self.reads),
        }


class Given(Frozen):
    """Any module or function as a frozen encoder.

    Args:
        function: maps a batch to (b, F) features, as a tensor or array; a module is put in evaluation mode.
        reads: what the batch is, see `Frozen`.
        side: of images, in pixels.
        batch_size: examples per call.
    """

    def __init__(
        self, function: Callable[[Any], Any] | None = None, reads: Reads = "inputs", side: int = 224, batch_size: int = 64
    ) -> None:
        if reads not in READS:
            raise ValueError(f"expected reads=inputs, images or texts, got '{reads}'")
        self._function = function
        self.reads, self.side, self.batch_size = reads, side, batch_size

    def function(self) -> Callable[[Any], Any]:
        """Return the module or function."""
        assert self._function is not None
        return self._function

    def weights_digest(self) -> str:
        """Return a hash of a module's weights and buffers, and of a function's name."""
        function = self.function()
        if isinstance(function, nn.Module):
            return digest_of(function)
        return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"

    def load(self, device: torch.device) -> Callable[[Any], Tensor]:
        """Return the function, its results as float tensors."""
        function = self.function()
        if isinstance(function, nn.Module):
            function.to(device).eval().requires_grad_(False)
        return lambda batch: torch.as_tensor(function(batch))


class Selected:
    """Rows of features of a whole data set, by pool index."""

    def __init__(self, values: Float[Tensor, "n F"], positions: Int[Tensor, " N"]) -> None:
        self._values, self._positions = values, positions.to(values.device)

    def __getitem__(self, indices: Int[Tensor, " k"]) -> Float[Tensor, "k F"]:
        return self._values[self._positions[indices.to(self._values.device)]].to(indices.device)


def embedded(source: Source, encoder: Encoder, device: torch.device, folder: Path | None) -> Source:
    """Return `source` with the features of `encoder` for inputs.

    They are centred, and scaled by one number so that their mean square is 1, by the moments of the training examples.
    """
    if not isinstance(encoder, Frozen):
        raise ValueError(
            f"embed={type(encoder).__name__}: expected a frozen encoder (torchvision, transformers, module), got one that learns "
            "from the pool or reads a file of its training examples; use it with features=, or dataset=arrays"
        )

    def part(examples: Examples) -> Examples:
        shown = Shown(examples.inputs, examples.texts, source.mean, source.std)
        encoder.suits(shown)
        return replace(examples, inputs=embed(encoder, shown, device, folder))

    train = part(source.train)
    mean, scale = _moments(train.inputs)
    test = None if source.test is None else part(source.test)
    return replace(source, train=train, test=test, mean=mean, std=scale, augmentation=None, tokens=None)


def embed(encoder: Frozen, shown: Shown, device: torch.device, folder: Path | None = None) -> Float[Tensor, "n F"]:
    """Return the features of `shown`: from the file of an earlier call, mapped and checked, or computed now.

    Args:
        encoder: makes them.
        shown: examples.
        device: where the encoder runs; features stay in main memory.
        folder: where files are kept, in `embeddings`; None keeps them in memory.
    """
    if folder is None:
        return torch.from_numpy(_compute(encoder, shown, device, np.empty))
    identity = encoder.identity(shown)
    key = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).hexdigest()
    path = folder / "embeddings" / f"{key}.npy"
    if not (path.exists() and path.with_suffix(".json").exists()):
        try:
            _write(path, identity, lambda allocate: _compute(encoder, shown, device, allocate))
        except OSError as error:
            reason = error.strerror or error
            warnings.warn(f"embeddings are not kept: {path.parent}: {reason}; set cache= to another folder", stacklevel=2)
            return torch.from_numpy(_compute(encoder, shown, device, np.empty))
    return torch.from_numpy(_read(path))


def digest_of(module: nn.Module) -> str:
    """Return a hash of a module's weights and buffers, their names included."""
    found = hashlib.blake2b(digest_size=16)
    for name, value in module.state_dict().items():
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def digest_of_files(paths: Sequence[Path]) -> str:
    """Return a hash of the contents of files, their names included."""
    found = hashlib.blake2b(digest_size=16)
    for path in sorted(paths):
        found.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(CHECKED_AT_ONCE):
                found.update(block)
    return found.hexdigest()


Allocate = Callable[[tuple[int, int], Any], np.ndarray]


@torch.no_grad()
def _compute(encoder: Frozen, shown: Shown, device: torch.device, allocate: Allocate) -> np.ndarray:
    with Streams(0).scoped("encoder"):  # libraries that make weights before they read them
        function = encoder.load(device)
    order = _by_length(shown.texts) if encoder.reads == "texts" else torch.arange(len(shown.inputs))
    who = type(encoder).__name__

    def features(rows: slice) -> np.ndarray:
        values = function(_batch(encoder, shown, order[rows], device)).float().cpu()
        if values.dim() != 2 or len(values) != len(order[rows]):
            raise ValueError(f"{who}: expected features ({len(order[rows])}, F), got shape {tuple(values.shape)}")
        if not bool(values.isfinite().all()):
            raise ValueError(f"{who}: features are NaN or infinite; are these its weights, and its kind of inputs?")
        return values.numpy()

    made: np.ndarray | None = None
    for rows, values in in_blocks(features, len(order), encoder.batch_size, f"{who}: encoding"):
        made = allocate((len(order), values.shape[1]), np.float32) if made is None else made
        made[order[rows].numpy()] = values
    if made is None:
        raise ValueError(f"{who}: expected at least one example to encode, got none")
    return made


def _batch(encoder: Frozen, shown: Shown, rows: Tensor, device: torch.device) -> Any:
    if encoder.reads == "texts":
        assert shown.texts is not None
        return [shown.texts[i] for i in rows.tolist()]
    first, last = int(rows[0]), int(rows[-1])
    x = shown.inputs[first : last + 1].to(device)  # a mapped file is read from front to back
    if encoder.reads == "images":
        return imagenet_images(x, encoder.side)
    return (x.float() - shown.mean.to(device)) / shown.std.to(device)


def _by_length(texts: Sequence[str] | None) -> Tensor:
    """Return an order in which neighbours are of like length, so that little is filled up; long texts first."""
    return torch.tensor([len(text) for text in texts or ()]).sort(descending=True, stable=True).indices


def _moments(inputs: Tensor) -> tuple[Tensor, Tensor]:
    count = len(inputs)
    mean = sum((block.double().sum(0) for block in blocks(inputs)), torch.zeros(())) / count
    square = sum((((block - mean) ** 2).sum() for block in blocks(inputs)), torch.zeros(())) / inputs.numel()
    return mean.float(), square.sqrt().clamp(min=1e-12).float()


def _write(path: Path, identity: dict[str, Any], make: Callable[[Allocate], np.ndarray]) -> None:
    """Write a whole file or none, whoever else writes the same one; its checksum and what it holds lie beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    try:
        values = make(lambda shape, dtype: np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape))
        said = {**identity, "shape": list(values.shape), "checksum": _checksum(values)}
        assert isinstance(values, np.memmap)
        values.flush()
        temporary.replace(path)
        path.with_suffix(".json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> np.ndarray:
    try:
        values = np.load(path, mmap_mode="c")  # "c": a read-only array makes torch warn
        said = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        damaged = list(values.shape) != said["shape"] or _checksum(values) != said["checksum"]
    except (OSError, ValueError, KeyError, EOFError):
        damaged = True
    if damaged:
        raise ValueError(f"{path} is damaged; delete it to have the embeddings computed again")
    return values


def _checksum(values: np.ndarray) -> str:
    data, found = values.reshape(-1).view(np.uint8).data, 0
    for start in range(0, len(data), CHECKED_AT_ONCE):
        found = zlib.crc32(data[start : start + CHECKED_AT_ONCE], found)
    return f"crc32 {found:08x}"
