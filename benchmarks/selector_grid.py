"""Selectors beside the strategies they choose from: area, rank, and regret to the best strategy in hindsight.

    python benchmarks/selector_grid.py [--seeds 20] [--workers 2] [--directory runs/selectors]

The grid is `configs/preset/selectors.yaml`, computed by `alenv.compare`: what is finished is kept, so a killed run continues and
more seeds add to it. Writes `benchmarks/results/selectors.md` and the rank diagram `docs/selectors.svg`; the directory holds the
whole report.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from alenv import library
from alenv.compare import compare
from alenv.figures import rank_diagram
from alenv.runner import versions
from alenv.verdict import Verdict, span

ROOT = Path(__file__).resolve().parent.parent
HEAD = """# Selectors beside the strategies they choose from

`python benchmarks/selector_grid.py --seeds {seeds}` ({versions}){took}

{policies} policies, {tasks} tasks ({sets} data sets x {settings} settings), {seeds} seeds; a linear head
fitted to its optimum, {rounds} rounds. Every policy of one task and seed had the same splits, initial labels and first model. The
selectors choose among {candidates}; `tcm` and `tailor` bring arms
of their own. All run with the numbers of their YAML files; the
policy of `ppo` learned on generated mixtures, wine and breast_cancer.

- **area**: test accuracy averaged over the labels bought, in points; **minus uniform**: paired by seed.
- **regret**: area of the best of the {fixed} strategies in hindsight, a best one for every task, minus the policy's: what it
  costs to always use this one. The fewer the seeds, the more the best of them owes to luck. **worst**: where regret is largest.
- **rank**: mean rank of areas within (task, seed), of {policies}. Brackets are 95 % intervals, bootstrap over seeds.
"""


def main() -> None:
    """Compute what is missing and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--directory", type=Path, default=ROOT / "runs" / "selectors")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "selectors.md")
    parser.add_argument("--diagram", type=Path, default=ROOT / "docs" / "selectors.svg")
    options = parser.parse_args()
    config = library.config("preset", "selectors") | {
        "seeds": options.seeds, "device": "cpu", "executor": {"name": "local", "workers": options.workers},
    }  # fmt: skip
    began, before = time.perf_counter(), _finished(options.directory)
    verdict = compare(config, options.directory, Console(soft_wrap=True, highlight=False))
    computed, minutes = _finished(options.directory) - before, (time.perf_counter() - began) / 60
    took = f": {computed} runs in {minutes:.0f} minutes, {options.workers} processes." if computed else "."
    options.results.write_text(report(verdict, config, took), encoding="utf-8")
    diagram = rank_diagram(verdict)
    assert diagram is not None
    assert isinstance(diagram.content, str)
    options.diagram.write_text(diagram.content, encoding="utf-8")


def report(verdict: Verdict, config: dict[str, Any], took: str) -> str:
    """Return the results as Markdown."""
    known = versions()
    fixed = [p for p in verdict.policies if p in config["fixed"]]
    head = HEAD.format(
        seeds=verdict.seeds, versions=f"python {known['python']}, torch {known['torch']}", took=took, fixed=len(fixed),
        policies=len(verdict.policies), tasks=len(verdict.tasks), sets=len(config["datasets"]), settings=len(config["settings"]),
        rounds=config["budget"]["rounds"], candidates=", ".join(config["strategies"]),
    )  # fmt: skip
    rows = []
    for policy in sorted(verdict.policies, key=lambda p: verdict.regret(p, fixed).value):
        against = "" if policy == verdict.baseline else span(verdict.difference(policy, verdict.baseline), "+")
        task, worst = max(((t, verdict.regret(policy, fixed, t).value) for t in verdict.tasks), key=lambda pair: pair[1])
        name = policy if policy in fixed else f"**{policy}**"
        rows.append([
            name, f"{100 * verdict.area(policy).value:.2f}", against, span(verdict.regret(policy, fixed)),
            f"{100 * worst:.1f} ({task})", f"{verdict.ranks[policy]:.2f}", f"{verdict.seconds(policy):.3f}",
        ])  # fmt: skip
    best = [_best(verdict, fixed, task) for task in verdict.tasks]
    others = [p for p in verdict.policies if p not in fixed]
    lost = [[task, *(f"{100 * verdict.regret(p, fixed, task).value:+.2f}" for p in others)] for task in verdict.tasks]
    return "\n".join([
        head, "Selectors are **bold**.\n",
        _table(["policy", "area", "minus uniform", "regret", "worst", "rank", "select, s a run"], rows),
        "![Mean ranks](../../docs/selectors.svg)\n", "## The best strategy in hindsight\n",
        _table(["task", "best", "area", "uniform"], best), "## Regret of the selectors by task, points\n",
        _table(["task", *others], lost),
    ])  # fmt: skip


def _best(verdict: Verdict, fixed: list[str], task: str) -> list[str]:
    areas = {p: verdict.area(p, task).value for p in fixed}
    first = max(areas, key=lambda p: areas[p])
    return [task, first, f"{100 * areas[first]:.2f}", f"{100 * areas['uniform']:.2f}"]


def _table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _finished(directory: Path) -> int:
    return len(list(directory.glob("cells/*/summary.json")))


if __name__ == "__main__":
    main()
