"""Where the cells of a grid are computed: this process, a pool of processes, Ray, Slurm. Results are the same bit for bit."""

import contextlib
import functools
import importlib
import os
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from alenv.grid import Cell

if TYPE_CHECKING:
    from alenv.task import Source

TAIL = 12  # lines of a failed cell's log that are shown


class Event(NamedTuple):
    """What happened to a cell.

    Attributes:
        cell: which.
        kind: a lost cell (its process died) is started again; a failed one is not.
        log: the tail of what a failed or lost cell wrote; empty otherwise.
    """

    cell: Cell
    kind: Literal["started", "finished", "lost", "failed"]
    log: str = ""


class Executor(ABC):
    """Computes cells; a cell that fails does not stop the others, and one that was begun continues."""

    @abstractmethod
    def run(self, cells: Sequence[Cell], root: Path) -> Iterator[Event]:
        """Compute `cells` of the grid at `root` and yield what happens, as it happens."""

    @property
    def width(self) -> int | None:
        """How many cells are computed at once; None where that is not known here."""
        return None


class Inline(Executor):
    """This process: no start-up time, for small grids, debuggers, and many seeds of small runs.

    With lanes, seeds of one (task, policy) go side by side and train as one batch (`Trainer.fit_many`); a policy's seconds of
    training then hold the wait for its neighbours.

    Args:
        lanes: runs side by side; 1 is one after the other.
    """

    def __init__(self, lanes: int = 1) -> None:
        if lanes < 1:
            raise ValueError(f"expected executor.lanes >= 1, got {lanes}")
        self.lanes = lanes

    @property
    def width(self) -> int:
        """The number of lanes."""
        return self.lanes

    def run(self, cells: Sequence[Cell], root: Path) -> Iterator[Event]:
        """See `Executor`."""
        sources = Sources()
        kin: dict[tuple[str, str], list[Cell]] = {}
        for cell in cells:
            kin.setdefault((cell.task, cell.policy) if self.lanes > 1 else ("", ""), []).append(cell)
        for group in kin.values():
            for first in range(0, len(group), self.lanes):
                together = group[first : first + self.lanes]
                yield from (Event(cell, "started") for cell in together)
                several = len(together) > 1
                reasons = _side_by_side(together, root, sources) if several else [attempt(together[0], root, sources)]
                yield from map(_outcome, together, reasons)


class Local(Executor):
    """A pool of processes on this machine, one CPU thread each.

    A process that dies (out of memory, killed) is replaced and its cell continues from its last checkpoint.

    Args:
        workers: processes; None for one per CPU core this process may use.
        attempts: how often a cell is started before its deaths count as a failure.
    """

    def __init__(self, workers: int | None = None, attempts: int = 3) -> None:
        for name, value in (("workers", workers), ("attempts", attempts)):
            if value is not None and value < 1:
                raise ValueError(f"expected executor.{name} >= 1, got {value}")
        self.workers, self.attempts = workers, attempts

    @property
    def width(self) -> int:
        """The number of processes."""
        here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return self.workers or here or 1

    def run(self, cells: Sequence[Cell], root: Path) -> Iterator[Event]:
        """See `Executor`."""
        waiting = deque(cells)
        starts = dict.fromkeys((cell.name for cell in cells), 0)
        idle: list[_Worker] = []
        busy: dict[Connection, _Worker] = {}
        try:
            while waiting or busy:
                while waiting and len(busy) < self.width:
                    worker = idle.pop() if idle else _Worker()
                    cell = waiting.popleft()
                    starts[cell.name] += 1
                    worker.start(cell, root)
                    busy[worker.pipe] = worker
                    yield Event(cell, "started")
                for pipe in connection.wait(list(busy)):
                    assert isinstance(pipe, Connection)
                    worker = busy.pop(pipe)
                    cell = worker.cell
                    try:
                        yield _outcome(cell, pipe.recv())
                        idle.append(worker)
                    except (EOFError, ConnectionError):
                        again = starts[cell.name] < self.attempts
                        waiting.extendleft([cell] * again)
                        yield Event(cell, "lost" if again else "failed", f"{tail(cell, root)}{worker.epitaph()}")
        finally:
            for worker in (*idle, *busy.values()):
                worker.stop()


class Ray(Executor):
    """A Ray cluster, or Ray on this machine. The grid's directory must be seen by all nodes.

    Args:
        address: of the cluster; None starts Ray here.
        cpus: per cell.
        gpus: per cell; may be a fraction.
        attempts: how often a cell is started before its deaths count as a failure.
    """

    def __init__(self, address: str | None = None, cpus: float = 1, gpus: float = 0, attempts: int = 3) -> None:
        self.address, self.cpus, self.gpus, self.attempts = address, cpus, gpus, attempts

    def run(self, cells: Sequence[Cell], root: Path) -> Iterator[Event]:
        """See `Executor`."""
        ray = _needed("ray")
        begun = not ray.is_initialized()
        if begun:
            ray.init(address=self.address, log_to_driver=False, include_dashboard=False)
        try:
            remote = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=self.attempts - 1)(attempt)
            pending = {remote.remote(cell, root): cell for cell in cells}
            while pending:
                (done,), _ = ray.wait(list(pending), num_returns=1)
                cell = pending.pop(done)
                try:
                    yield _outcome(cell, ray.get(done))
                except ray.exceptions.RayError as error:
                    yield Event(cell, "failed", f"{tail(cell, root)}{error}")
        finally:
            if begun:
                ray.shutdown()


class Slurm(Executor):
    """Slurm, through submitit: a job array with a job per cell. The grid's directory must be seen by all nodes.

    Args:
        partition: to submit to; None for the cluster's default.
        minutes: a cell may take; one that takes longer continues when the command is re-issued.
        cpus: per cell.
        gpus: per cell.
        memory: per cell, in GB; None for the cluster's default.
        parallel: jobs at once at most.
        options: further parameters of submitit's executor, such as {slurm_account: ...}.
        cluster: "slurm"; "local" runs the jobs as processes of this machine.
        poll: seconds between looks.
    """

    def __init__(
        self, partition: str | None = None, minutes: int = 240, cpus: int = 1, gpus: int = 0, memory: float | None = None,
        parallel: int = 256, options: dict[str, Any] | None = None, cluster: str = "slurm", poll: float = 5.0,
    ) -> None:  # fmt: skip
        given = {"slurm_partition": partition, "mem_gb": memory, "gpus_per_node": gpus or None}
        self.parameters = {"timeout_min": minutes, "cpus_per_task": cpus, "slurm_array_parallelism": parallel}
        self.parameters |= {key: value for key, value in given.items() if value is not None} | (options or {})
        self.cluster, self.poll = cluster, poll

    def run(self, cells: Sequence[Cell], root: Path) -> Iterator[Event]:
        """See `Executor`."""
        executor = _needed("submitit").AutoExecutor(folder=root / "slurm", cluster=self.cluster)
        executor.update_parameters(**self.parameters)
        jobs = executor.map_array(attempt, cells, [root] * len(cells))
        pending = list(zip(jobs, cells, strict=True))
        try:
            while pending:
                for job, cell in [entry for entry in pending if entry[0].done()]:
                    pending.remove((job, cell))
                    try:
                        yield _outcome(cell, job.result())
                    except Exception as error:  # submitit raises whatever ended the job
                        yield Event(cell, "failed", f"{tail(cell, root)}{error}")
                if pending:
                    time.sleep(self.poll)
        finally:
            for job, _ in pending:
                job.cancel()


class Sources:
    """The data set that was read last: runs on the same one share it."""

    def __init__(self) -> None:
        self._content: Any = None
        self._source: Source

    def of(self, cell: Cell) -> "Source":
        """Return the data set of `cell`."""
        from alenv import library

        content = cell.config["dataset"]
        if self._content != content:
            self._content, self._source = None, library.build("dataset", content)
            self._content = content
        return self._source


def attempt(cell: Cell, root: Path, sources: Sources | None = None) -> str | None:
    """Compute a cell with one CPU thread, its output and warnings in `log.txt` of its directory; return why it failed, if so."""
    log = _log(cell, root)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            _compute(cell, root, sources or Sources())
        except Exception:  # whatever it is, the others go on
            traceback.print_exc()
            file.flush()
            return tail(cell, root)
    if not log.stat().st_size:
        log.unlink()
    return None


def tail(cell: Cell, root: Path) -> str:
    """Return the last lines of a cell's log."""
    log = _log(cell, root)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return "".join(f"{line}\n" for line in lines[-TAIL:])


def _compute(cell: Cell, root: Path, sources: Sources) -> None:
    import torch

    from alenv.runner import Runner

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # sums over several threads round differently: one everywhere, or results depend on the machine
    try:
        Runner.of(cell.config, cell.directory(root), source=sources.of(cell)).run()
    finally:
        torch.set_num_threads(before)


def _side_by_side(cells: Sequence[Cell], root: Path, sources: Sources) -> list[str | None]:
    """Compute cells of one policy in lanes; return why each failed, if it did."""
    from alenv import library
    from alenv.lanes import LaneTrainer, run_lanes
    from alenv.runner import Runner

    reasons: dict[str, str | None] = {}

    def errand(cell: Cell, trainer: LaneTrainer) -> None:
        try:
            Runner.of(cell.config, cell.directory(root), trainer=trainer, source=sources.of(cell)).run()
            reasons[cell.name] = None
        except Exception:  # whatever it is, the others go on
            _log(cell, root).parent.mkdir(parents=True, exist_ok=True)
            with _log(cell, root).open("a", encoding="utf-8") as file:
                traceback.print_exc(file=file)
            reasons[cell.name] = tail(cell, root)

    config = cells[0].config
    trainer = library.build("trainer", config["trainer"], device=config["device"])
    run_lanes([functools.partial(errand, cell) for cell in cells], trainer)
    return [reasons[cell.name] for cell in cells]


def _log(cell: Cell, root: Path) -> Path:
    return cell.directory(root) / "log.txt"


def _outcome(cell: Cell, reason: str | None) -> Event:
    return Event(cell, "finished") if reason is None else Event(cell, "failed", reason)


def _needed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f'{module} is not installed; pip install "alenv[scale]", or use executor=local') from error


class _Worker:
    """A process that computes one cell after the other."""

    cell: Cell

    def __init__(self) -> None:
        context = get_context("spawn")  # a fork would inherit threads and locks of torch
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # theirs alone: its death is then the end of the pipe

    def start(self, cell: Cell, root: Path) -> None:
        self.cell = cell
        with contextlib.suppress(ConnectionError):  # it died while idle: the pipe's end tells
            self.pipe.send((cell, root))

    def epitaph(self) -> str:
        self.process.join()
        self.pipe.close()
        code = self.process.exitcode or 0
        return f"the process died ({f'signal {-code}' if code < 0 else f'exit code {code}'})"

    def stop(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


def _work(pipe: Connection) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything reads it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sources = Sources()
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            cell, root = pipe.recv()
            with _descriptors(_log(cell, root)):
                reason = attempt(cell, root, sources)
            pipe.send(reason)


def _end_with_parent() -> None:
    """A cell that outlived its grid would hold its directory when the command is re-issued."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def _descriptors(log: Path) -> Iterator[None]:
    """Lead what native code writes into `log` as well, last words included."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    yield
