"""What an agent sees: numbers that mean the same on every data set and for every number of strategies."""

import functools
import math
from collections.abc import Sequence

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


def observe(campaigns: Sequence[Campaign], max_strategies: int) -> dict[str, Array]:
    """Return `campaign` (E, F), `strategies` (E, S_max x G) and `mask` (E, S_max): fresh float32 arrays in [-1, 1].

    Runs no strategy. A campaign's row does not depend on the others, bit by bit: sums are taken in the order of rounds and
    classes, and what pads them adds zeros.
    """
    sizes = np.array([len(campaign.strategies) for campaign in campaigns])
    mask = (np.arange(max_strategies) < sizes[:, None]).astype(np.float32)
    strategies = np.zeros((len(campaigns), max_strategies, len(STRATEGY_FEATURES)), np.float32)
    widest = int(sizes.max())
    strategies[:, :widest] = _clipped(_strategy_rows(campaigns, widest)) * mask[:, :widest, None]
    rows = _clipped(_campaign_rows(campaigns)).astype(np.float32)
    return {"campaign": rows, "strategies": strategies.reshape(len(campaigns), -1), "mask": mask}


def _campaign_rows(campaigns: Sequence[Campaign]) -> npt.NDArray[np.float64]:
    counts = np.zeros((len(campaigns), max(campaign.task.num_classes for campaign in campaigns)))
    for row, campaign in zip(counts, campaigns, strict=True):
        found = np.bincount(campaign.round.labels.cpu().numpy())
        row[: len(found)] = found
    shares = counts / np.maximum(_sums(counts), 1)
    spread = _sums(shares * np.log(np.where(shares > 0, shares, 1)))
    seen = np.count_nonzero(counts, 1)
    rows = zip(campaigns, (-spread[:, 0]).tolist(), seen.tolist(), strict=True)
    return np.array([_campaign_row(campaign, entropy, classes) for campaign, entropy, classes in rows])


def _campaign_row(campaign: Campaign, entropy: float, seen: int) -> list[float]:
    """Return the row of one campaign, given the entropy of its labelled classes in nats and how many there are."""
    records, plan, size = campaign.records, campaign.plan, len(campaign.pool)
    left, classes, last = len(campaign.round), campaign.task.num_classes, records[-1]
    scores = [r.validation for r in records if r.validation is not None] or [0.0]
    return [
        (last.bought - records[0].bought) / max(1, plan.batch * plan.rounds),
        last.labels / size,
        min(1.0, plan.batch / max(1, left)),
        math.log10(max(1, left)) / 7,
        math.log(classes) / math.log(1000),
        scores[-1],
        scores[-1] - scores[-2] if len(scores) > 1 else 0.0,
        (scores[-1] - scores[0]) / max(1, len(scores) - 1),
        last.reward or 0.0,
        entropy / math.log(max(2, classes)),
        1 - seen / classes,
        *campaign.round.certainty,
    ]


def _strategy_rows(campaigns: Sequence[Campaign], widest: int) -> npt.NDArray[np.float64]:
    """Return rows of features for the strategies of each campaign; those of campaigns with fewer are padded."""
    count, rounds = len(campaigns), max(1, *(len(campaign.records) - 1 for campaign in campaigns))
    rows = np.zeros((count, widest, len(STRATEGY_FEATURES)))
    weights, rewards, played = np.zeros((count, rounds, widest)), np.zeros((count, rounds)), np.zeros((count, 1), np.int64)
    for lane, campaign in enumerate(campaigns):
        rows[lane, : len(campaign.strategies)] = [
            _traits(isinstance(strategy, ScoreStrategy), strategy.needs) for strategy in campaign.strategies.values()
        ]
        if records := campaign.records[1:]:  # the last ones of as many as anybody has
            weights[lane, -len(records) :, : len(campaign.strategies)] = [r.action for r in records]
            rewards[lane, -len(records) :] = [r.reward or 0.0 for r in records]
            played[lane] = len(records)
    total, planned = _sums(weights, keepdims=False), np.array([[max(1, campaign.plan.rounds)] for campaign in campaigns])
    led = (weights >= np.maximum.reduce(weights, 2, keepdims=True) - 1e-9) & (np.arange(rounds, 0, -1) <= played)[:, :, None]
    since, ever = led[:, ::-1].argmax(1), np.logical_or.reduce(led, 1)  # rounds since it led, if it ever did
    rows[:, :, 5], rows[:, :, 6] = weights[:, -1], total / np.maximum(played, 1)
    rows[:, :, 7] = _sums(weights * rewards[:, :, None], keepdims=False) / np.maximum(total, 1e-12)
    rows[:, :, 8] = np.take_along_axis(rewards, rounds - 1 - since, 1) * ever
    rows[:, :, 9] = np.where(ever, since / planned, 1)
    return rows


def _sums(values: npt.NDArray[np.float64], keepdims: bool = True) -> npt.NDArray[np.float64]:
    """Return sums over the second axis, in its order."""
    sums = np.add.accumulate(values, 1)[:, -1]
    return sums[:, None] if keepdims else sums


def _clipped(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.minimum(np.maximum(values, -1), 1)  # np.clip takes five times as long on a few numbers


@functools.cache
def _traits(scores: bool, needs: frozenset[str]) -> list[float]:
    """Return a row for a strategy that has not been asked yet: its kind, and what later rounds fill in."""
    return [
        scores, not needs.isdisjoint(("probs", "logits")), "mc_probs" in needs,
        not needs.isdisjoint(("embeddings", "labeled_embeddings")), not needs.isdisjoint(("labels", "labeled_embeddings")),
        0, 0, 0, 0, 1,
    ]  # fmt: skip
