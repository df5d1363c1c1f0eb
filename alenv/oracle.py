"""Who knows the labels: the only holder of hidden targets."""

import csv
import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alenv.durable import write_atomically
from alenv.metrics import auroc
from alenv.pool import HIDDEN, OUTSIDE
from alenv.streams import Streams
from alenv.task import Task

ABSTAIN_MARK = "?"


class AwaitingLabels(Exception):  # noqa: N818 - not an error: the campaign rests until a person has answered
    """Raised by an oracle that answers later; what it asked is on disk, and the same command continues."""


class Oracle(ABC):
    """Answers what the labels of pool items are.

    Args:
        unit_price: what one answer costs, in any unit (abstentions cost as much).
    """

    def __init__(self, unit_price: float = 1.0) -> None:
        self.unit_price = unit_price

    def begin(self, task: Task, streams: Streams, directory: Path | None = None) -> None:
        """Get ready for one campaign on `task`; `directory` is the run's, if there is one."""
        del task, streams, directory

    @abstractmethod
    def label(self, indices: Int[Tensor, " B"]) -> list[int | None]:
        """Return one class number per pool index, None where the oracle abstains, `pool.OUTSIDE` where no class fits."""

    def price(self, indices: Int[Tensor, " B"]) -> float:
        """Return what asking for `indices` costs."""
        return self.unit_price * len(indices)

    def received(self) -> None:  # noqa: B027 - most oracles do not care
        """Hear that the last answers are safe on disk."""


def charge(oracle: Any, indices: Int[Tensor, " B"]) -> float:
    """Return what `oracle` (an `Oracle`, or anything with `label`) asks for these answers; one each where it names no price."""
    price = getattr(oracle, "price", None)
    return float(len(indices) if price is None else price(indices))


class SimulatedOracle(Oracle):
    """Answers with the task's hidden targets."""

    def begin(self, task: Task, streams: Streams, directory: Path | None = None) -> None:
        """Take the hidden targets of `task`; every one of them must be known."""
        del streams, directory
        unknown = int((task.targets == -1).sum())
        if unknown:
            raise ValueError(
                f"{unknown} of {len(task)} pool examples have no label, so labelling cannot be simulated; "
                "use oracle=file to be asked for them"
            )
        self._targets = task.targets

    def label(self, indices: Int[Tensor, " B"]) -> list[int | None]:
        """Return the true class of each index."""
        return self._targets[indices].tolist()

    def purity_auroc(self, indices: Int[Tensor, " U"], purity: Float[Tensor, " U"]) -> float | None:
        """Return how well `purity` tells those of the task's classes from others (`alenv.metrics.auroc`); labels stay here."""
        return auroc(purity, self._targets[indices] != OUTSIDE)


class NoisyOracle(SimulatedOracle):
    """A simulated annotator who errs and abstains; the same item always gets the same answer.

    Args:
        rate: probability that an answer is another class, uniformly chosen.
        abstain: probability of no answer.
        unit_price: what one answer costs.
    """

    def __init__(self, rate: float = 0.1, abstain: float = 0.0, unit_price: float = 1.0) -> None:
        super().__init__(unit_price)
        if not (0 <= rate <= 1 and 0 <= abstain <= 1):
            raise ValueError(f"expected rate and abstain in [0, 1], got rate={rate}, abstain={abstain}")
        self.rate, self.abstain = rate, abstain

    def begin(self, task: Task, streams: Streams, directory: Path | None = None) -> None:
        """Draw, once, what this annotator will say of every item."""
        super().begin(task, streams, directory)
        generator = streams.on("cpu")("oracle")
        size, classes = len(task), task.num_classes
        wrong = torch.rand(size, generator=generator) < self.rate
        shift = torch.randint(1, classes, (size,), generator=generator)
        self._silent = torch.rand(size, generator=generator) < self.abstain
        targets = self._targets.cpu()
        self._answers = torch.where(wrong, (targets + shift) % classes, targets)

    def label(self, indices: Int[Tensor, " B"]) -> list[int | None]:
        """Return this annotator's answer for each index."""
        return [None if self._silent[i] else int(self._answers[i]) for i in indices.tolist()]


class FileOracle(Oracle):
    """A person who answers in a file.

    The first question writes `query.csv` (id, label; an image's path, a text) into the run directory and raises
    `AwaitingLabels`; asked again, it reads the answers: a class name or number; blank, or "?", for "no label". A file without
    any answer yet is not an answer.

    Labels that the data set holds are neither asked for nor charged; where it holds all of them there would be no question, so
    then all are asked: a rehearsal.
    """

    def begin(self, task: Task, streams: Streams, directory: Path | None = None) -> None:
        """Remember ids and class names; a run directory is needed."""
        del streams
        if directory is None:
            raise ValueError("oracle=file needs a run directory; use it with alenv.train, not inside a bare environment")
        self.path = directory / "query.csv"
        self._ids, self._classes, self._texts, self._folder = task.ids, task.classes, task.texts, task.folder
        hidden = task.targets == HIDDEN
        self._given = task.targets if bool(hidden.any()) else torch.full_like(task.targets, HIDDEN)

    def label(self, indices: Int[Tensor, " B"]) -> list[int | None]:
        """Return the answers in `query.csv`, or write the question there.

        Raises:
            AwaitingLabels: the question is written and has no answer yet.
            ValueError: the file does not fit the question or names no class of the task; the file is left as it is.
        """
        given = self._given[indices].tolist()
        wanted = [i for i, label in zip(indices.tolist(), given, strict=True) if label == HIDDEN]
        answers = iter(self._answers(wanted) if wanted else [])
        return [next(answers) if label == HIDDEN else label for label in given]

    def price(self, indices: Int[Tensor, " B"]) -> float:
        """Return what those of `indices` cost that a person has to look at."""
        return self.unit_price * int((self._given[indices] == HIDDEN).sum())

    def received(self) -> None:
        """Remove the answered question; until the ledger holds the answers it stays."""
        self.path.unlink(missing_ok=True)

    def _answers(self, wanted: Sequence[int]) -> list[int | None]:
        ids = [self._ids[i] for i in wanted]
        if not self.path.exists():
            self._ask(wanted)
            raise AwaitingLabels(
                f"{len(ids)} labels wanted: fill in the label column of {self.path} and run the same command again"
            )
        answers = self._read(ids)
        if not any(answers.values()):
            raise AwaitingLabels(
                f"{self.path} has no label yet: fill in its label column ({ABSTAIN_MARK} for 'cannot say') and run again"
            )
        return [self._class(answers[id_], id_) for id_ in ids]

    def _ask(self, indices: Sequence[int]) -> None:
        columns = {"id": [self._ids[i] for i in indices], "label": [""] * len(indices)}
        if self._folder is not None:
            columns["path"] = [str(self._folder / id_) for id_ in columns["id"]]
        if self._texts is not None:
            columns["text"] = [self._texts[i] for i in indices]
        rows = [columns, *zip(*columns.values(), strict=True)]
        write_atomically(self.path, "".join(",".join(map(_quoted, row)) + "\n" for row in rows))

    def _read(self, ids: Sequence[str]) -> dict[str, str]:
        try:
            with self.path.open(newline="", encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file))
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path} is not UTF-8 text; save it as 'CSV UTF-8' and run the same command again") from error
        if rows and not {"id", "label"} <= set(rows[0]):
            raise ValueError(f"{self.path}: expected the columns id,label, got {','.join(rows[0])}; restore the header line")
        exact = {id_.strip(): id_ for id_ in ids}  # spreadsheets trim cells
        answers = {exact.get((row["id"] or "").strip(), row["id"]): (row["label"] or "").strip() for row in rows}
        if set(answers) != set(ids) or len(rows) != len(ids):
            missing, extra = sorted(set(ids) - set(answers)), sorted(set(answers) - set(ids))
            raise ValueError(
                f"{self.path}: expected one row for each of the {len(ids)} ids asked for, got {len(rows)} rows "
                f"(missing {missing[:3]}, unknown {extra[:3]}); mend the id column, or delete the file to be asked afresh"
            )
        return answers

    def _class(self, answer: str, id_: str) -> int | None:
        if answer in ("", ABSTAIN_MARK):
            return None
        if answer in self._classes:
            return self._classes.index(answer)
        if answer.isdecimal() and int(answer) < len(self._classes):
            return int(answer)
        near = difflib.get_close_matches(answer, self._classes, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"the classes are {', '.join(self._classes[:12])}."
        raise ValueError(f"{self.path}: '{answer}' (id {id_}) is not a class; {hint} Correct it and run the same command again")


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\r\n') else text
