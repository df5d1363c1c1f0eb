"""Named randomness: every draw of a run comes from a generator addressed by (seed, name, round)."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


class Streams:
    """A stateless family of random generators.

    `streams(name, round)` returns a fresh `torch.Generator` seeded by a hash of (seed, name, round), so adding or reordering
    consumers shifts nobody's draws, and a resumed run needs no generator state.

    Args:
        seed: any integer; two families with one seed are equal.
        device: where the generators live (a generator must live where the tensor it fills lives).
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.seed = int(seed)
        self.device = torch.device(device)

    def key(self, name: str, round: int = 0) -> int:
        """Return the 63-bit seed of one stream."""
        digest = hashlib.blake2b(f"{self.seed}\0{name}\0{round}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1

    def __call__(self, name: str, round: int = 0) -> torch.Generator:
        """Return a fresh generator for `name` in `round`."""
        return torch.Generator(self.device).manual_seed(self.key(name, round))

    def on(self, device: torch.device | str) -> "Streams":
        """Return the same family with its generators on another device."""
        return Streams(self.seed, device)

    @contextmanager
    def scoped(self, name: str, round: int = 0) -> Iterator[None]:
        """Seed the global generators (python, numpy, torch) inside the block and restore them afterwards.

        Only for library code that knows no other randomness: weight initialisation, transformers, Stable-Baselines3.
        """
        with preserved(self.device):
            self.seed_globals(name, round)
            yield

    def seed_globals(self, name: str, round: int = 0) -> None:
        """Seed the global generators and leave them so; for many short draws inside one `preserved` block."""
        key = self.key(name, round)
        torch.default_generator.manual_seed(key)
        if self.device.type == "cuda":
            torch.cuda.manual_seed_all(key)
        random.seed(key)
        np.random.seed(key % 2**32)


@contextmanager
def preserved(device: torch.device | str = "cpu") -> Iterator[None]:
    """Restore the global generators (python, numpy, torch) after the block."""
    device = torch.device(device)
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
