"""Pictures without a plotting library: the curve of a campaign, grids of queried images, tables as text."""

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table
from torch import Tensor

from alenv.record import Record

Pixels = npt.NDArray[np.uint8]
HEADINGS = ("round", "labels", "accuracy", "validation", "chosen", "reward", "seconds")


def chosen_text(record: Record, most: int = 3) -> str:
    """Return what was used in a round: "margin", or "margin 60% + kmeans 40%"."""
    if record.action is None:
        return "initial set"
    shares = sorted(zip(record.action, record.strategies, strict=True), reverse=True)
    used = [(w, name) for w, name in shares if w >= 0.005]
    if len(used) == 1:
        return used[0][1]
    text = " + ".join(f"{name} {w:.0%}" for w, name in used[:most])
    return text + (" + ..." if len(used) > most else "")


def row(record: Record) -> tuple[str, ...]:
    """Return one line of the table, in the order of `HEADINGS`."""
    seconds = sum(value for name, value in record.seconds.items() if "/" not in name)
    return (
        str(record.round), str(record.labels), _percent(record.metrics.get("accuracy")), _percent(record.validation),
        chosen_text(record), "" if record.reward is None else f"{record.reward:+.3f}", f"{seconds:.2f}" if record.seconds else "",
    )  # fmt: skip


def table(records: Sequence[Record], title: str | None = None) -> Table:
    """Return the rounds as a rich table."""
    made = Table(title=title, title_justify="left")
    for heading in HEADINGS:
        text = heading == "chosen"
        made.add_column(heading, justify="left" if text else "right", no_wrap=not text, min_width=None if text else len(heading))
    for record in records:
        made.add_row(*row(record))
    return made


def table_text(records: Sequence[Record]) -> str:
    """Return the rounds as plain text."""
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(table(records))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def curve_image(records: Sequence[Record], width: int = 480, height: int = 320) -> Pixels:
    """Return (height, width, 3): accuracy on validation (test accuracy where there is none) over purchases."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    left, right, top, bottom = 48, width - 12, 16, height - 28
    for tick in range(0, 101, 20):
        y = bottom - (bottom - top) * tick / 100
        draw.line([(left, y), (right, y)], fill=(225, 225, 225))
        draw.text((8, y - 6), f"{tick} %", fill=(90, 90, 90))
    known = [(r.bought, r.validation if r.validation is not None else r.metrics.get("accuracy")) for r in records]
    points = [(bought, value) for bought, value in known if value is not None]
    if points:
        first, last = points[0][0], max(points[-1][0], points[0][0] + 1)
        dots = [(left + (right - left) * (b - first) / (last - first), bottom - (bottom - top) * v) for b, v in points]
        if len(dots) > 1:
            draw.line(dots, fill=(31, 119, 180), width=3)
        for x, y in dots:
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=(31, 119, 180))
        draw.text((left, bottom + 8), f"{first} labels", fill=(90, 90, 90))
        draw.text((right - 70, bottom + 8), f"{points[-1][0]} labels", fill=(90, 90, 90))
    return np.asarray(image, dtype=np.uint8).copy()


def image_grid(images: Tensor, captions: Sequence[str], columns: int = 10, side: int = 64) -> Pixels:
    """Return a sheet of captioned pictures.

    Args:
        images: (n, channels, height, width) with 1 or 3 channels, any range; each is stretched to its own.
        captions: n short texts.
        columns: pictures in a row.
        side: pixels of a picture's side.
    """
    rows, caption_height = -(-len(images) // columns), 14
    sheet = Image.new("RGB", (columns * (side + 4), max(1, rows) * (side + caption_height + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, caption) in enumerate(zip(images.float().cpu(), captions, strict=True)):
        low, high = float(picture.min()), float(picture.max())
        scaled = ((picture - low) / max(high - low, 1e-9) * 255).byte().permute(1, 2, 0).numpy()
        tile = Image.fromarray(scaled.repeat(3, 2) if scaled.shape[2] == 1 else scaled)
        x, y = (i % columns) * (side + 4) + 2, (i // columns) * (side + caption_height + 4) + 2
        sheet.paste(tile.resize((side, side), Image.Resampling.NEAREST), (x, y))
        draw.text((x, y + side), caption[: side // 6], fill=(60, 60, 60))
    return np.asarray(sheet, dtype=np.uint8).copy()


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
