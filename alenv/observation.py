"""What an agent sees: numbers that mean the same on every data set and for every number of strategies."""

import functools
import math

import numpy as np
import numpy.typing as npt

from alenv.campaign import Campaign
from alenv.strategy import ScoreStrategy

CAMPAIGN_FEATURES = (
    "progress: purchases after the initial set over those planned, 0..1",
    "labelled share of the pool, 0..1",
    "batch over candidates left, 0..1",
    "log10 of the candidates left, over 7, 0..1",
    "log of the number of classes over log 1000, 0..1",
    "primary metric on validation, 0 without the split, 0..1",
    "its change in the last round, -1..1",
    "its mean change per round so far, -1..1",
    "reward of the last round, clipped, -1..1",
    "entropy of the labelled classes over log C, 0..1",
    "share of classes with no label yet, 0..1",
    "mean confidence of the candidates, 0..1",
    "standard deviation of that confidence, 0..1",
    "mean margin between the two likeliest classes, 0..1",
    "mean entropy over log C, 0..1",
    "entropy of the predicted class proportions over log C, 0..1",
)
STRATEGY_FEATURES = (
    "1 if it scores candidates one by one",
    "1 if it reads class probabilities",
    "1 if it reads stochastic outputs",
    "1 if it reads embeddings",
    "1 if it reads the labelled set",
    "its weight in the last round, 0..1",
    "its mean weight so far, 0..1",
    "mean reward of the rounds, weighted by its weight in them, clipped, -1..1",
    "reward of the last round in which its weight was the largest, clipped, -1..1",
    "rounds since then over the rounds planned, 1 if never, 0..1",
)

Array = npt.NDArray[np.float32]


def observe(campaign: Campaign, max_strategies: int) -> dict[str, Array]:
    """Return `campaign` (F,), `strategies` (S_max x G,) and `mask` (S_max,): fresh float32 arrays in [-1, 1].

    Runs no strategy.
    """
    strategies = np.zeros((max_strategies, len(STRATEGY_FEATURES)), np.float32)
    strategies[: len(campaign.strategies)] = _strategy_rows(campaign)
    mask = np.zeros(max_strategies, np.float32)
    mask[: len(campaign.strategies)] = 1
    return {"campaign": _campaign_row(campaign), "strategies": strategies.ravel(), "mask": mask}


def _campaign_row(campaign: Campaign) -> Array:
    records, plan, pool = campaign.records, campaign.plan, campaign.pool
    left, classes = len(campaign.round), campaign.task.num_classes
    scores = [r.validation for r in records if r.validation is not None] or [0.0]
    counts = np.bincount(campaign.round.labels.tolist(), minlength=classes)
    bought = records[-1].bought - records[0].bought
    row = [
        bought / max(1, plan.batch * plan.rounds),
        len(campaign.round.labels) / len(pool),
        min(1.0, plan.batch / max(1, left)),
        math.log10(max(1, left)) / 7,
        math.log(classes) / math.log(1000),
        scores[-1],
        scores[-1] - scores[-2] if len(scores) > 1 else 0.0,
        (scores[-1] - scores[0]) / max(1, len(scores) - 1),
        records[-1].reward or 0.0,
        _entropy(counts),
        1 - np.count_nonzero(counts) / classes,
        *campaign.round.certainty,
    ]
    return _clipped(np.array(row, np.float32))


def _strategy_rows(campaign: Campaign) -> Array:
    records = campaign.records[1:]
    rows = np.array(
        [_traits(isinstance(strategy, ScoreStrategy), strategy.needs) for strategy in campaign.strategies.values()], np.float32
    )
    if records:
        weights = np.array([r.action for r in records], np.float64)  # (rounds, S)
        rewards, total = np.array([r.reward or 0.0 for r in records]), np.add.reduce(weights, 0)
        rows[:, 5], rows[:, 6] = weights[-1], total / len(records)
        rows[:, 7] = rewards @ weights / np.maximum(total, 1e-12)
        led = weights >= np.maximum.reduce(weights, 1, keepdims=True) - 1e-9
        since, ever = led[::-1].argmax(0), np.logical_or.reduce(led, 0)  # rounds since it led, if it ever did
        rows[:, 8] = rewards[len(records) - 1 - since] * ever
        rows[:, 9] = np.where(ever, since / max(1, campaign.plan.rounds), 1)
    return _clipped(rows)


def _clipped(values: Array) -> Array:
    return np.minimum(np.maximum(values, -1), 1)  # np.clip takes five times as long on a few numbers


@functools.cache
def _traits(scores: bool, needs: frozenset[str]) -> list[float]:
    """Return a row for a strategy that has not been asked yet: its kind, and what later rounds fill in."""
    return [
        scores, not needs.isdisjoint(("probs", "logits")), "mc_probs" in needs,
        not needs.isdisjoint(("embeddings", "labeled_embeddings")), not needs.isdisjoint(("labels", "labeled_embeddings")),
        0, 0, 0, 0, 1,
    ]  # fmt: skip


def _entropy(counts: npt.NDArray[np.int64]) -> float:
    """Return the entropy of shares over log C."""
    share = counts[counts > 0] / max(1, np.add.reduce(counts))
    return -(share @ np.log(share)) / math.log(max(2, len(counts)))
