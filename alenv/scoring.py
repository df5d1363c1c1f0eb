"""Scores of many campaigns on data they share, from one product over all their heads."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alenv.campaign import Campaign
from alenv.inference import Scores, wide_logits
from alenv.metrics import classifications
from alenv.model import TaskModel
from alenv.problem import Problem
from alenv.task import Examples, Source, Task

COLUMNS = 128  # of one product: enough for full speed, few enough for its result to stay in cache
KEPT_ELEMENTS = 2**25  # numbers of a data set whose features are kept: 128 MB of float32


class _Rows(NamedTuple):
    """Where a task's examples stand in its source; of validation and test those with a known label."""

    pool: Int[Tensor, " N"]
    validation: Int[Tensor, " v"]
    validation_targets: Int[Tensor, " v"]
    test: Int[Tensor, " e"]
    test_targets: Int[Tensor, " e"]


class Scorer:
    """Scores linear heads on inputs: the features of a data set are computed once, and kept.

    Nets with a body of their own share nothing; they get None, and their campaigns evaluate them.
    """

    def __init__(self) -> None:
        self._features: WeakKeyDictionary[Examples, Tensor] = WeakKeyDictionary()
        self._rows: WeakKeyDictionary[Task, _Rows] = WeakKeyDictionary()

    def __call__(
        self, models: Sequence[TaskModel], campaigns: Sequence[Campaign], problems: Sequence[Problem]
    ) -> list[Scores | None]:
        """Return the scores of each model on its campaign's task."""
        alike: dict[tuple[int, ...], list[int]] = {}
        for place, (model, campaign, problem) in enumerate(zip(models, campaigns, problems, strict=True)):
            if _shares(model) and campaign.task.split is not None and _small(problem.source):
                key = (id(problem.source), id(problem.trainer), id(problem.net), model.num_outputs)
                alike.setdefault(key, []).append(place)
        found: list[Scores | None] = [None] * len(models)
        for (*_, classes), places in alike.items():
            lanes = max(1, COLUMNS // classes)
            for start in range(0, len(places), lanes):
                some = places[start : start + lanes]
                scores = self._score([models[p] for p in some], [campaigns[p].task for p in some], problems[some[0]])
                for place, score in zip(some, scores, strict=True):
                    found[place] = score
        return found

    def _score(self, models: Sequence[TaskModel], tasks: Sequence[Task], problem: Problem) -> Iterable[Scores]:
        rows = [self._rows_of(task) for task in tasks]
        train = wide_logits(self._seen(problem.source.train, models[0], problem), models)
        held = problem.source.test
        test = train if held is None else wide_logits(self._seen(held, models[0], problem), models)
        pools = [_rows(logits, row.pool) for logits, row in zip(train, rows, strict=True)]
        held_out = [(_rows(logits, row.validation), row.validation_targets) for logits, row in zip(train, rows, strict=True)]
        tested = [(_rows(logits, row.test), row.test_targets) for logits, row in zip(test, rows, strict=True)]
        return map(Scores, pools, _metrics(held_out, [{}] * len(rows)), _metrics(tested, [task.groups for task in tasks]))

    def _seen(self, examples: Examples, model: TaskModel, problem: Problem) -> Tensor:
        if examples not in self._features:
            self._features[examples] = problem.trainer.features(model, examples.inputs.to(problem.trainer.device))
        return self._features[examples]

    def _rows_of(self, task: Task) -> _Rows:
        if task not in self._rows:
            split, device = task.split, task.inputs.device
            assert split is not None
            known = [part.targets >= 0 for part in (task.validation, task.test)]
            self._rows[task] = _Rows(
                split.pool.to(device), split.validation.to(device)[known[0]], task.validation.targets[known[0]],
                split.test.to(device)[known[1]], task.test.targets[known[1]],
            )  # fmt: skip
        return self._rows[task]


def _rows(logits: Float[Tensor, "n C"], rows: Int[Tensor, " r"]) -> Float[Tensor, "r C"]:
    """Return some rows of what lies in memory class by class, likewise."""
    return logits.T.index_select(1, rows).T


def _metrics(given: Sequence[tuple[Tensor, Tensor]], groups: Sequence[Mapping[str, Sequence[int]]]) -> list[dict[str, float]]:
    """Return the metrics of (logits, targets), at once where sizes agree."""
    if len({len(targets) for _, targets in given}) == 1 and all(group == groups[0] for group in groups):
        return classifications(torch.stack([logits.T for logits, _ in given]).mT, torch.stack([t for _, t in given]), groups[0])
    pairs = zip(given, groups, strict=True)
    return [classifications(logits.unsqueeze(0), targets.unsqueeze(0), group)[0] for (logits, targets), group in pairs]


def _shares(model: TaskModel) -> bool:
    """Whether what the head sees depends on the input alone: there is nothing in the body that seeds could make differ."""
    return model.solver == "lbfgs" and not model.aux and not any(True for _ in (*model.body.parameters(), *model.body.buffers()))


def _small(source: Source) -> bool:
    parts = (source.train,) if source.test is None else (source.train, source.test)
    return sum(part.inputs.numel() for part in parts) <= KEPT_ELEMENTS
