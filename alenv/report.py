"""The files of a comparison: one self-contained page, tables for other programs, figures."""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from alenv.durable import write_atomically
from alenv.figures import Drawing, draw
from alenv.grid import Cell
from alenv.verdict import FEW, Verdict, span

if TYPE_CHECKING:
    import pandas

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
body { color: CanvasText; background: Canvas; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: Canvas; }
figure { margin: 1rem 0; } figure svg, figure img { max-width: 100%; height: auto; display: block; }
figcaption, .note { font-size: .9rem; opacity: .8; }
summary { cursor: pointer; font-weight: 600; margin-top: 1rem; }
pre { overflow-x: auto; background: var(--soft); padding: .7rem; font-size: .8rem; }
.failed { border-left: 4px solid #c33; padding-left: .8rem; }
"""
READING = """
Every policy of one data set and seed had the same splits, the same initial labels and the same first model, so differences are
taken seed by seed. <b>Area</b>: test metric averaged over the labels bought (trapezoid), in points. <b>Minus</b>: mean
difference of areas to the baseline. <b>Middle</b>: interquartile mean of areas. <b>P(better)</b>: share of seeds with the larger
area, ties half. <b>Labels saved</b>: how much sooner the mean curve reaches the highest accuracy that both mean curves reach;
below 0 it needs more. <b>Deficiency</b>: area lost to the baseline's final accuracy, as a share of what the baseline loses; below
1 is better. <b>Rank</b>: mean rank of areas within (data set, seed), 1 is best. Brackets are 95 % intervals (bootstrap over
seeds, BCa; Student's t below ten seeds). "Not distinguishable" means that the interval of the difference holds 0, not that two
policies are equal.
"""


def write_report(
    root: Path, verdict: Verdict, cells: Sequence[Cell], failures: Sequence[tuple[Cell, str]], config: Mapping[str, Any]
) -> None:
    """Write `report.html`, `summary.csv`, `rounds.parquet` and `figures/` into the comparison's directory."""
    summary(verdict).to_csv(root / "summary.csv", index=False)
    verdict.rounds.to_parquet(root / "rounds.parquet")
    drawings = draw(verdict, cells, root)
    folder = root / "figures"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for drawing in drawings:
        suffix = "svg" if isinstance(drawing.content, str) else "png"
        write_atomically(folder / f"{re.sub(r'[^A-Za-z0-9.=-]+', '_', drawing.name)}.{suffix}", drawing.content)
    write_atomically(root / "report.html", page(verdict, drawings, failures, config))


def summary(verdict: Verdict) -> "pandas.DataFrame":
    """Return a row per (task, policy), and per policy over all tasks where there are several."""
    import pandas

    rows = []
    for task in [*verdict.tasks, *[None] * (len(verdict.tasks) > 1)]:
        for policy in verdict.policies:
            if not verdict.common(policy, task=task):
                continue
            found: dict[str, Any] = {"task": task or "all", "policy": policy, "runs": verdict.runs(policy, task)}
            found |= _columns("area", verdict.area(policy, task)) | _columns("middle", verdict.middle(policy, task))
            if policy != verdict.baseline and verdict.common(policy, verdict.baseline, task=task):
                found |= _columns("difference", verdict.difference(policy, verdict.baseline, task))
                found |= _columns("labels_saved", verdict.saving(policy, verdict.baseline, task))
                found |= _columns("better", verdict.improvement(policy, verdict.baseline, task))
                found["deficiency"] = verdict.deficiency(policy, task)
            rows.append(found | {"select_seconds": verdict.seconds(policy, task)})
    return pandas.DataFrame(rows).assign(baseline=verdict.baseline)


def page(verdict: Verdict, drawings: Sequence[Drawing], failures: Sequence[tuple[Cell, str]], config: Mapping[str, Any]) -> str:
    """Return the report: HTML with everything in it, nothing to load and nothing to run."""
    said = "".join(f"<li><b>{escape(p)}</b>: {escape(verdict.sentence(p))}</li>" for p in verdict.ranking)
    few = f"<p class=note>{verdict.seeds} seeds: too few to part policies that are close; use {FEW} or more.</p>"
    parts = [f"<ul>{said}</ul>", few * (verdict.seeds < FEW), _failures(failures), "<h2>Policies</h2>", _policies(verdict)]
    if len(verdict.tasks) > 1:
        parts += [f"<h2>Area minus {escape(verdict.baseline)}, points</h2>", _by_task(verdict)]
    parts += ["<h2>Figures</h2>", *(_figure(d) for d in drawings if isinstance(d.content, str))]
    sheets = "".join(_figure(d) for d in drawings if isinstance(d.content, bytes))
    parts += [f"<details><summary>What was bought</summary>{sheets}</details>"] * bool(sheets)
    if len(verdict.policies) > 1:
        parts += ["<h2>Pair by pair</h2>", _pairs(verdict)]
    parts += [f"<h2>How to read this</h2><p>{READING}</p>", "<h2>Configuration</h2>"]
    parts += [f"<pre>{escape(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))}</pre>"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>alenv: {escape(', '.join(verdict.policies))}</title><style>{STYLE}</style></head>"
        f"<body><h1>{escape(verdict.title)}</h1>{''.join(parts)}</body></html>\n"
    )


def _policies(verdict: Verdict) -> str:
    base = verdict.baseline
    rows = []
    for policy in verdict.ranking:
        against = [""] * 4
        if policy != base and verdict.common(policy, base):
            better = verdict.improvement(policy, base)
            against = [
                span(verdict.difference(policy, base), "+"), span(verdict.saving(policy, base), "+", 0), span(better, "", 0),
                f"{verdict.deficiency(policy):.2f}",
            ]  # fmt: skip
        area, middle = span(verdict.area(policy)), span(verdict.middle(policy))
        rows.append([policy, area, middle, *against, f"{verdict.ranks[policy]:.2f}", f"{verdict.seconds(policy):.2f}"])
    headings = (
        "policy", "area", "middle", f"minus {base}", "labels saved, %", "P(better), %", "deficiency", "rank", "select, s",
    )  # fmt: skip
    return _table(headings, rows)


def _by_task(verdict: Verdict) -> str:
    base, others = verdict.baseline, [p for p in verdict.policies if p != verdict.baseline]
    rows = [
        [task, *(span(verdict.difference(p, base, task), "+") if verdict.common(p, base, task=task) else "" for p in others)]
        for task in verdict.tasks
    ]
    return _table(("data set", *others), rows)


def _pairs(verdict: Verdict) -> str:
    """Return wins / ties / losses over tasks and the adjusted p-value, row against column."""
    rows = []
    for ours in verdict.ranking:
        cells = []
        for theirs in verdict.ranking:
            same = ours == theirs or not verdict.common(ours, theirs)
            counts = "" if same else " / ".join(map(str, verdict.wins(ours, theirs)))
            cells.append(counts and f"{counts} (p {float(str(verdict.wilcoxon.loc[ours, theirs])):.2g})")
        rows.append([ours, *cells])
    note = (
        "Data sets won / tied / lost, row against column, by the interval of the paired difference; p of Wilcoxon's test, Holm."
    )
    return f"<p class=note>{note}</p>" + _table(("", *verdict.ranking), rows)


def _failures(failures: Sequence[tuple[Cell, str]]) -> str:
    if not failures:
        return ""
    told = "".join(f"<details><summary>{escape(str(cell))}</summary><pre>{escape(log)}</pre></details>" for cell, log in failures)
    return f"<div class=failed><p>{len(failures)} runs failed and are left out.</p>{told}</div>"


def _figure(drawing: Drawing) -> str:
    return f"<figure>{drawing.html}<figcaption>{escape(drawing.caption)}</figcaption></figure>"


def _table(headings: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in headings)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _columns(name: str, found: Any) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
