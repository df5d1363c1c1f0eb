"""What a comparison shows: areas, differences paired by seed, ranks, labels saved, each with how sure one may be.

Agarwal et al. (NeurIPS 2021) for interquartile means and probabilities of improvement, Demsar (JMLR 2006) and Benavoli, Corani &
Mangili (JMLR 2016) for ranks, Baram, El-Yaniv & Luz (JMLR 2004) for deficiency.
"""

import functools
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas

Numbers = npt.NDArray[np.float64]
Statistic = Callable[..., Any]
LEVEL = 0.95
RESAMPLES = 1999
FEW = 10  # runs


class Interval(NamedTuple):
    """A value and its 95 % interval; `low` and `high` are NaN where one run alone tells nothing."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 if the whole interval lies above or below 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def span(found: Interval, sign: str = "", digits: int = 2) -> str:
    """Return an interval in hundredths: "91.20 [90.87, 91.55]"."""
    value, low, high = (f"{100 * x + 0.0:{sign}.{digits}f}" for x in found)
    return value if np.isnan(found.low) else f"{value} [{low}, {high}]"


def interval(*samples: Numbers, statistic: Statistic | None = None, bounds: tuple[float, float] = (-np.inf, np.inf)) -> Interval:
    """Return a statistic with its bootstrap interval, bias-corrected and accelerated (Efron 1987; percentile where that fails).

    Below `FEW` runs a sample, resampling repeats a handful of values and its intervals are too narrow: there it is Student's t
    with the bootstrap's standard error, made unbiased.

    Args:
        samples: (n,) each, resampled apart from one another: the strata.
        statistic: `statistic(*samples, axis=-1)`; default: the mean of the samples' means.
        bounds: what it cannot leave.
    """
    import scipy.stats

    chosen = mean if statistic is None else statistic
    value, least = float(chosen(*samples, axis=-1)), min(len(s) for s in samples)
    if least < 2:
        return Interval(value, np.nan, np.nan)
    if all(np.ptp(s) == 0 for s in samples):
        return Interval(value, value, value)
    for method in ("BCa", "percentile") if least >= FEW else ("percentile",):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of degenerate resamples, which the second method bears
            found = scipy.stats.bootstrap(
                samples, chosen, vectorized=True, n_resamples=RESAMPLES, batch=200, confidence_level=LEVEL, method=method,
                rng=np.random.default_rng(0),
            )  # fmt: skip
        low, high = found.confidence_interval
        if np.isfinite([low, high]).all():
            break
    if least < FEW:
        freedom = sum(len(s) - 1 for s in samples)
        reach = float(scipy.stats.t.ppf((1 + LEVEL) / 2, freedom) * found.standard_error * np.sqrt(least / (least - 1)))
        return Interval(value, max(value - reach, bounds[0]), min(value + reach, bounds[1]))
    return Interval(value, float(low), float(high))


def mean(*samples: Numbers, axis: int = -1) -> Any:
    """Return the mean of the samples' means: every data set counts the same."""
    return sum(s.mean(axis) for s in samples) / len(samples)


def interquartile_mean(*samples: Numbers, axis: int = -1) -> Any:
    """Return the mean of the middle half of all samples together."""
    import scipy.stats

    lead = np.broadcast_shapes(*(s.shape[:-1] for s in samples))
    together = np.concatenate([np.broadcast_to(s, (*lead, s.shape[-1])) for s in samples], axis)
    return scipy.stats.trim_mean(together, 0.25, axis)


def labels_to_reach(bought: Numbers, values: Numbers, target: Any) -> Any:
    """Return how many labels each curve (..., m) needs to reach `target` for the first time, between points by straight lines."""
    best = np.maximum.accumulate(values, axis=-1)
    there = (best >= np.expand_dims(target, -1)).argmax(-1)
    before = np.maximum(there - 1, 0)
    high, low = (np.take_along_axis(best, np.expand_dims(i, -1), -1)[..., 0] for i in (there, before))
    share = np.where(high > low, (target - low) / np.where(high > low, high - low, 1), 1)
    return bought[before] + share * (bought[there] - bought[before])


def saved(bought: Numbers, ours: Numbers, theirs: Numbers) -> Any:
    """Return the share of labels that the first of two curves (..., m) saves at the highest accuracy that both reach.

    1 - n/m, where n and m labels take the first and the second curve there; negative if the first needs more.
    """
    target = np.minimum(ours.max(-1), theirs.max(-1))
    return 1 - labels_to_reach(bought, ours, target) / labels_to_reach(bought, theirs, target)


def deficiency(ours: Numbers, theirs: Numbers) -> float:
    """Return sum(end - ours) / sum(end - theirs), where `end` is the last value of `theirs`: below 1 is better than theirs.

    NaN where their curve is flat.
    """
    lost, base = float((theirs[-1] - ours).sum()), float((theirs[-1] - theirs).sum())
    return lost / base if base != 0 else float("nan")


def holm(pvalues: Sequence[float]) -> Numbers:
    """Return p-values adjusted for their number (Holm 1979)."""
    p = np.asarray(pvalues, dtype=float)
    order = p.argsort()
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = stepped.clip(max=1)
    return adjusted


def cliques(ranks: "pandas.Series[float]", pvalues: "pandas.DataFrame", alpha: float = 0.05) -> list[tuple[str, ...]]:
    """Return the largest runs of neighbours in rank of which no two differ: the bars of a critical-difference diagram."""
    names = list(ranks.sort_values(kind="stable").index)
    runs: list[tuple[str, ...]] = []
    for i in range(len(names)):
        j = i + 1
        while j < len(names) and all(pvalues.loc[other, names[j]] >= alpha for other in names[i:j]):
            j += 1
        if j - i > 1 and not (runs and names[j - 1] == runs[-1][-1]):
            runs.append(tuple(names[i:j]))
    return runs


class Verdict:
    """The statistics of one comparison.

    Policies are compared on the seeds that both have; tasks (data set and setting) count the same, whatever their seeds.
    Blocks of the rank tests are (task, seed): they speak of these data sets, not of others.

    Args:
        rounds: a row per round, see `alenv.grid.frame`.
        baseline: the policy that others are compared with; None for "uniform" where it is, else the first.

    Raises:
        ValueError: no such policy, no rows, or no test split to compare on.
    """

    def __init__(self, rounds: "pandas.DataFrame", baseline: str | None = None) -> None:
        if rounds.empty:
            raise ValueError("no finished run to compare")
        if rounds["value"].isna().any():
            bare = ", ".join(sorted(rounds.loc[rounds["value"].isna(), "task"].unique()))
            raise ValueError(f"runs on {bare} have no test metric; a comparison needs a data set with a test split")
        self.rounds = rounds
        self.tasks = list(dict.fromkeys(rounds["task"]))
        self.policies = list(dict.fromkeys(rounds["policy"]))
        self.baseline = baseline or ("uniform" if "uniform" in self.policies else self.policies[0])
        if self.baseline not in self.policies:
            raise ValueError(f"baseline '{self.baseline}' has no finished run; there are: {', '.join(self.policies)}")

    @functools.cached_property
    def areas(self) -> "pandas.DataFrame":
        """Area under the curve of the primary metric over labels: a row per (task, seed), a column per policy."""
        import pandas

        from alenv.record import area_under_curve

        groups = self.rounds.groupby(["task", "seed", "policy"], sort=False)
        found = {key: area_under_curve(list(part["bought"]), list(part["value"])) for key, part in groups}
        return pandas.Series(found).rename_axis(["task", "seed", "policy"]).unstack("policy")[self.policies]

    @functools.cached_property
    def seeds(self) -> int:
        """The fewest seeds a policy has on a task where it has any."""
        counts = self.areas.groupby("task").count().to_numpy()
        return int(counts[counts > 0].min())

    @functools.cached_property
    def curves(self) -> "dict[tuple[str, str], pandas.DataFrame]":
        """The primary metric by (task, policy): a row per seed, a column per number of labels that all runs of the task have."""
        found: dict[tuple[str, str], pandas.DataFrame] = {}
        for task, part in self.rounds.groupby("task", sort=False):
            tables = {p: t.pivot(index="seed", columns="bought", values="value") for p, t in part.groupby("policy", sort=False)}
            common = functools.reduce(lambda a, b: a.intersection(b), (t.dropna(axis=1).columns for t in tables.values()))
            found |= {(str(task), str(policy)): table[common] for policy, table in tables.items()}
        return found

    def band(self, task: str, policy: str) -> "tuple[pandas.Series[float], pandas.Series[float], pandas.Series[float]]":
        """Return the mean curve over labels and the 95 % interval of the mean (Student's t; the mean itself for one seed)."""
        import scipy.stats

        table = self.curves[task, policy]
        average, count = table.mean(), len(table)
        reach = scipy.stats.t.ppf((1 + LEVEL) / 2, count - 1) * table.std() / np.sqrt(count) if count > 1 else 0.0
        return average, average - reach, average + reach

    def area(self, policy: str, task: str | None = None) -> Interval:
        """Return the mean area of a policy, on one task or all."""
        return interval(*(self._areas(t, policy)[0] for t in self.common(policy, task=task)))

    def middle(self, policy: str, task: str | None = None) -> Interval:
        """Return the interquartile mean of a policy's areas."""
        return interval(*(self._areas(t, policy)[0] for t in self.common(policy, task=task)), statistic=interquartile_mean)

    @functools.lru_cache  # noqa: B019 - a verdict lives as long as its report
    def difference(self, ours: str, theirs: str, task: str | None = None) -> Interval:
        """Return the mean difference of areas, paired by seed."""
        if self.policies.index(ours) > self.policies.index(theirs):  # resamples are the same: the mirror image of
            value, low, high = self.difference(theirs, ours, task)
            return Interval(-value, -high, -low)
        pairs = [self._areas(t, ours, theirs) for t in self.common(ours, theirs, task=task)]
        return interval(*(a - b for a, b in pairs))

    def improvement(self, ours: str, theirs: str, task: str | None = None) -> Interval:
        """Return the share of (task, seed) in which the first policy has the larger area; ties count half."""
        pairs = [self._areas(t, ours, theirs) for t in self.common(ours, theirs, task=task)]
        return interval(*(np.sign(a - b) / 2 + 0.5 for a, b in pairs), bounds=(0, 1))

    @functools.lru_cache  # noqa: B019
    def saving(self, ours: str, theirs: str, task: str | None = None) -> Interval:
        """Return the share of labels saved at equal accuracy, on mean curves; seeds are what is resampled.

        On every task accuracy is what both mean curves reach, see `saved`; the mean over tasks.
        """
        tables = []
        for name in self.common(ours, theirs, task=task):
            a, b = self.curves[name, ours], self.curves[name, theirs]
            both = a.index.intersection(b.index)
            tables.append((a.columns.to_numpy(float), a.loc[both].to_numpy(float), b.loc[both].to_numpy(float)))

        def statistic(*rows: Numbers, axis: int = -1) -> Any:
            del axis  # the last
            shares = [
                saved(x, a[r.astype(int)].mean(-2), b[r.astype(int)].mean(-2)) for r, (x, a, b) in zip(rows, tables, strict=True)
            ]
            return sum(shares) / len(shares)

        return interval(*(np.arange(len(a), dtype=float) for _, a, _ in tables), statistic=statistic, bounds=(-np.inf, 1))

    def regret(self, policy: str, rivals: Sequence[str], task: str | None = None) -> Interval:
        """Return what the best of `rivals` in hindsight has more of mean area than the policy: a best one for every task.

        Seeds are what is resampled, and the best is found again every time. Below 0 the policy is better than all of them.
        """
        names = self.common(policy, *rivals, task=task)
        tables = [(ours, np.stack(theirs, 1)) for t in names for ours, *theirs in [self._areas(t, policy, *rivals)]]

        def statistic(*rows: Numbers, axis: int = -1) -> Any:
            del axis  # the last
            at = [row.astype(int) for row in rows]
            lost = [b[r].mean(-2).max(-1) - a[r].mean(-1) for r, (a, b) in zip(at, tables, strict=True)]
            return sum(lost) / len(lost)

        return interval(*(np.arange(len(a), dtype=float) for a, _ in tables), statistic=statistic)

    def deficiency(self, policy: str, task: str | None = None) -> float:
        """Return the mean over tasks of a policy's deficiency against the baseline, on mean curves."""
        both = self.common(policy, self.baseline, task=task)
        return float(np.mean([deficiency(*(self.curves[t, p].mean().to_numpy() for p in (policy, self.baseline))) for t in both]))

    def seconds(self, policy: str, task: str | None = None) -> float:
        """Return the median seconds a run spends on selecting (strategies and selector)."""
        rows = self.rounds[(self.rounds["policy"] == policy) & (self.rounds["task"].isin(self.common(policy, task=task)))]
        spent = (rows["seconds/select"] + rows["seconds/act"]).groupby([rows["task"], rows["seed"]]).sum()
        return float(spent.median())

    def runs(self, policy: str, task: str | None = None) -> int:
        """Return how many runs of a policy there are."""
        return sum(len(self._areas(t, policy)[0]) for t in self.common(policy, task=task))

    def metric(self, task: str) -> str:
        """Return what is compared on a task."""
        return str(self.rounds.loc[self.rounds["task"] == task, "metric"].iloc[0])

    @functools.cached_property
    def ranks(self) -> "pandas.Series[float]":
        """Mean ranks within (task, seed), 1 for the largest area, ties shared; the mean over tasks. Blocks with gaps are out."""
        return self.areas.dropna().rank(axis=1, ascending=False).groupby("task").mean().mean()

    @property
    def ranking(self) -> list[str]:
        """The policies, best mean rank first; those that share no block with all the others last."""
        return [*self.ranks.sort_values(kind="stable").index]

    @functools.cached_property
    def friedman(self) -> float:
        """The p-value of Friedman's test that all policies are alike; NaN below three policies or two blocks."""
        import scipy.stats

        blocks = self.areas.dropna().to_numpy()
        if blocks.shape[1] < 3 or len(blocks) < 2 or (np.ptp(blocks, axis=1) == 0).all():
            return float("nan")
        return float(scipy.stats.friedmanchisquare(*blocks.T).pvalue)

    @functools.cached_property
    def wilcoxon(self) -> "pandas.DataFrame":
        """p-values of Wilcoxon's signed-rank test (zeros by Pratt) between all pairs, adjusted by Holm."""
        import pandas

        pairs = list(itertools.combinations(self.policies, 2))
        adjusted = holm([_signed_rank(self.areas[a] - self.areas[b]) for a, b in pairs])
        table = pandas.DataFrame(1.0, index=self.policies, columns=self.policies)
        for (a, b), p in zip(pairs, adjusted, strict=True):
            table.loc[a, b] = table.loc[b, a] = p
        return table

    @functools.cached_property
    def cliques(self) -> list[tuple[str, ...]]:
        """Policies that ranks cannot tell apart, see `cliques`; all of them if Friedman's test finds nothing."""
        if self.friedman >= 1 - LEVEL:
            return [tuple(self.ranking)]
        return cliques(self.ranks, self.wilcoxon)

    def wins(self, ours: str, theirs: str) -> tuple[int, int, int]:
        """Return on how many tasks the first policy wins, ties and loses: by the interval of the paired difference."""
        signs = [self.difference(ours, theirs, task).sign for task in self.common(ours, theirs)]
        return signs.count(1), signs.count(0), signs.count(-1)

    @property
    def title(self) -> str:
        """What was compared, in one line."""
        what = ", ".join(self.tasks) if len(self.tasks) <= 4 else f"{len(self.tasks)} data sets"
        test = "" if np.isnan(self.friedman) else f"; Friedman's p = {self.friedman:.2g}"
        return f"{what}; {self.seeds} seed{'s' * (self.seeds != 1)}; means with 95 % intervals{test}"

    def sentence(self, policy: str) -> str:
        """Return what one may say of a policy, in plain words."""
        if self.seeds < 2:
            return f"area {self.area(policy).value:.4f}; one seed, so nothing can be said of differences"
        others = [p for p in self.policies if p not in (policy, self.baseline) and self.common(policy, p)]
        alike = [p for p in others if self.difference(policy, p).sign == 0]
        parts = [f"the baseline, area {self.area(policy).value:.4f}" if policy == self.baseline else self._saving(policy)]
        return "; ".join([*parts, f"not distinguishable from {_listed(alike)}"] if alike else parts)

    def _saving(self, policy: str) -> str:
        if not self.common(policy, self.baseline):
            return f"no task in common with {self.baseline}"
        found, area = self.saving(policy, self.baseline), self.difference(policy, self.baseline)
        span = f"95 % interval {100 * found.low:.0f} to {100 * found.high:.0f} %"
        if found.sign == 0:
            how = {0: "not distinguishable from", 1: "larger area than", -1: "smaller area than"}[area.sign]
            return f"{how} {self.baseline} (labels saved: {100 * found.value:.0f} %, {span})"
        how = {0: "not distinguishable from", 1: "larger than", -1: "smaller than"}[area.sign]
        but = "" if area.sign == found.sign else f", but its area is {how} that of {self.baseline}"
        if found.sign > 0:
            return f"saves {100 * found.value:.0f} % of the labels against {self.baseline}, {span}{but}"
        span = f"95 % interval {-100 * found.high:.0f} to {-100 * found.low:.0f} %"
        return f"needs {-100 * found.value:.0f} % more labels than {self.baseline}, {span}{but}"

    def _areas(self, task: str, *policies: str) -> tuple[Numbers, ...]:
        """Return the areas of policies on a task, on the seeds that all of them have."""
        columns = [self._by_task[task][policy] for policy in policies]
        there = ~np.isnan(columns).any(0)
        return tuple(column[there] for column in columns)

    @functools.cached_property
    def _by_task(self) -> dict[str, dict[str, Numbers]]:
        """The areas by task and policy, in the order of the task's seeds."""
        tables = {str(task): part for task, part in self.areas.groupby("task", sort=False)}
        return {task: {str(policy): part[policy].to_numpy(float) for policy in part} for task, part in tables.items()}

    def common(self, *policies: str, task: str | None = None) -> list[str]:
        """Return the tasks (or the one) on which all the policies have a seed in common."""
        return [t for t in self.tasks if task in (None, t) and len(self._areas(t, *policies)[0])]


def _signed_rank(differences: "pandas.Series[float]") -> float:
    import scipy.stats

    known = differences.dropna().to_numpy(float)
    if not (known != 0).any():
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few blocks: the p-value is large then anyway
        return float(scipy.stats.wilcoxon(known, zero_method="pratt").pvalue)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
