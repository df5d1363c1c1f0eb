"""Small things the tests share."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

torch.set_num_threads(1)  # tensors here are tiny: threads cost more than they give


@pytest.fixture(autouse=True)
def _global_randomness_is_left_alone() -> Iterator[None]:
    """Every test runs in a fork of torch's global generator and fails if library code moved it without a scope."""
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(before, torch.random.get_rng_state()), "something drew from torch's global generator; use Streams"


class Answer(NamedTuple):
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line on standard error."""
        lines = self.err.splitlines()
        assert len(lines) == 1, f"expected one line, got:\n{self.err}"
        return lines[0]


Command = Callable[..., Answer]


@pytest.fixture
def issue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Call a command's main function with words, standing in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(main: Callable[[], None], *words: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["alenv", *words])
        GlobalHydra.instance().clear()
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        assert isinstance(code, int)
        return Answer(code, *capfd.readouterr())

    yield run
    GlobalHydra.instance().clear()
