"""Does AutoAL select? Area under the budget curve against other policies, paired by seed; and what each of its parts does.

    python benchmarks/autoal.py [--seeds 20] [--workers 2] [--fashion-mnist FOLDER] [--cifar10 FOLDER]
    python benchmarks/autoal.py --ablations [--seeds 10]

Policies of one (data set, seed) share splits, initial labels and the round-0 model. Intervals are 95 % bootstrap intervals
(BCa) of the mean paired difference "AutoAL minus the other", or in the ablations "variant minus AutoAL".
"true losses" is the search's ceiling: the quotas of a mixture are exp(mean standardised loss of what each candidate would
buy), read off the hidden labels of the whole pool. `benchmarks/cifar10_features.py` makes the folder of CIFAR-10's frozen
features. Data sets whose folder is not given are left out.
"""

import argparse
import itertools
import multiprocessing
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
import torch.nn.functional as F

from alenv import library
from alenv.ballot import Ballot
from alenv.campaign import weights_action
from alenv.runner import Runner, versions
from alenv.selector import Selector

TASKS: dict[str, dict[str, Any]] = {
    "digits": {"budget": {"initial": 20, "batch": 20, "rounds": 15}},
    "wine": {"budget": {"initial": 6, "batch": 4, "rounds": 10}},
    "breast_cancer": {"budget": {"initial": 6, "batch": 6, "rounds": 10}},
    "fashion_mnist": {
        "budget": {"initial": 50, "batch": 50, "rounds": 6}, "setting": {"name": "standard", "pool": 5000}, "net": "mlp",
    },
    "cifar10": {"budget": {"initial": 50, "batch": 50, "rounds": 6}, "setting": {"name": "standard", "pool": 5000}},
}  # fmt: skip
NEEDS_FOLDER = {"fashion_mnist": "fashion_mnist", "cifar10": "arrays"}  # task -> reader
EXPERIMENTS = [name for name in library.names("experiment") if name.startswith("autoal_")]
CANDIDATES = library.config("candidates", "autoal7")["strategies"]
POLICIES: dict[str, dict[str, Any]] = {
    "autoal": {"selector": "autoal"},
    "autoal, random halves": {"selector": {"name": "autoal", "split": "random"}},
    "autoal without search": {"selector": {"name": "autoal", "steps": 0, "fit_epochs": 0}},
    "true losses": {},
    "uniform mixture": {"selector": "uniform_mixture"},
    "albl": {"selector": "albl"},
    "tcm": {"selector": "tcm"},
    **{name: {"selector": {"name": "fixed", "strategy": name}} for name in ("uniform", *CANDIDATES)},
}


def ablations() -> dict[str, dict[str, Any]]:
    """Return AutoAL and every experiment that changes it."""
    found: dict[str, dict[str, Any]] = {"autoal": POLICIES["autoal"]}
    for name in EXPERIMENTS:
        given = library.config("experiment", name)
        selector = {"name": "autoal", **given.get("selector", {})}
        found[name] = {key: value for key, value in given.items() if key != "defaults"} | {"selector": selector}
    return found


class TrueLosses(Selector):
    """What the search could know at best: weights exp(z), z the mean standardised loss of a candidate's wishes."""

    action_kind = "mix"
    targets: torch.Tensor

    def act(self, observation: Any, ballot: Ballot) -> Any:
        """Return the weights; reads hidden labels."""
        round = ballot.round
        losses = F.cross_entropy(round.logits, self.targets[round.candidates], reduction="none")
        unit = (losses - losses.mean()) / losses.std()
        return weights_action(torch.stack([unit[ballot.wish(s)].mean() for s in range(len(ballot.names))]).softmax(0))


class Cell:
    """One run: a data set, a policy and a seed."""

    def __init__(self, task: str, policy: str, seed: int, config: Mapping[str, Any]) -> None:
        self.task, self.policy, self.seed = task, policy, seed
        self.config = {"dataset": task, **TASKS[task], **config, "seed": seed, "device": "cpu"}

    def run(self) -> tuple[str, str, int, float, float]:
        """Return task, policy, seed, area under the curve and seconds."""
        torch.set_num_threads(1)
        start = time.perf_counter()
        runner = Runner.of(self.config if self.policy != "true losses" else {**self.config, "selector": "uniform_mixture"})
        if self.policy == "true losses":
            runner.selector = TrueLosses()
            runner.selector.targets = runner.problem.task(self.seed).targets.clone()
        found = runner.run()
        return self.task, self.policy, self.seed, float(found.summary["aubc"]), time.perf_counter() - start


def interval(differences: np.ndarray) -> str:
    """Return the mean difference and its interval, in points."""
    if np.ptp(differences) == 0:
        return f"{100 * differences.mean():+.2f}"
    found = scipy.stats.bootstrap((differences,), np.mean, rng=np.random.default_rng(0)).confidence_interval
    return f"{100 * differences.mean():+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


def heading(task: str, seeds: int) -> str:
    """Return the title of one data set's table."""
    budget, pool = TASKS[task]["budget"], TASKS[task].get("setting", {}).get("pool")
    where = f"{budget['initial']} + {budget['rounds']} x {budget['batch']} labels" + (f" of a pool of {pool}" if pool else "")
    return f"\n## {task}: {where}, net={TASKS[task].get('net', 'linear')}, {seeds} seeds\n"


def comparison(task: str, areas: Mapping[str, np.ndarray], seconds: Mapping[str, float]) -> Iterable[str]:
    """Yield one data set's table of AutoAL against the others."""
    yield heading(task, len(areas["autoal"]))
    yield "| policy | area, mean (sd over seeds) | AutoAL minus it, points [95 %] | s a run |"
    yield "|---|---|---|---|"
    for policy, values in sorted(areas.items(), key=lambda item: -item[1].mean()):
        difference = "" if policy == "autoal" else interval(areas["autoal"] - values)
        yield f"| {policy} | {values.mean():.4f} ({values.std(ddof=1):.4f}) | {difference} | {seconds[policy]:.1f} |"
    mean = np.mean([areas[name] for name in CANDIDATES], axis=0)
    yield f"| mean of the seven candidates | {mean.mean():.4f} ({mean.std(ddof=1):.4f}) | {interval(areas['autoal'] - mean)} | |"


def variants(tasks: Sequence[str], areas: Mapping[tuple[str, str], np.ndarray]) -> Iterable[str]:
    """Yield the table of ablations: variant minus AutoAL, on every data set."""
    yield "\n| experiment | " + " | ".join(f"{task}, points [95 %]" for task in tasks) + " |"
    yield "|---" * (len(tasks) + 1) + "|"
    base = " | ".join(f"{areas[task, 'autoal'].mean():.4f}" for task in tasks)
    yield f"| AutoAL's area | {base} |"
    for name in EXPERIMENTS:
        yield f"| {name} | " + " | ".join(interval(areas[task, name] - areas[task, "autoal"]) for task in tasks) + " |"


def main() -> None:
    """Run every cell and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--fashion-mnist", help="folder of the IDX files")
    parser.add_argument("--cifar10", help="folder that cifar10_features.py wrote")
    parser.add_argument("--ablations", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    folders = {"fashion_mnist": options.fashion_mnist, "cifar10": options.cifar10}
    tasks = [task for task in options.tasks if task not in NEEDS_FOLDER or folders[task]]
    for task in set(tasks) & set(NEEDS_FOLDER):
        TASKS[task]["dataset"] = {"name": NEEDS_FOLDER[task], "root": folders[task]}
    policies = ablations() if options.ablations else POLICIES
    grid = itertools.product(tasks, policies, range(options.seeds))
    cells = [Cell(task, policy, seed, policies[policy]) for task, policy, seed in grid]
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        done = list(pool.imap_unordered(Cell.run, cells))  # the first failure ends it
    done.sort(key=lambda cell: cell[2])  # by seed: differences are paired
    areas = {(t, p): np.array([a for u, q, _, a, _ in done if (u, q) == (t, p)]) for t in tasks for p in policies}
    command = f"python benchmarks/autoal.py{' --ablations' if options.ablations else ''} --seeds {options.seeds}"
    command += f" --tasks {' '.join(tasks)}" if tasks != list(TASKS) else ""
    lines = [
        "# What AutoAL's parts do" if options.ablations else "# AutoAL against its candidates",
        "",
        f"`{command}`; alenv {versions()['alenv']}, torch {torch.__version__}, CPU.",
        "Area under the curve of test accuracy over labels; policies of one seed share splits, initial labels, round-0 model.",
    ]
    if options.ablations:
        lines += ["Differences are variant minus AutoAL as it is by default.", *variants(tasks, areas)]
    for task in () if options.ablations else tasks:
        seconds = {p: float(np.median([s for t, q, _, _, s in done if (t, q) == (task, p)])) for p in policies}
        lines += comparison(task, {p: areas[task, p] for p in policies}, seconds)
    name = "autoal_ablations.md" if options.ablations else "autoal.md"
    out = options.out or Path(__file__).parent / "results" / name
    out.parent.mkdir(exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
