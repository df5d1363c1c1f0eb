"""What an action was worth: rewards, each declaring what it reads."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alenv.record import area_under_curve

Access = Literal["validation", "pool", "purchases", "test"]


@dataclass
class Trace:
    """What a reward may look at; `test` is empty, and what was bought is None, unless the reward declares that it reads it.

    Attributes:
        validation: primary metric on the validation split after each round so far, round 0 first; empty without the split.
        bought: purchases after each of these rounds.
        horizon: purchases the whole campaign will make, the initial set not counted.
        pool_size: candidates at the start of round 1.
        done: whether the campaign is over.
        predictions: computes (U,) classes the new model predicts for the candidates left.
        previous_predictions: computes the same of the model and the candidates before.
        correct: computes (n,) whether the new model is right on every usable purchase since round 1, in order of purchase.
        propensity: (n,) of the same purchases.
        num_classes: C.
        labels: (b,) usable labels bought in the round.
        batch: purchases of the round, unusable ones included.
        class_counts: (C,) labelled examples of each class before the round.
        test: primary metric on the test split, like `validation`; only for rewards with access to it.
    """

    validation: list[float] = field(default_factory=list)
    bought: list[int] = field(default_factory=list)
    horizon: int = 0
    pool_size: int = 0
    done: bool = False
    predictions: Callable[[], Int[Tensor, " U"]] | None = None
    previous_predictions: Callable[[], Int[Tensor, " U"]] | None = None
    correct: Callable[[], Bool[Tensor, " n"]] | None = None
    propensity: Float[Tensor, " n"] | None = None
    num_classes: int = 2
    labels: Int[Tensor, " b"] | None = None
    batch: int = 0
    class_counts: Int[Tensor, " C"] | None = None
    test: list[float] = field(default_factory=list)


class Reward(ABC):
    """A reward: one number per round.

    Attributes:
        access: which labels it reads: "validation", "pool" (predictions only, no labels), "purchases" (what was bought) or
            "test" (oracles only: refused to every other selector).
        low: smallest value it can take.
        high: largest value it can take.
    """

    access: ClassVar[Access]
    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    @abstractmethod
    def __call__(self, trace: Trace) -> float:
        """Return the reward of the round that ended the trace."""


class Gain(Reward):
    """Change of the primary metric on the validation split."""

    access = "validation"
    low = -1.0

    def __call__(self, trace: Trace) -> float:
        """Return the last difference."""
        return trace.validation[-1] - trace.validation[-2]


class Level(Reward):
    """Primary metric on the validation split; grows whatever was chosen, so a poor learning signal on its own."""

    access = "validation"

    def __call__(self, trace: Trace) -> float:
        """Return the last value."""
        return trace.validation[-1]


class NormalizedGain(Reward):
    """Gain scaled to [0, 1] by the smallest and largest gain of the campaign so far; 1/2 while these are equal."""

    access = "validation"

    def __call__(self, trace: Trace) -> float:
        """Return where the last gain stands between the extremes."""
        gains = [b - a for a, b in zip(trace.validation, trace.validation[1:], strict=False)]
        low, high = min(gains), max(gains)
        return 0.5 if high - low < 1e-12 else (gains[-1] - low) / (high - low)


class TerminalArea(Reward):
    """0 until the campaign ends, then the area under its curve (primary metric on validation over purchases)."""

    access = "validation"

    def __call__(self, trace: Trace) -> float:
        """Return the area, at the end."""
        return area_under_curve(trace.bought, trace.validation) if trace.done else 0.0


class MinusOneUntilTarget(Reward):
    """-1 for every round begun below a target accuracy on validation, else 0 (LAL-RL: Konyushkova, Sznitman & Fua 2018).

    The sum over a campaign is minus the number of rounds it took. With `stop.accuracy` equal to the target, the campaign ends
    there. The paper's target is 98 % of the accuracy on all labels, which only a simulation knows.

    Args:
        target: value of the primary metric.
    """

    access = "validation"
    low = -1.0
    high = 0.0

    def __init__(self, target: float = 0.9) -> None:
        if not 0 < target <= 1:
            raise ValueError(f"reward minus_one_until_target: expected a target in (0, 1], got {target}")
        self.target = target

    def __call__(self, trace: Trace) -> float:
        """Return -1 if no earlier round had reached the target."""
        return 0.0 if max(trace.validation[:-1]) >= self.target else -1.0


class ClassBalance(Reward):
    """TAILOR's reward (Zhang et al., NeurIPS 2023): mean over the round's purchases of v_y, y the class a label turned out as.

    v_c = 1 / max(1, N_c), with N_c labelled examples of class c before the round, negative where the class holds more than half
    of all labels. A purchase without a usable label is worth 0.
    """

    access = "purchases"
    low = -1.0

    def __call__(self, trace: Trace) -> float:
        """Return the mean."""
        assert trace.labels is not None
        assert trace.class_counts is not None
        return float(class_values(trace.class_counts)[trace.labels].sum()) / max(1, trace.batch)


def class_values(counts: Int[Tensor, " C"]) -> Float[Tensor, " C"]:
    """Return what one more label of each class is worth to TAILOR: 1 / max(1, N_c), negative beyond half of all labels."""
    values = 1 / counts.clamp(min=1).double()
    return torch.where(2 * counts > counts.sum(), -values, values)


class OracleGain(Reward):
    """Change of the primary metric on the test split: the reward of CDALBench's environment, for oracles in simulation only."""

    access = "test"
    low = -1.0

    def __call__(self, trace: Trace) -> float:
        """Return the last difference."""
        return trace.test[-1] - trace.test[-2]


class EntropyGain(Reward):
    """Classification-entropy maximisation (Baram, El-Yaniv & Luz 2004): growth of the entropy of predicted class proportions.

    With H in units of log C: ((e^H_t - e^H_{t-1}) - (1 - e)) / (2e - 2), in [0, 1]. Reads no label; misleads where classes are
    unbalanced.
    """

    access = "pool"

    def __call__(self, trace: Trace) -> float:
        """Return the scaled change of e^H."""
        assert trace.predictions is not None
        assert trace.previous_predictions is not None
        new, old = (self._entropy(p, trace.num_classes) for p in (trace.predictions(), trace.previous_predictions()))
        return (math.exp(new) - math.exp(old) - (1 - math.e)) / (2 * math.e - 2)

    @staticmethod
    def _entropy(predictions: Tensor, num_classes: int) -> float:
        share = torch.bincount(predictions, minlength=num_classes).double() / max(1, len(predictions))
        return float(torch.special.entr(share).sum()) / math.log(num_classes)


class ImportanceWeightedAccuracy(Reward):
    """ALBL's reward (Hsu & Lin 2015): 1/(n T) sum over purchases of [prediction is right] / propensity.

    n is the pool at the start and T the purchases of the whole campaign, so early values are small: a level, not a gain. It
    estimates pool accuracy at t = T if every sample had a chance; without lots (propensity 1) it is a plain count.
    """

    access = "purchases"
    high = math.inf

    def __call__(self, trace: Trace) -> float:
        """Return the estimate."""
        assert trace.correct is not None
        assert trace.propensity is not None
        weighted = (trace.correct().double() / trace.propensity.double()).sum()
        return float(weighted) / (trace.pool_size * max(1, trace.horizon))


def fallback(reward: Reward, has_validation: bool, stochastic: bool) -> tuple[Reward, str]:
    """Return a reward that can be computed, and a sentence if it is not the one asked for.

    Without a validation split: importance-weighted accuracy where purchases are drawn by lot, else the entropy reward.
    """
    if has_validation or reward.access != "validation":
        return reward, ""
    other: Reward = ImportanceWeightedAccuracy() if stochastic else EntropyGain()
    return other, f"no validation split: the reward is {type(other).__name__} instead of {type(reward).__name__}"
