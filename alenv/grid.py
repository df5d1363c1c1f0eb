"""A grid of runs: data set x setting x policy x seed, each in a directory that its content names."""

import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alenv import library
from alenv.durable import read_lines
from alenv.rundir import config_hash, drawn

if TYPE_CHECKING:
    import pandas

AXES = ("datasets", "settings", "selectors", "fixed", "seeds")  # a grid grows along these
CONDUCT = ("executor", "baseline")  # how it is computed and shown: results do not depend on it
NAMED = ("net", "trainer", "oracle", "reward")  # groups whose files a run's configuration holds


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        dataset: what the data set is called.
        setting: what the setting is called.
        policy: what the selector, or the strategy of `fixed`, is called.
        seed: of everything; policies of one (data set, setting, seed) share splits, initial labels and the round-0 model.
        config: the resolved configuration, as `alenv-train` makes it.
    """

    dataset: str
    setting: str
    policy: str
    seed: int
    config: Mapping[str, Any]

    @property
    def task(self) -> str:
        """Data set and setting in one name."""
        return self.dataset if self.setting == "standard" else f"{self.dataset}, {self.setting}"

    @functools.cached_property
    def name(self) -> str:
        """The run directory's name: what a person looks for, then the hash that tells it from all others."""
        parts = (self.dataset, self.setting, self.policy, str(self.seed), config_hash(self.config))
        return "-".join(re.sub(r"[^\w.]+", "_", part).strip("_")[:60] for part in parts)

    def __str__(self) -> str:
        return f"{self.task} / {self.policy} / seed {self.seed}"

    def directory(self, root: Path) -> Path:
        """Return where this run lies in the grid at `root`."""
        return root / "cells" / self.name

    def finished(self, root: Path) -> bool:
        """Whether nothing is left to compute."""
        return (self.directory(root) / "summary.json").exists()

    def result(self, root: Path) -> dict[str, Any]:
        """Return `summary.json` and, as `records`, the rounds of a finished run."""
        folder = self.directory(root)
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return {**summary, "records": read_lines(folder / "rounds.jsonl")}


def expand(config: Mapping[str, Any]) -> list[Cell]:
    """Return the cells of a comparison, seed by seed, so that a grid cut short has compared everybody on the seeds it has.

    Args:
        config: the keys of `configs/compare.yaml`. `datasets` and `selectors` list names, mappings with `name` and parameters,
            "module:Class", or {dataset: one of these, ...} and {selector: one of these, ...} with options of a run beside it
            (`budget`, `net`, ...) that hold for it alone, and `label` to call it something else.

    Raises:
        ValueError: an unknown name, an option no run has, two policies or data sets of one name, or nothing to run.
    """
    run = {key: value for key, value in config.items() if key not in (*AXES, *CONDUCT)}
    tasks = _labelled([_item("dataset", item, run) for item in config["datasets"]], "datasets")
    settings = _labelled([(_called(item), _content("setting", item)) for item in config["settings"]], "settings")
    policies = _labelled([*(_item("selector", s, run) for s in config["selectors"]), *map(_fixed, config["fixed"])], "policies")
    seeds = _seeds(config["seeds"])
    cells = []
    for seed, (dataset, own), (setting, cut), (policy, chosen) in itertools.product(
        seeds, tasks.items(), settings.items(), policies.items()
    ):
        merged = _merge(_merge(run, own), chosen) | {"setting": cut, "seed": seed}
        resolved = {key: _content(key, value) if key in NAMED and value is not None else value for key, value in merged.items()}
        cells.append(Cell(dataset, setting, policy, seed, dict(sorted(drawn(resolved).items()))))
    return cells


def frame(cells: Sequence[Cell], root: Path) -> "pandas.DataFrame":
    """Return a row per round of every finished cell: who and where, `value` (the primary metric), and all of the record."""
    import pandas

    from alenv.runner import frame as of_records

    parts = []
    for cell in cells:
        if cell.finished(root):
            found = cell.result(root)
            part = of_records(found["records"])
            part.insert(0, "metric", found["metric"])
            part.insert(1, "value", part[found["metric"]])
            for at, key in enumerate(("dataset", "setting", "task", "policy", "seed")):
                part.insert(at, key, getattr(cell, key))
            parts.append(part)
    return pandas.concat(parts, ignore_index=True) if parts else pandas.DataFrame()


def _seeds(given: Any) -> list[int]:
    seeds = list(range(given)) if isinstance(given, int) and not isinstance(given, bool) else given
    if not isinstance(seeds, Sequence) or not seeds or not all(isinstance(s, int) for s in seeds) or len({*seeds}) < len(seeds):
        raise ValueError(f"expected seeds to be how many (1 or more), or a list of distinct whole numbers, got {given!r}")
    return list(seeds)


def _item(group: str, item: Any, run: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return what an item of `datasets` or `selectors` is called, and the options of a run it stands for."""
    options = dict(item) if isinstance(item, Mapping) and group in item else {group: item}
    label = options.pop("label", None) or _called(options[group])
    for key in options.keys() - {group}:
        if key not in run:
            raise ValueError(f"{group} '{label}': a run has no option '{key}'{library.nearest(key, run)}")
    return label, options | {group: _content(group, options[group])}


def _fixed(item: Any) -> tuple[str, dict[str, Any]]:
    _content("strategy", item)  # a misspelt name is told before anything runs
    return _called(item), {"selector": _content("selector", "fixed") | {"strategy": item}}


def _content(group: str, item: Any) -> Any:
    """Return an item with its file's content in place of its name, so that a change of the file makes another cell."""
    if isinstance(item, Mapping) and "name" in item and "_target_" not in item:
        given = {key: value for key, value in item.items() if key != "name"}
        if ":" in str(item["name"]):
            return {"_target_": item["name"], **given}
        content = library.config(group, item["name"])
        return content | given
    return library.config(group, item) if isinstance(item, str) and ":" not in item else item


def _called(item: Any) -> str:
    """Return an item's name with its parameters in parentheses: "autoal(steps=120)"."""
    if not isinstance(item, Mapping):
        return library.label(item)
    told = [f"{key}={_called(v) if isinstance(v, Mapping) else v}" for key, v in item.items() if key not in ("name", "_target_")]
    return library.label(item) + (f"({','.join(told)})" if told else "")


def _labelled(items: Sequence[tuple[str, Any]], what: str) -> dict[str, Any]:
    if not items:
        raise ValueError(f"expected at least one of {what} to compare; set {what}=[...]")
    names = [name for name, _ in items]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{what}: '{name}' is listed twice; drop one, or call it something else with label:")
    return dict(items)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` on top; `budget` and `stop` keep the options that `over` leaves out."""
    deep = {key: {**base[key], **over[key]} for key in ("budget", "stop") if key in over and isinstance(base.get(key), Mapping)}
    return {**base, **over, **deep}
