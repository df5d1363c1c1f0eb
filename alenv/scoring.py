"""Scores of many campaigns on data they share, from one product over all their heads."""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alenv.campaign import Campaign
from alenv.certainty import Beliefs, narrow_beliefs
from alenv.inference import Heads, Scores
from alenv.metrics import Judged, classification, classifications, judged
from alenv.model import TaskModel
from alenv.ops import NARROW
from alenv.problem import Problem
from alenv.task import Examples, Source, Task

COLUMNS = 512  # of one product: enough for full speed, few enough for its result to stay in cache
PIECE_ELEMENTS = 2**19  # logits looked at together: 2 MB, which with what is made of them stay in the last cache
KEPT_ELEMENTS = 2**25  # numbers of a data set whose features are kept: 128 MB of float32


class _Rows(NamedTuple):
    """Where a task's examples stand in its source; of validation and test those with a known label."""

    pool: Int[Tensor, " N"]
    validation: Int[Tensor, " v"]
    validation_targets: Int[Tensor, " v"]
    test: Int[Tensor, " e"]
    test_targets: Int[Tensor, " e"]
    leading: bool  # whether test rows are the first ones, in their order


class Scorer:
    """Scores linear heads on inputs: the features of a data set are computed once, and kept.

    Only bare ones: what others see may depend on seeds; they get None, and their campaigns evaluate them.
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
            if model.bare and not len(model.aux) and campaign.task.split is not None and _small(problem.source):
                key = (id(problem.source), id(problem.trainer), id(problem.net), model.num_outputs)
                alike.setdefault(key, []).append(place)
        found: list[Scores | None] = [None] * len(models)
        for (*_, classes), places in alike.items():
            lanes = max(1, COLUMNS // classes)
            for share in range(parts := -(-len(places) // lanes)):  # of like size
                some = places[share::parts]
                scores = self._score([models[p] for p in some], [campaigns[p] for p in some], problems[some[0]])
                for place, score in zip(some, scores, strict=True):
                    found[place] = score
        return found

    def _score(self, models: Sequence[TaskModel], campaigns: Sequence[Campaign], problem: Problem) -> Iterable[Scores]:
        source, groups = problem.source, [campaign.task.groups for campaign in campaigns]
        rows = [self._rows_of(campaign.task) for campaign in campaigns]
        logits, beliefs = _train_scores(self._seen(source.train, models[0], problem), models)
        pools = [functools.partial(_of_pool, mine, row.pool) for mine, row in zip(logits, rows, strict=True)]
        validation = _metrics(logits, [(row.validation, row.validation_targets) for row in rows], [{}] * len(rows))
        if not source.test:  # tests are cut from the training examples
            tested = _metrics(logits, [(row.test, row.test_targets) for row in rows], groups)
        else:
            tested = _test_metrics(self._seen(source.test, models[0], problem), models, rows, groups)
        return map(Scores, pools, validation, tested, _known(beliefs, rows, campaigns))

    def _seen(self, examples: Examples, model: TaskModel, problem: Problem) -> Tensor:
        if examples not in self._features:
            self._features[examples] = problem.trainer.features(model, examples.inputs.to(problem.trainer.device))
        return self._features[examples]

    def _rows_of(self, task: Task) -> _Rows:
        if task not in self._rows:
            split, device = task.split, task.inputs.device
            assert split is not None
            known = [part.targets >= 0 for part in (task.validation, task.test)]
            test = split.test.to(device)[known[1]]
            self._rows[task] = _Rows(
                split.pool.to(device), split.validation.to(device)[known[0]], task.validation.targets[known[0]],
                test, task.test.targets[known[1]], bool((test == torch.arange(len(test), device=device)).all()),
            )  # fmt: skip
        return self._rows[task]


def _train_scores(h: Float[Tensor, "n D"], models: Sequence[TaskModel]) -> tuple[Float[Tensor, "M C n"], Beliefs | None]:
    """Return the logits of all rows and, where classes are few, what models believe of them.

    What is made of a few rows' logits at once is made of what is in the cache.
    """
    heads, many = Heads(models), len(models)
    logits = h.new_empty(heads.size, len(h)).unflatten(0, (many, -1))
    table = h.new_empty(many, 4, len(h)) if logits.shape[1] < NARROW else None
    for rows in heads.pieces(h, PIECE_ELEMENTS):
        heads.logits(h[rows], out=logits[:, :, rows].flatten(0, 1))
        if table is not None:
            narrow_beliefs(logits[:, :, rows], out=table[:, :, rows])
    return logits, None if table is None else Beliefs(table)


def _of_pool(logits: Float[Tensor, "C n"], pool: Int[Tensor, " N"], indices: Int[Tensor, " u"]) -> Float[Tensor, "u C"]:
    """Return the logits of some pool indices, class by class in memory."""
    return logits.index_select(1, pool.index_select(0, indices)).T


def _known(beliefs: Beliefs | None, rows: Sequence[_Rows], campaigns: Sequence[Campaign]) -> list[dict[str, Any]]:
    """Return what follows for the candidates of each campaign: of as many candidates at once."""
    known: list[dict[str, Any]] = [{} for _ in rows]
    alike: dict[int, list[int]] = {}
    candidates = [campaign.pool.candidates for campaign in campaigns]
    for place, left in enumerate(candidates):
        if beliefs is not None and len(left):
            alike.setdefault(len(left), []).append(place)
    for places in alike.values():
        assert beliefs is not None
        some = beliefs.some(places, [rows[place].pool.index_select(0, candidates[place]) for place in places])
        certainties = some.certainties(campaigns[0].task.num_classes)
        for place, top_two, certainty in zip(places, some.top_two, certainties, strict=True):
            if not math.isnan(certainty.entropy):  # else the round says what is wrong
                known[place] = {"top_two": top_two, "certainty": certainty}
    return known


def _metrics(
    logits: Float[Tensor, "M C n"], parts: Sequence[tuple[Tensor, Tensor]], groups: Sequence[Mapping[str, Sequence[int]]]
) -> list[dict[str, float]]:
    """Return the metrics on (rows, targets) of each model, at once where sizes agree."""
    given = [(mine.index_select(1, rows), targets) for mine, (rows, targets) in zip(logits, parts, strict=True)]
    if len({len(targets) for _, targets in given}) == 1 and all(group == groups[0] for group in groups):
        columns, targets = (torch.stack(part) for part in zip(*given, strict=True))
        return classifications(columns.mT, targets, groups[0])
    return [classification(columns.T, targets, group) for (columns, targets), group in zip(given, groups, strict=True)]


def _test_metrics(
    h: Float[Tensor, "n D"], models: Sequence[TaskModel], rows: Sequence[_Rows], groups: Sequence[Mapping[str, Sequence[int]]]
) -> list[dict[str, float]]:
    """Return the metrics on the test rows of the same features: of logits no more is kept than metrics take."""
    whole = all(row.leading and len(row.test) == len(h) for row in rows)
    true = torch.stack([
        row.test_targets if whole else row.test.new_zeros(len(h)).index_copy_(0, row.test, row.test_targets) for row in rows
    ])  # fmt: skip
    heads = Heads(models)
    parts = ((heads.logits(h[some]).unflatten(0, (len(models), -1)), true[:, some]) for some in heads.pieces(h, PIECE_ELEMENTS))
    found = Judged.joined([judged(columns.mT, targets) for columns, targets in parts])
    if whole and all(group == groups[0] for group in groups):
        return found.metrics(true, models[0].num_outputs, groups[0])
    return [
        found.some(lane, row.test).metrics(row.test_targets.unsqueeze(0), models[0].num_outputs, group)[0]
        for lane, (row, group) in enumerate(zip(rows, groups, strict=True))
    ]


def _small(source: Source) -> bool:
    parts = (source.train,) if source.test is None else (source.train, source.test)
    return sum(part.inputs.numel() for part in parts) <= KEPT_ELEMENTS
