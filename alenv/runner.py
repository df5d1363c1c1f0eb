"""The loop selector x environment, and the files it leaves."""

import functools
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from safetensors.torch import load_file, save

from alenv import library
from alenv.campaign import Campaign, Plan
from alenv.checkpoint import load_state, save_state
from alenv.durable import append_lines, read_lines, rewrite_lines, write_atomically
from alenv.env import ActiveLearningEnv
from alenv.ledger import Ledger
from alenv.model import TaskModel
from alenv.oracle import SimulatedOracle
from alenv.problem import Problem, assemble
from alenv.record import Record, area_under_curve
from alenv.rundir import RunDirectory, config_hash
from alenv.selector import Context, Selector, Transition
from alenv.streams import Streams
from alenv.task import Source
from alenv.trainer import Trainer

if TYPE_CHECKING:
    import pandas

SYNC_SECONDS = 1.0  # what a power cut (not a kill) may cost of finished rounds; bought labels are always on disk
VERSIONS = ("torch", "gymnasium", "numpy", "scikit-learn", "stable-baselines3", "hydra-core", "transformers")


class Callback:
    """Hears what happens in a run; the table and TensorBoard are two of them."""

    def begin(self, campaign: Campaign, directory: Path | None, config: Mapping[str, Any], note: str) -> None:
        """The campaign stands after round `len(campaign.records) - 1`; `note` says what the user should know."""

    def round(self, record: Record, campaign: Campaign) -> None:
        """A round is finished and on disk. A continued run tells its last one again: a kill may have come before it was told."""

    def end(self, run: "Run") -> None:
        """The run is finished; `summary.json` is written when everybody has heard."""

    def close(self) -> None:
        """The run stops here, finished or not."""


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        rounds: one record per round.
        summary: what `summary.json` holds.
        model: the last task model, ready to predict.
        config: the resolved configuration; empty for a run made in Python without one.
        directory: where its files are, or None.
    """

    rounds: tuple[Record, ...]
    summary: dict[str, Any]
    model: TaskModel
    config: dict[str, Any]
    directory: Path | None

    @functools.cached_property
    def records(self) -> "pandas.DataFrame":
        """The rounds as a table: a row each, metrics as columns, what the selector logged and seconds under their prefixes."""
        return frame([record.to_json() for record in self.rounds])


class Runner:
    """Runs one selector on one problem.

    Args:
        problem: what is learned; its plan's action kind and mixing are replaced by the selector's.
        selector: who chooses.
        seed: of everything.
        directory: the run directory; None keeps nothing on disk.
        config: what is written to `config.yaml`.
        callbacks: who hears of it.
        fresh: start over in a directory that holds a run.
        stop_seconds: stop after the round that passes this time.
    """

    def __init__(
        self, problem: Problem, selector: Selector, seed: int = 0, directory: str | Path | None = None,
        config: Mapping[str, Any] | None = None, callbacks: Sequence[Callback] = (), fresh: bool = False,
        stop_seconds: float | None = None,
    ) -> None:  # fmt: skip
        plan = replace(
            problem.plan,
            action=selector.action_kind,
            mixing=selector.mixing,
            votes=max(1.0, selector.votes),
            shares=selector.shares,
        )
        self.problem = replace(problem, plan=plan)
        self.selector, self.seed, self.callbacks, self.stop_seconds = selector, seed, tuple(callbacks), stop_seconds
        if selector.oracle and not isinstance(problem.oracle, SimulatedOracle):
            raise ValueError("a selector that peeks at labels needs oracle=simulated; it would ask people hypothetical questions")
        self.config = dict(config or {})
        if directory is not None and config is None:
            raise ValueError(
                "a run directory needs the configuration it holds; "
                "pass config=, or build the runner with Runner.of(config, directory)"
            )
        self.directory = RunDirectory(directory, self.config, fresh) if directory is not None else None
        self.env = ActiveLearningEnv(
            problem=self.problem, directory=str(directory) if directory is not None else None,
            max_strategies=max(64, len(self.problem.strategies)), peek=selector.oracle,
        )  # fmt: skip

    @classmethod
    def of(
        cls, config: Mapping[str, Any], directory: str | Path | None = None, callbacks: Sequence[Callback] = (),
        trainer: Trainer | None = None, source: Source | None = None,
    ) -> "Runner":  # fmt: skip
        """Build a runner from a resolved configuration (the keys of `configs/train.yaml`; things as names or mappings).

        `trainer` takes the place of the configured one, which it must equal in all but where it computes; `source` is the
        configured data set where somebody has read it already.
        """
        selector: Selector = library.build("selector", config.get("selector", "autoal"))
        budget, stop = config.get("budget", {}), config.get("stop", {})
        for name, value in (("budget", budget), ("stop", stop)):
            if not isinstance(value, Mapping):
                raise ValueError(f"expected {name} to hold options ({name}.<option>=...), got {name}={value!r}")
        if isinstance(config.get("seed", 0), bool) or not isinstance(config.get("seed", 0), int):
            raise ValueError(f"expected seed to be a whole number, got {config['seed']!r}")
        plan = Plan(**budget, draws=config.get("draws", 10), stop_accuracy=stop.get("accuracy"))
        problem = assemble(
            dataset=source or config.get("dataset", "digits"), setting=config.get("setting", "standard"),
            net=config.get("net", "linear"),
            trainer=trainer or config.get("trainer", "default"), oracle=config.get("oracle", "simulated"), plan=plan,
            strategies=selector.candidates if selector.candidates is not None else config.get("strategies", "autoal7"),
            reward=config.get("reward") or selector.reward or "gain", device=config.get("device", "auto"),
            validation=config.get("validation"), initial=config.get("initial", "random"), required=selector.requires,
            joint=config.get("joint", False), features=config.get("features"), cache=config.get("cache", "auto"),
            embed=config.get("embed"),
        )  # fmt: skip
        seed, fresh = config.get("seed", 0), config.get("fresh", False)
        if selector.per_class:
            classes = problem.task(seed).num_classes
            arms = {f"{s}({c})": library.build("strategy", s, target=c) for s in selector.per_class for c in range(classes)}
            problem = replace(problem, strategies={**problem.strategies, **arms})
        return cls(problem, selector, seed, directory, config, callbacks, fresh, stop.get("seconds"))

    def run(self) -> Run:
        """Run to the end, or from where an earlier process stopped, and return everything.

        Raises:
            AwaitingLabels: a person is asked; run again when the labels are there.
            ValueError: the configuration does not fit the data, or the directory holds another run.
        """
        if self.directory is None:
            return self._run()
        with self.directory.locked():
            self.directory.prepare()
            try:
                return self._finished() or self._run()
            except ValueError:
                self.directory.forget()
                raise

    def _run(self) -> Run:
        start = time.perf_counter()
        try:
            observation, spent = self._start()
            while not self.env.campaign.finished:
                if self.stop_seconds is not None and time.perf_counter() - start + spent > self.stop_seconds:
                    break
                observation = self._round(observation)
            run = self._close(spent + time.perf_counter() - start)
            for callback in self.callbacks:
                callback.end(run)
            if self.directory is not None:
                append_lines(self.directory.rounds, ())  # all of it is on disk before the summary says so
                write_atomically(self.directory.summary, json.dumps(run.summary, indent=2, allow_nan=False) + "\n")
            return run
        finally:
            for callback in self.callbacks:
                callback.close()

    def _start(self) -> tuple[Any, float]:
        """Reset, or resume from the checkpoint; return the observation and the seconds spent before."""
        self._synced = time.monotonic()
        state = self._saved()
        if self.directory is not None:
            self._put_ledger()
        if state is None:
            observation, _ = self.env.reset(seed=self.seed)
        else:
            observation, _ = self.env.resume(self.seed, state["campaign"], state["model"])
        campaign = self.env.campaign
        self.selector.begin(self._context(campaign))
        if state is not None:
            self.selector.load_state_dict(state["selector"])
        note = self.problem.note(campaign.task)
        for callback in self.callbacks:
            callback.begin(campaign, self.directory.path if self.directory else None, self.config, note)
        if state is None:
            self._finish(campaign.records[-1], {})
            return observation, 0.0
        for callback in self.callbacks:
            callback.round(campaign.records[-1], campaign)
        return observation, sum(sum(v for k, v in r.seconds.items() if "/" not in k) for r in campaign.records)

    def _round(self, observation: Any) -> Any:
        campaign = self.env.campaign
        with campaign.clock("act"):
            action = self.selector.act(observation, campaign.ballot)
        following, reward, terminated, truncated, _ = self.env.step(action)
        record = campaign.records[-1]
        shown = record if self.selector.oracle else replace(record, metrics={})
        labels = campaign.pool.labels[self.env.query.indices]
        transition = Transition(observation, action, self.env.query, shown, reward, following, terminated or truncated, labels)
        with campaign.clock("act"):
            logged = {name: float(value) for name, value in self.selector.update(transition).items()}
        self._finish(record, logged)
        return following

    def _finish(self, record: Record, logged: dict[str, float]) -> None:
        """Complete a round's record, write it, and let a checkpoint follow: a kill in between repeats the round."""
        campaign = self.env.campaign
        record = campaign.records[-1] = replace(record, selector=logged, seconds=_seconds(campaign.clock.take()))
        if self.directory is not None:
            sync = time.monotonic() - self._synced >= SYNC_SECONDS
            append_lines(self.directory.rounds, [record.to_json()], sync)
            save_state(self.directory.checkpoint, self._state(), sync)
            self._synced = time.monotonic() if sync else self._synced
        for callback in self.callbacks:
            callback.round(record, campaign)

    def _state(self) -> dict[str, Any]:
        campaign = self.env.campaign
        return {
            "seed": self.seed,
            "campaign": campaign.state_dict(),
            "model": dict(campaign.model.state_dict()),
            "selector": self.selector.state_dict(),
        }

    def _saved(self) -> dict[str, Any] | None:
        if self.directory is None or not self.directory.checkpoint.exists():
            if self.directory is not None:
                rewrite_lines(self.directory.rounds, [], sync=False)
            return None
        state = load_state(self.directory.checkpoint, self.problem.trainer.device)
        if state["seed"] != self.seed:
            raise ValueError(
                f"{self.directory.path} holds a run of seed {state['seed']}, not {self.seed}; choose another directory"
            )
        rewrite_lines(self.directory.rounds, state["campaign"]["records"])
        return state

    def _put_ledger(self) -> None:
        assert self.directory is not None
        task = self.problem.task(self.seed)
        self.env.buy = Ledger(self.directory.purchases, task.ids, task.classes, self.problem.oracle).buy

    def _context(self, campaign: Campaign) -> Context:
        reward = self.problem.reward_for(campaign.task)[0]
        return Context(
            strategies=tuple(campaign.strategies), num_classes=campaign.task.num_classes, pool_size=len(campaign.pool),
            plan=campaign.plan, streams=campaign.streams, trainer=self.problem.trainer,
            net=functools.partial(self.problem.make_net, campaign.task),
            simulate=self.env.simulate if self.selector.oracle else None, reward_range=(reward.low, reward.high),
        )  # fmt: skip

    def _close(self, seconds: float) -> Run:
        campaign = self.env.campaign
        summary = self._summary(campaign, seconds)
        if self.directory is not None:
            write_atomically(
                self.directory.model, save({k: v.cpu().contiguous() for k, v in campaign.model.state_dict().items()})
            )
        return Run(tuple(campaign.records), summary, campaign.model, self.config, self.directory.path if self.directory else None)

    def _summary(self, campaign: Campaign, seconds: float) -> dict[str, Any]:
        records, primary = campaign.records, campaign.task.primary
        values = [r.metrics.get(primary) for r in records]
        known = [v for v in values if v is not None]
        complete = len(known) == len(values)
        return {
            "aubc": area_under_curve([r.bought for r in records], known) if complete else None,
            "final": values[-1],
            "metric": primary,
            "metrics": records[-1].to_json()["metrics"],
            "validation": records[-1].validation,
            "labels": records[-1].labels,
            "bought": records[-1].bought,
            "cost": records[-1].cost,
            "rounds": len(records) - 1,
            "seconds": round(seconds, 3),
            "versions": versions(),
            "seed": self.seed,
            "device": str(self.problem.trainer.device),
            "config_hash": config_hash(self.config),
            "data_hash": campaign.task.fingerprint(),
            "setting": dict(campaign.task.facts),
        }

    def _finished(self) -> Run | None:
        """Return the run that this directory already holds, if it is finished."""
        assert self.directory is not None
        return _load(self.directory.path, self.problem) if self.directory.summary.exists() else None


def load_run(path: str | Path) -> Run:
    """Return a finished run from its directory; the model is rebuilt and ready to predict on inputs as stored.

    Raises:
        ValueError: there is no finished run.
    """
    path = Path(path).absolute()
    if not (path / "summary.json").exists():
        raise ValueError(
            f"{path} holds no finished run (no summary.json); run it to the end first, the same command continues it"
        )
    return _load(path, Runner.of(_config(path)).problem)


def _load(path: Path, problem: Problem) -> Run:
    records = tuple(Record.from_json(line) for line in read_lines(path / "rounds.jsonl"))
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    task = problem.task(summary["seed"])
    with Streams(summary["seed"]).scoped("init"):  # making weights draws from the global generators
        model = problem.make_net(task).to(problem.trainer.device)
    weights = load_file(path / "model.safetensors", device=str(problem.trainer.device))
    model.load_state_dict({name: value for name, value in weights.items() if not name.startswith("aux.")})
    return Run(records, summary, model.eval().requires_grad_(False), _config(path), path)


def _config(path: Path) -> dict[str, Any]:
    return yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8")) or {}


@functools.cache  # reading them takes as long as a small round
def versions() -> dict[str, str]:
    """Return the versions of python, alenv and what results depend on."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("alenv", *VERSIONS):
        try:
            found.setdefault(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            continue
    return found


def _seconds(laps: dict[str, float]) -> dict[str, float]:
    """Return the times of a record: train, outputs, select (all strategies and the mixing), act, evaluate, and select/<name>."""
    total = sum(value for name, value in laps.items() if name.startswith("select")) + 0.0
    phases = {name: laps.get(name, 0.0) for name in ("train", "outputs", "act", "evaluate")} | {"select": total}
    return {name: round(value, 6) for name, value in (phases | {n: v for n, v in laps.items() if "/" in n}).items()}


def frame(rows: Sequence[Mapping[str, Any]]) -> "pandas.DataFrame":
    """Return the objects of a `rounds.jsonl` as a table, see `Run.records`."""
    import pandas

    plain = [{k: v for k, v in row.items() if not isinstance(v, dict)} for row in rows]
    nested = [
        {
            inner if k == "metrics" else f"{k}/{inner}": x
            for k in ("metrics", "selector", "seconds")
            for inner, x in row[k].items()
        }
        for row in rows
    ]
    return pandas.DataFrame([a | b for a, b in zip(plain, nested, strict=True)])
