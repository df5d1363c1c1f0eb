"""TensorBoard. A run: curves over labels, weights of strategies, queried images. A comparison: bands, and a pool to look at."""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from alenv.campaign import Campaign
from alenv.grid import Cell
from alenv.record import Record
from alenv.render import image_grid
from alenv.rundir import flat
from alenv.runner import Callback, Run, Runner

if TYPE_CHECKING:
    from alenv.task import Task
    from alenv.verdict import Verdict

IMAGES_SHOWN = 40
POINTS_SHOWN = 5000  # of a pool in the projector
SPRITE = 8192  # pixels: the widest sheet of pictures that browsers take
FINAL = ("final/aubc", "final/accuracy")  # the same in every run, so that the table of hyper-parameters keeps its columns


class TensorBoard(Callback):
    """Writes one event file into the run directory; the step is the number of labels bought, not the round.

    Tags: `task/<metric>`, `task/validation`, `reward`, `selector/weight/<strategy>`, `selector/<what update returned>`,
    `select/seconds/<strategy>`, `seconds/<phase>`, `queried` (images), `config` (text), hyper-parameters with the final metrics.
    """

    def begin(self, campaign: Campaign, directory: Path | None, config: Mapping[str, Any], note: str) -> None:
        """Open the file; a continued run purges what a killed process wrote from its checkpoint's last round on."""
        assert directory is not None, "TensorBoard needs a run directory"
        self._config = config
        started, first = any(directory.glob("events.out.tfevents.*")), len(campaign.records) == 1
        step = 0 if first else campaign.records[-1].bought  # the last round is told again, see `Callback.round`
        self._writer = SummaryWriter(str(directory), purge_step=step if started else None)
        if first:
            text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
            self._writer.add_text("config", "    " + text.replace("\n", "\n    "), 0)

    def round(self, record: Record, campaign: Campaign) -> None:
        """Write one round."""
        write, step = self._writer.add_scalar, record.bought
        for name, value in record.metrics.items():
            if value is not None:
                write(f"task/{name}", value, step)
        if record.validation is not None:
            write("task/validation", record.validation, step)
        if record.reward is not None:
            write("reward", record.reward, step)
        for name, weight in zip(record.strategies, record.action or (), strict=False):
            write(f"selector/weight/{name}", weight, step)
        for name, value in record.selector.items():
            write(f"selector/{name}", value, step)
        for name, value in record.seconds.items():
            write(f"select/seconds/{name.removeprefix('select/')}" if "/" in name else f"seconds/{name}", value, step)
        self._write_images(record, campaign)
        self._writer.flush()

    def end(self, run: Run) -> None:
        """Write hyper-parameters and final metrics, into this event file and no other."""
        values = {
            n: v if isinstance(v, bool | int | float | str) else str(v) for n, v in flat(self._config).items() if v is not None
        }
        final = dict(zip(FINAL, (run.summary["aubc"], run.summary["final"]), strict=True))
        known = {name: value for name, value in final.items() if value is not None}
        for summary in hparams(values, known):
            self._writer.file_writer.add_summary(summary)
        for name, value in known.items():
            self._writer.add_scalar(name, value, run.summary["bought"])

    def close(self) -> None:
        """Close the file."""
        if hasattr(self, "_writer"):
            self._writer.close()

    def _write_images(self, record: Record, campaign: Campaign) -> None:
        inputs = campaign.task.inputs
        if inputs.dim() != 4 or inputs.shape[1] not in (1, 3):
            return
        last = campaign.round.last
        assert last is not None
        names = [campaign.task.classes[c] if c >= 0 else "-" for c in last.labels[:IMAGES_SHOWN].tolist()]
        sheet = image_grid(inputs[last.indices[:IMAGES_SHOWN]], names)
        self._writer.add_image("queried", torch.from_numpy(sheet), record.bought, dataformats="HWC")


def write_comparison(folder: Path, verdict: "Verdict", cells: Sequence[Cell], root: Path) -> None:
    """Write a run per policy into `folder`: mean, low and high of every task's curve, drawn as bands under "Custom Scalars".

    The first seed of the first task goes to the projector: every example of its pool, with its class and, for each policy, the
    round in which it was bought, to colour by. What lay in the folder is removed.

    Args:
        folder: of the event files.
        verdict: the curves; intervals are those of the report's figures.
        cells: of the grid.
        root: of the grid.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for policy in verdict.policies:
        with SummaryWriter(str(folder / policy.replace("/", "_"))) as writer:
            for task in verdict.common(policy):
                for name, curve in zip(("mean", "low", "high"), verdict.band(task, policy), strict=True):
                    for bought, value in curve.items():
                        writer.add_scalar(f"{task}/{name}", value, int(str(bought)))
            if policy == verdict.policies[0]:  # one layout serves all runs
                bands = {t: {verdict.metric(t): ["Margin", [f"{t}/{n}" for n in ("mean", "low", "high")]]} for t in verdict.tasks}
                writer.add_custom_scalars(bands)
    same = [c for c in cells if c.task == verdict.tasks[0] and c.finished(root)]
    if same:
        _write_pool(folder / "pool", [cell for cell in same if cell.seed == same[0].seed], root)


def _write_pool(folder: Path, cells: Sequence[Cell], root: Path) -> None:
    """Write the pool that the cells bought from, as inputs that their nets see."""
    task = Runner.of(cells[0].config).problem.task(cells[0].seed)
    shown = torch.arange(len(task))[:: math.ceil(len(task) / POINTS_SHOWN)]
    inputs = task.inputs[shown]
    if inputs.dim() == 2 and task.tokens is not None:
        return  # numbers of tokens are no place
    rounds = {cell.policy: {id_: str(r["round"]) for r in cell.result(root)["records"] for id_ in r["queried"]} for cell in cells}
    rows = [
        [task.classes[c] if c >= 0 else "outside", *(bought.get(task.ids[i], "never") for bought in rounds.values())]
        for i, c in zip(shown.tolist(), task.targets[shown].tolist(), strict=True)
    ]
    with SummaryWriter(str(folder)) as writer:
        writer.add_embedding(
            ((inputs.float() - task.mean) / task.std).flatten(1).cpu(), rows, _pictures(task, shown), tag=task.name,
            metadata_header=["class", *(f"{policy}: bought in round" for policy in rounds)],
        )  # fmt: skip


def _pictures(task: "Task", shown: torch.Tensor) -> torch.Tensor | None:
    inputs = task.inputs[shown]
    if inputs.dim() != 4 or inputs.shape[1] not in (1, 3) or math.ceil(math.sqrt(len(inputs))) * max(inputs.shape[2:]) > SPRITE:
        return None
    low, high = inputs.amin().float(), inputs.amax().float()
    return ((inputs.float() - low) / (high - low).clamp(min=1e-9)).expand(-1, 3, -1, -1).cpu()
