"""A training that takes long shows a bar, to somebody who watches a terminal."""

import io

import pytest
import torch

from alenv import memory
from alenv.job import Job
from alenv.memory import counted
from alenv.nets.small_cnn import small_cnn
from alenv.streams import Streams
from alenv.trainer import Trainer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def watched(monkeypatch: pytest.MonkeyPatch, after: float = 0.0) -> Terminal:
    """Put a terminal in the place of standard error (no fixture: pytest would put its own back before the test begins)."""
    made = Terminal()
    monkeypatch.setattr("sys.stderr", made)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(memory, "SILENT_SECONDS", after)
    return made


def fit() -> None:
    images = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8, generator=Streams(0)("images"))
    job = Job(lambda: small_cnn((1, 8, 8), 2, 128.0, 64.0), images, torch.arange(8) % 2, Streams(0))
    Trainer(device="cpu", epochs=3, min_steps=1).fit(job)


def test_a_long_training_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watched(monkeypatch)
    fit()
    assert "training" in terminal.getvalue()


def test_a_short_one_shows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watched(monkeypatch, after=60.0)
    fit()
    assert terminal.getvalue() == ""


def test_a_file_gets_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    watched(monkeypatch)
    said = io.StringIO()
    monkeypatch.setattr("sys.stderr", said)
    fit()
    assert said.getvalue() == ""


def test_steps_come_as_they_are_and_the_bar_goes_when_the_work_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watched(monkeypatch)
    assert list(counted(range(5), "counting")) == [0, 1, 2, 3, 4]
    steps = counted("abcde", "reading")
    assert [next(steps), next(steps)] == ["a", "b"]
    assert "reading" in terminal.getvalue()
    steps.close()  # as when the work raises
    assert "\x1b[?25h" in terminal.getvalue(), "the cursor is shown again"
