"""Does AutoAL select? Area under the budget curve against its candidates, their uniform mixture, ALBL and TCM, paired by seed.

    python benchmarks/autoal.py [--seeds 20] [--workers 2] [--out benchmarks/results/autoal.md]

Policies of one (data set, seed) share splits, initial labels and the round-0 model. Intervals are 95 % bootstrap intervals
(BCa) of the mean paired difference "AutoAL minus the other".
"""

import argparse
import itertools
import multiprocessing
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch

from alenv import library
from alenv.runner import Runner, versions

TASKS: dict[str, dict[str, int]] = {
    "digits": {"initial": 20, "batch": 20, "rounds": 15},
    "wine": {"initial": 6, "batch": 4, "rounds": 10},
    "breast_cancer": {"initial": 6, "batch": 6, "rounds": 10},
}
CANDIDATES = library.config("candidates", "autoal7")["strategies"]
POLICIES: dict[str, Any] = {
    "autoal": "autoal",
    "autoal without search": {"name": "autoal", "steps": 0, "fit_epochs": 0},
    "uniform mixture": "uniform_mixture",
    "albl": "albl",
    "tcm": "tcm",
    **{name: {"name": "fixed", "strategy": name} for name in ("uniform", *CANDIDATES)},
}


def area(cell: tuple[str, str, int]) -> tuple[str, str, int, float, float]:
    """Return a cell with its area under the curve and seconds."""
    dataset, policy, seed = cell
    torch.set_num_threads(1)
    start = time.perf_counter()
    run = Runner.of(
        {"dataset": dataset, "selector": POLICIES[policy], "budget": TASKS[dataset], "seed": seed, "device": "cpu"}
    ).run()
    return dataset, policy, seed, float(run.summary["aubc"]), time.perf_counter() - start


def interval(differences: np.ndarray) -> str:
    """Return the mean difference and its interval, in points."""
    if np.ptp(differences) == 0:
        return f"{100 * differences.mean():+.2f}"
    found = scipy.stats.bootstrap((differences,), np.mean, rng=np.random.default_rng(0)).confidence_interval
    return f"{100 * differences.mean():+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


def table(dataset: str, areas: dict[str, np.ndarray], seconds: dict[str, float]) -> Iterable[str]:
    """Yield the lines of one data set's table."""
    budget = TASKS[dataset]
    seeds = len(areas["autoal"])
    yield f"\n## {dataset}: {budget['initial']} + {budget['rounds']} x {budget['batch']} labels, {seeds} seeds\n"
    yield "| policy | area, mean (sd over seeds) | AutoAL minus it, points [95 %] | s a run |"
    yield "|---|---|---|---|"
    for policy, values in sorted(areas.items(), key=lambda item: -item[1].mean()):
        difference = "" if policy == "autoal" else interval(areas["autoal"] - values)
        yield f"| {policy} | {values.mean():.4f} ({values.std(ddof=1):.4f}) | {difference} | {seconds[policy]:.1f} |"
    mean = np.mean([areas[name] for name in CANDIDATES], axis=0)
    yield f"| mean of the seven candidates | {mean.mean():.4f} ({mean.std(ddof=1):.4f}) | {interval(areas['autoal'] - mean)} | |"


def main() -> None:
    """Run every cell and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--datasets", nargs="+", default=list(TASKS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "autoal.md")
    options = parser.parse_args()
    cells = list(itertools.product(options.datasets, POLICIES, range(options.seeds)))
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        done = pool.map(area, cells, chunksize=1)
    lines = [
        "# AutoAL against its candidates",
        "",
        f"`python benchmarks/autoal.py --seeds {options.seeds}`; alenv {versions()['alenv']}, torch {torch.__version__}, CPU.",
        "Area under the curve of test accuracy over labels; policies of one seed share splits, initial labels, round-0 model.",
    ]
    for dataset in options.datasets:
        areas = {p: np.array([a for d, q, _, a, _ in done if (d, q) == (dataset, p)]) for p in POLICIES}
        seconds = {p: float(np.median([s for d, q, _, _, s in done if (d, q) == (dataset, p)])) for p in POLICIES}
        lines += table(dataset, areas, seconds)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
