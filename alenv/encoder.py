"""Features from outside the task model: encoders of stored inputs, computed once per task and kept."""

import functools
import hashlib
import json
import math
import os
import warnings
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, Num
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from alenv.arrays import Rows
from alenv.durable import beside
from alenv.gathered import Gathered
from alenv.model import TaskModel
from alenv.streams import Streams
from alenv.task import Augmentation
from alenv.task import blocks as parts_of
from alenv.trainer import Trainer

IN_MEMORY = 4  # how many arrays of features stay in memory: environments are reset to the same seeds again and again


@dataclass(frozen=True, eq=False)
class Unlabeled:
    """What an encoder may look at: a pool without labels.

    Attributes:
        inputs: (N, ...) as stored.
        positions: (N,) where each of them stands among the data set's training examples.
        total: how many of these there are.
        everything: all training examples of the data set, without labels, for frozen encoders.
        folder: where frozen encoders keep features; None keeps them in memory.
        mean: see `alenv.task.Source`.
        std: see `alenv.task.Source`.
        augmentation: what may be done to an input without changing its class, or None.
        net: makes an untrained net of the task's family (a companion of the task model).
        trainer: knows device, precision and threads.
        streams: randomness of the campaign.
    """

    inputs: Num[Tensor, "N ..."] | Gathered
    positions: Int[Tensor, " N"]
    total: int
    mean: Tensor
    std: Tensor
    augmentation: Augmentation | None
    net: Callable[[], TaskModel]
    trainer: Trainer
    streams: Streams
    everything: Any = None  # an `alenv.embedding.Shown`
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    @functools.cached_property
    def digest(self) -> str:
        """A hash of all that trained features depend on, the encoder apart: inputs, normalisation, net, seed, device."""
        with self.streams.scoped("encoder/net"):
            net = repr(self.net())
        facts = [str(self.inputs.dtype), list(self.inputs.shape), repr(self.augmentation), net, self.streams.seed]
        facts += [self.trainer.device.type, self.trainer.half(self.inputs)]
        digest = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16)
        for tensor in (*parts_of(self.inputs), self.mean, self.std):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


class Encoder(ABC):
    """Maps the stored inputs of a pool to features.

    The constructor keeps its parameters as attributes: they, and the class, tell two encoders apart.

    Attributes:
        costly: the features take training and are worth a file.
    """

    costly: ClassVar[bool] = True

    def check(self, pool: Unlabeled) -> None:  # noqa: B027 - most encoders take any pool
        """Raise ValueError, before a run starts, if `pool` cannot be encoded."""

    @abstractmethod
    def encode(self, pool: Unlabeled) -> Rows:
        """Return the features of `pool`, a function of (pool, parameters): all randomness comes from `pool.streams`."""

    def key(self, pool: Unlabeled) -> str:
        """Return a hash that only equal features share."""
        said = json.dumps([type(self).__module__, type(self).__qualname__, vars(self)], sort_keys=True, default=repr)
        return hashlib.blake2b(f"{said}\0{pool.digest}".encode(), digest_size=16).hexdigest()


class Providers:
    """Named encoders and what they computed. Two names of one encoder share its features.

    Args:
        encoders: by the name strategies ask for, as in `needs = {"features:<name>"}`.
        folder: where costly features are kept from run to run; None keeps them in memory only.
    """

    def __init__(self, encoders: Mapping[str, Encoder], folder: Path | None = None) -> None:
        self.encoders, self.folder = dict(encoders), folder
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def of(self, pool: Unlabeled) -> dict[str, Rows]:
        """Return the features of `pool` by name; each is computed when something first asks for it."""
        return {name: _Lazy(functools.partial(self._features, name, pool)) for name in self.encoders}

    def check(self, pool: Unlabeled) -> None:
        """Raise ValueError if an encoder cannot encode `pool`."""
        for encoder in self.encoders.values():
            encoder.check(pool)

    def _features(self, name: str, pool: Unlabeled) -> Rows:
        encoder = self.encoders[name]
        if not encoder.costly:
            return encoder.encode(pool)
        key = encoder.key(pool)
        if key not in self._kept:
            self._kept[key] = self._read(key, pool) if self._has(key) else self._made(encoder, key, pool)
            if len(self._kept) > IN_MEMORY:
                self._kept.popitem(last=False)
        return self._kept[key]

    def _has(self, key: str) -> bool:
        return self.folder is not None and _file(self.folder, key).exists()

    def _read(self, key: str, pool: Unlabeled) -> Tensor:
        assert self.folder is not None
        try:
            return load_file(_file(self.folder, key), device=str(pool.trainer.device))["features"]
        except (SafetensorError, KeyError, OSError) as error:
            where = _file(self.folder, key)
            raise ValueError(f"{where} is damaged ({error}); delete it to have the features computed again") from error

    def _made(self, encoder: Encoder, key: str, pool: Unlabeled) -> Tensor:
        made = encoder.encode(pool)
        values = checked(made[torch.arange(len(pool), device=pool.inputs.device)], type(encoder).__name__)
        if self.folder is not None:
            _keep(self.folder, key, values)
        return values


class _Lazy:
    """Features that are computed at the first look."""

    def __init__(self, compute: Callable[[], Rows]) -> None:
        self._compute = compute
        self._rows: Rows | None = None

    def __getitem__(self, indices: Tensor) -> Tensor:
        if self._rows is None:
            self._rows = self._compute()
        return self._rows[indices]


def checked(values: Float[Tensor, "k ..."], who: str) -> Float[Tensor, "k ..."]:
    """Return features; NaN or infinite ones raise ValueError."""
    bad = ~torch.isfinite(values.flatten(1)).all(1)
    if bool(bad.any()):
        raise ValueError(f"{who}: the features of {int(bad.sum())} of {len(bad)} examples are NaN or infinite; lower its lr")
    return values


def default_folder() -> Path:
    """Return where features are kept unless told otherwise: $ALENV_CACHE, else `alenv` in the user's cache folder."""
    if os.environ.get("ALENV_CACHE"):
        return Path(os.environ["ALENV_CACHE"])
    base = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "alenv"


def blocks(pool: Unlabeled, width: int = 1) -> tuple[Tensor, ...]:
    """Return the inputs in pieces as large as a forward pass over `width` copies of each may be."""
    return tuple(pool.inputs.split(max(1, pool.trainer.inference_batch // width)))


def steps_of(pool: Unlabeled, batch_size: int, epochs: int) -> tuple[int, int]:
    """Return batches per epoch and steps in all."""
    per_epoch = math.ceil(len(pool) / min(batch_size, len(pool)))
    return per_epoch, per_epoch * epochs


def _file(folder: Path, key: str) -> Path:
    return folder / "features" / f"{key}.safetensors"


def _keep(folder: Path, key: str, values: Tensor) -> None:
    """Write a file of features: whole or not at all, whoever else writes the same one. A full disk is no reason to stop."""
    path = _file(folder, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = beside(path)
        try:
            temporary.write_bytes(save({"features": values.cpu().contiguous()}))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(f"features are not kept: {path.parent}: {error.strerror}; set cache= to another folder", stacklevel=2)
