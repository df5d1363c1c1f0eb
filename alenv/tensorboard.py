"""A run in TensorBoard: curves over label counts, weights of strategies, queried images, the configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from alenv.campaign import Campaign
from alenv.record import Record
from alenv.render import image_grid
from alenv.rundir import flat
from alenv.runner import Callback, Run

IMAGES_SHOWN = 40
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
