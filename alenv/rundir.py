"""The run directory: what a run leaves behind, and who may write there."""

import contextlib
import csv
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from alenv.durable import write_atomically

PASSING = ("fresh", "cache")  # options that do not change results; dataset.cache is another
OURS = (
    "config.yaml", "purchases.jsonl", "rounds.jsonl", "summary.json", "model.safetensors", "query.csv", "asked.json",
    "checkpoint",
)  # fmt: skip


def config_hash(config: Mapping[str, Any]) -> str:
    """Return 8 hex digits of a resolved configuration; options that do not change results are left out."""
    return hashlib.blake2b(json.dumps(_lasting(config), sort_keys=True, default=str).encode(), digest_size=4).hexdigest()


def drawn(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's configuration with the run's seed for a data set whose own is null: its points are drawn anew every run."""
    dataset = config.get("dataset")
    if isinstance(dataset, Mapping) and "seed" in dataset and dataset["seed"] is None and "seed" in config:
        return {**config, "dataset": {**dataset, "seed": config["seed"]}}
    return dict(config)


class RunDirectory:
    """One run's files, see the README for what each holds.

    Args:
        path: the folder; made if absent.
        config: the resolved configuration.
        fresh: remove what an earlier run left.

    Raises:
        ValueError: the folder cannot be written, or holds a run with another configuration.
    """

    def __init__(self, path: str | Path, config: Mapping[str, Any], fresh: bool = False) -> None:
        self.path = Path(path).absolute()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path).close()  # a name of its own: other processes may look at the same moment
        except OSError as error:
            raise ValueError(
                f"run directory {self.path} cannot be written ({error.strerror}); choose another with hydra.run.dir=..."
            ) from error
        self.config = {key: value for key, value in config.items() if key != "fresh"}
        self._fresh = fresh

    purchases = property(lambda self: self.path / "purchases.jsonl")
    rounds = property(lambda self: self.path / "rounds.jsonl")
    summary = property(lambda self: self.path / "summary.json")
    model = property(lambda self: self.path / "model.safetensors")

    @property
    def checkpoint(self) -> Path:
        """The latest complete state."""
        return self.path / "checkpoint" / "state.safetensors"

    def prepare(self) -> None:
        """Write `config.yaml`, or compare with the one that is there; call it under the lock."""
        if self._fresh:
            self._clear()
        file = self.path / "config.yaml"
        if file.exists():
            self._compare(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
        else:
            write_atomically(file, yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True))
        self.checkpoint.parent.mkdir(exist_ok=True)

    def forget(self) -> None:
        """Remove what `prepare` made, if nothing else is there: what could not begin leaves no folder that looks like a run."""
        made = {self.path / name for name in ("config.yaml", "rounds.jsonl", "checkpoint", "lock")}
        saved = (self.path / "rounds.jsonl").exists() and (self.path / "rounds.jsonl").stat().st_size > 0
        if saved or any(self.checkpoint.parent.glob("*")) or not set(self.path.iterdir()) <= made:
            return
        for name in ("config.yaml", "rounds.jsonl"):
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.checkpoint.parent.rmdir()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder: a second run in it is refused. A lock left by a killed process is taken over."""
        lock = self.path / "lock"
        handle = self._hold(lock)
        try:
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # Windows keeps a file that is open
                    lock.unlink(missing_ok=True)
        finally:
            os.close(handle)

    def _hold(self, lock: Path) -> int:
        while True:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT)
            if not _try_lock(handle):
                owner = os.read(handle, 200).decode(errors="replace").strip() or "another process"
                os.close(handle)
                raise ValueError(
                    f"{self.path} is in use by {owner}; wait for it, or choose another directory with hydra.run.dir=..."
                )
            if _names(lock, handle):
                return handle
            os.close(handle)  # its owner removed the file between our opening and locking it: what we hold is nobody's lock

    def _compare(self, before: Mapping[str, Any]) -> None:
        old, new = flat(_lasting(before)), flat(json.loads(json.dumps(_lasting(self.config), default=str)))
        changed = [
            f"{key}: {old.get(key)} -> {new.get(key)}" for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)
        ]
        if changed:
            shown = "; ".join(changed[:8])
            raise ValueError(
                f"{self.path} holds a run with another configuration ({shown}); "
                "choose another directory, or fresh=true to start over"
            )

    def _clear(self) -> None:
        answers = self.path / "query.csv"
        if answers.exists() and _answered(answers):
            raise ValueError(
                f"{answers} holds answers that fresh=true would delete; drop fresh=true to continue, or remove the file first"
            )
        for name in OURS:
            target = self.path / name
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)
        for events in self.path.glob("events.out.tfevents.*"):
            events.unlink()


def _answered(question: Path) -> bool:
    with question.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        return any((row.get("label") or "").strip() for row in csv.DictReader(file))


def _lasting(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides results."""
    kept = {key: value for key, value in config.items() if key not in PASSING}
    if isinstance(kept.get("dataset"), Mapping):
        kept["dataset"] = {key: value for key, value in kept["dataset"].items() if key != "cache"}
    return kept


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested configuration as one level, keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _names(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _try_lock(handle: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
