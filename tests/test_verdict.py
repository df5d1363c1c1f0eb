"""The statistics of a comparison, by hand and against scipy."""

import itertools
from typing import Any

import numpy as np
import pandas
import pytest
import scipy.stats

from alenv.verdict import (
    FEW,
    Interval,
    Verdict,
    cliques,
    deficiency,
    holm,
    interquartile_mean,
    interval,
    labels_to_reach,
    mean,
    saved,
    span,
)

BOUGHT = (10, 20, 30, 40)


def rounds(curves: dict[tuple[str, str, int], Any], bought: tuple[int, ...] = BOUGHT) -> pandas.DataFrame:
    """Return the rounds of runs given as (task, policy, seed) -> values."""
    rows = [
        {
            "task": task, "policy": policy, "seed": seed, "round": i, "bought": b, "value": v, "metric": "accuracy",
            "seconds/select": 0.5, "seconds/act": 0.25,
        }
        for (task, policy, seed), values in curves.items()
        for i, (b, v) in enumerate(zip(bought, values, strict=False))
    ]  # fmt: skip
    return pandas.DataFrame(rows)


def constant(levels: dict[str, Any], task: str = "a") -> dict[tuple[str, str, int], Any]:
    """Return flat curves: policy -> a level per seed."""
    return {(task, policy, seed): [level] * 4 for policy, values in levels.items() for seed, level in enumerate(values)}


@pytest.fixture(scope="module")
def noisy() -> Verdict:
    """Twelve seeds: `good` is 5 points above `uniform`, `same` is uniform with other noise."""
    generator = np.random.default_rng(0)
    curves = {}
    for seed in range(12):
        shared = generator.normal(0, 0.02)
        for policy, gain in (("uniform", 0.0), ("good", 0.05), ("same", 0.0)):
            curve = np.array([0.5, 0.6, 0.65, 0.68]) + gain * np.array([0, 1, 1, 1])
            curves["a", policy, seed] = curve + shared + generator.normal(0, 0.005, 4)
    return Verdict(rounds(curves))


def test_an_area_is_the_trapezoid_over_labels_divided_by_their_range() -> None:
    verdict = Verdict(rounds({("a", "uniform", 0): [0.2, 0.4, 0.4, 0.8]}))
    assert verdict.areas.loc[("a", 0), "uniform"] == pytest.approx((0.3 + 0.4 + 0.6) / 3)


def test_an_interval_is_scipys_bca_over_ten_runs_and_more() -> None:
    values = np.random.default_rng(1).gamma(2, size=30)
    found = interval(values)
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=1999, batch=200, rng=np.random.default_rng(0))
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval), rel=1e-12)
    assert found.value == pytest.approx(values.mean())
    assert interval(values) == found, "no dice"


def test_an_interval_of_few_runs_is_nearly_students_t() -> None:
    values = np.array([0.1, 0.3, 0.2, 0.5, 0.4])
    assert len(values) < FEW
    found = interval(values)
    theirs = scipy.stats.t.interval(0.95, 4, values.mean(), scipy.stats.sem(values))
    assert (found.low, found.high) == pytest.approx(theirs, rel=0.15)


def test_intervals_of_degenerate_samples() -> None:
    assert interval(np.array([0.5, 0.5, 0.5])) == (0.5, 0.5, 0.5)
    alone = interval(np.array([0.5]))
    assert alone.value == 0.5
    assert np.isnan([alone.low, alone.high]).all()
    assert alone.sign == 0
    one_differs = interval(np.array([0.0] * 11 + [1.0]))
    assert one_differs.low <= one_differs.value <= one_differs.high
    assert interval(np.array([0.0, 1.0]), bounds=(0, 1))[1:] == (0, 1)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    for runs in (4, 12):
        hits = [(f := interval(generator.normal(0, 1, runs))).low <= 0 <= f.high for _ in range(120)]
        assert 0.85 <= np.mean(hits) <= 1


def test_strata_count_the_same_whatever_their_size() -> None:
    assert mean(np.array([1.0, 1, 1, 1]), np.array([3.0])) == 2
    found = interval(np.linspace(0, 1, 20), np.linspace(2, 3, 10))
    assert found.value == pytest.approx(1.5)
    assert found.low < 1.5 < found.high


def test_an_interquartile_mean_drops_a_quarter_at_each_end() -> None:
    assert interquartile_mean(np.array([0.0, 1, 2, 100])) == 1.5
    assert interquartile_mean(np.array([0.0, 1]), np.array([2.0, 100])) == 1.5
    generator = np.random.default_rng(0)
    found = interval(generator.normal(size=12), generator.normal(size=16), statistic=interquartile_mean)
    assert found.low < found.value < found.high


def test_labels_to_reach_a_level_are_read_off_the_curve() -> None:
    bought, curve = np.array([10.0, 20, 30]), np.array([0.2, 0.6, 0.5])
    assert labels_to_reach(bought, curve, 0.4) == 15
    assert labels_to_reach(bought, curve, 0.2) == 10
    assert labels_to_reach(bought, curve, 0.1) == 10
    assert labels_to_reach(bought, curve, 0.6) == 20
    assert list(labels_to_reach(bought, np.stack([curve, curve + 0.2]), np.array([0.4, 0.4]))) == [15, 10]


def test_labels_saved_are_counted_where_both_curves_have_been() -> None:
    bought = np.array([10.0, 20, 30, 40])
    slow, fast = np.array([0.2, 0.4, 0.6, 0.8]), np.array([0.2, 0.8, 0.8, 0.9])
    assert saved(bought, fast, slow) == pytest.approx(1 - 20 / 40)
    assert saved(bought, slow, fast) == pytest.approx(1 - 40 / 20)
    assert saved(bought, slow, slow) == 0


def test_deficiency_is_one_for_the_baseline_and_less_above_it() -> None:
    base = np.array([0.2, 0.4, 0.8])
    assert deficiency(base, base) == 1
    assert deficiency(np.array([0.5, 0.6, 0.8]), base) == pytest.approx(0.5 / 1.0)
    assert np.isnan(deficiency(base, np.array([0.4, 0.4, 0.4])))


def test_holm_multiplies_the_smallest_by_the_number_of_tests() -> None:
    assert list(holm([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    assert list(holm([0.6, 0.5])) == [1, 1]
    assert list(holm([])) == []


def test_ranks_share_ties_and_weigh_tasks_alike() -> None:
    verdict = Verdict(
        rounds(
            constant({"x": [0.9, 0.9], "y": [0.8, 0.9], "z": [0.1, 0.1]}) | constant({"x": [0.1], "y": [0.2], "z": [0.3]}, "b")
        )
    )
    assert dict(verdict.ranks) == {"x": (1.25 + 3) / 2, "y": (1.75 + 2) / 2, "z": (3 + 1) / 2}
    assert verdict.ranking == ["y", "z", "x"]


def test_rank_tests_are_scipys(noisy: Verdict) -> None:
    areas = noisy.areas
    assert noisy.friedman == pytest.approx(scipy.stats.friedmanchisquare(*(areas[p] for p in noisy.policies)).pvalue)
    pairs = list(itertools.combinations(noisy.policies, 2))
    raw = [scipy.stats.wilcoxon(areas[a], areas[b], zero_method="pratt").pvalue for a, b in pairs]
    for (a, b), p in zip(pairs, holm(raw), strict=True):
        assert noisy.wilcoxon.loc[a, b] == noisy.wilcoxon.loc[b, a] == pytest.approx(p)
    assert noisy.cliques == [("same", "uniform")] or noisy.cliques == [("uniform", "same")]


def test_cliques_are_the_longest_runs_without_a_difference() -> None:
    names = list("abcd")
    p = pandas.DataFrame(1.0, index=names, columns=names)
    p.loc["a", "d"] = p.loc["d", "a"] = 0.01
    ranks = pandas.Series([1.0, 2, 3, 4], names)
    assert cliques(ranks, p) == [("a", "b", "c"), ("b", "c", "d")]
    assert cliques(ranks, p * 0) == []
    assert cliques(ranks, p * 0 + 1) == [("a", "b", "c", "d")]


def test_two_policies_or_equal_ones_have_no_rank_test() -> None:
    assert np.isnan(Verdict(rounds(constant({"x": [0.5, 0.6], "y": [0.5, 0.6]}))).friedman)
    flat = Verdict(rounds(constant({p: [0.5, 0.5] for p in "xyz"})))
    assert np.isnan(flat.friedman)
    assert (flat.wilcoxon == 1).to_numpy().all()
    assert flat.difference("x", "y") == (0, 0, 0)
    assert flat.saving("x", "y") == (0, 0, 0)


def test_differences_are_paired_by_seed() -> None:
    levels = np.linspace(0.3, 0.9, 12)
    verdict = Verdict(rounds(constant({"x": levels + 0.01, "y": levels})))
    assert verdict.difference("x", "y").value == pytest.approx(0.01)
    assert verdict.difference("x", "y").low == pytest.approx(0.01), "what seeds share drops out"
    assert verdict.area("x").high - verdict.area("x").low > 0.1
    assert verdict.improvement("x", "y") == (1, 1, 1)
    assert verdict.wins("x", "y") == (1, 0, 0)
    assert verdict.wins("y", "x") == (0, 0, 1)


def test_ties_count_half_in_the_probability_of_improvement() -> None:
    verdict = Verdict(rounds(constant({"x": [0.5, 0.5, 0.7, 0.1], "y": [0.5, 0.4, 0.2, 0.3]})))
    assert verdict.improvement("x", "y").value == (0.5 + 1 + 1 + 0) / 4


def test_only_seeds_that_both_have_are_compared() -> None:
    curves = constant({"x": [0.9, 0.8, 0.7], "y": [0.5, 0.6, 0.7]})
    del curves["a", "y", 0]
    verdict = Verdict(rounds(curves))
    assert verdict.difference("x", "y").value == pytest.approx((0.2 + 0.0) / 2)
    assert verdict.area("x").value == pytest.approx(0.8)
    assert verdict.runs("y") == verdict.seeds == 2
    assert dict(verdict.ranks) == {"x": 1.25, "y": 1.75}


def test_curves_are_cut_to_the_labels_all_runs_have() -> None:
    curves = {("a", "x", 0): [0.1, 0.2, 0.3, 0.4], ("a", "y", 0): [0.1, 0.2]}
    assert [list(table.columns) for table in Verdict(rounds(curves)).curves.values()] == [[10, 20], [10, 20]]


def test_the_baseline_is_uniform_or_the_first_or_whom_one_names() -> None:
    assert Verdict(rounds(constant({"x": [1], "uniform": [1]}))).baseline == "uniform"
    assert Verdict(rounds(constant({"x": [1], "y": [1]}))).baseline == "x"
    assert Verdict(rounds(constant({"x": [1], "y": [1]})), "y").baseline == "y"
    with pytest.raises(ValueError, match="baseline 'z' has no finished run; there are: x, y"):
        Verdict(rounds(constant({"x": [1], "y": [1]})), "z")


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="no finished run"):
        Verdict(pandas.DataFrame())
    with pytest.raises(ValueError, match="runs on a have no test metric"):
        Verdict(rounds({("a", "x", 0): [None] * 4}))


def test_sentences_say_what_the_intervals_say(noisy: Verdict) -> None:
    saving = noisy.saving("good", "uniform")
    assert 0.2 < saving.low < saving.value < saving.high < 0.6
    assert noisy.sentence("good") == (
        f"saves {100 * saving.value:.0f} % of the labels against uniform, "
        f"95 % interval {100 * saving.low:.0f} to {100 * saving.high:.0f} %"
    )
    assert noisy.sentence("same").startswith("not distinguishable from uniform (labels saved: ")
    assert noisy.sentence("uniform").endswith("not distinguishable from same")
    swapped = Verdict(noisy.rounds, "good")
    assert swapped.sentence("uniform").startswith("needs ")
    assert "% more labels than good" in swapped.sentence("uniform")
    assert Verdict(rounds(constant({"x": [0.5], "y": [0.4]}))).sentence("x") == (
        "area 0.5000; one seed, so nothing can be said of differences"
    )


def test_labels_saved_by_who_begins_worse_are_told_with_the_area() -> None:
    generator = np.random.default_rng(0)
    curves = {}
    for seed in range(12):
        curves["a", "uniform", seed] = np.array([0.5, 0.6, 0.65, 0.68])
        curves["a", "late", seed] = np.array([0.5, 0.535 + generator.normal(0, 0.02), 0.70, 0.71])
    verdict = Verdict(rounds(curves))
    assert verdict.saving("late", "uniform").low > 0
    assert verdict.sentence("late").endswith(" %, but its area is not distinguishable from that of uniform")


def test_a_needed_share_is_of_the_baselines_labels() -> None:
    curves = {}
    for seed in range(3):
        curves["a", "uniform", seed] = [0.2, 0.8, 0.8, 0.8]
        curves["a", "slow", seed] = [0.2, 0.4, 0.6, 0.8]
    assert Verdict(rounds(curves)).sentence("slow").startswith("needs 100 % more labels than uniform, 95 % interval 100 to 100 %")


def test_a_policy_without_a_common_task_says_so() -> None:
    verdict = Verdict(rounds(constant({"uniform": [0.1, 0.2]}) | constant({"x": [0.3, 0.4]}, "b")))
    assert verdict.sentence("x") == "no task in common with uniform"


def test_seconds_of_selecting_are_summed_by_run(noisy: Verdict) -> None:
    assert noisy.seconds("good") == pytest.approx(4 * 0.75)


def test_spans_are_in_hundredths() -> None:
    assert span(Interval(0.9, 0.85, 0.95)) == "90.00 [85.00, 95.00]"
    assert span(Interval(0.312, 0.22, 0.384), "+", 0) == "+31 [+22, +38]"
    assert span(Interval(0.5, np.nan, np.nan)) == "50.00"


def test_a_difference_is_the_mirror_image_of_the_other_way_round(noisy: Verdict) -> None:
    there, back = noisy.difference("good", "uniform"), noisy.difference("uniform", "good")
    assert (there.value, there.low, there.high) == (-back.value, -back.high, -back.low)
    assert noisy.wins("good", "uniform") == noisy.wins("uniform", "good")[::-1] == (1, 0, 0)


def test_regret_is_to_the_best_strategy_of_every_task() -> None:
    left = constant({"a": [0.6, 0.8], "b": [0.5, 0.5], "mixed": [0.7, 0.6]}, "left")
    right = constant({"a": [0.2, 0.2], "b": [0.9, 0.9], "mixed": [0.8, 0.8]}, "right")
    verdict = Verdict(rounds(left | right), "a")
    assert verdict.regret("mixed", ["a", "b"]).value == pytest.approx(((0.7 - 0.65) + (0.9 - 0.8)) / 2)
    assert verdict.regret("a", ["a", "b"]).value == pytest.approx((0 + 0.7) / 2)
    assert verdict.regret("mixed", ["a", "b"], "left").value == pytest.approx(0.05)
    assert verdict.regret("mixed", ["b"], "left").value == pytest.approx(-0.15), "better than all rivals"
    assert verdict.regret("a", ["a"], "left") == Interval(0, 0, 0)
