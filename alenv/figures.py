"""Figures of a comparison, as text: SVG, or PNG where they hold pictures. No display is needed."""

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alenv import library
from alenv.grid import Cell

if TYPE_CHECKING:
    import pandas

    from alenv.task import Source
    from alenv.verdict import Verdict

INK = "#6b7076"  # readable on white and on black; pages put the colour of their text in its place
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#a6761d")  # Okabe & Ito's, mostly
DASHES = ("-", "--", ":", "-.")
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "alenv", "font.size": 10, "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": INK, "axes.titlecolor": INK, "xtick.color": INK, "ytick.color": INK, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True,
}  # fmt: skip
MANY = 6  # policies, from which on a legend has no room among the curves
PICTURES = 10  # queried pictures of a round


class Drawing(NamedTuple):
    """A figure: its file name, what it shows in one sentence, and the file's content."""

    name: str
    caption: str
    content: str | bytes

    @property
    def html(self) -> str:
        """The figure as part of a page."""
        if isinstance(self.content, bytes):
            return f'<img alt="{self.name}" src="data:image/png;base64,{base64.b64encode(self.content).decode()}">'
        return self.content[self.content.index("<svg") :].replace(INK, "currentColor")


def draw(verdict: "Verdict", cells: Sequence[Cell], root: Path) -> list[Drawing]:
    """Return all figures there is something to show in."""
    made = [*learning_curves(verdict), rank_diagram(verdict), time_against_accuracy(verdict), *weights(verdict)]
    return [figure for figure in [*made, *queried(cells, root)] if figure is not None]


def learning_curves(verdict: "Verdict") -> Iterable[Drawing]:
    """Yield a task's mean curves over labels, with 95 % intervals of the mean over seeds (Student's t)."""
    many = len(verdict.policies) > MANY
    pale = 0.04 if many else 0.12
    for task in verdict.tasks:

        def plot(axes: Axes, task: str = task) -> None:
            low, high = np.inf, -np.inf
            for policy in verdict.policies:
                if (task, policy) not in verdict.curves:
                    continue
                mean, below, above = verdict.band(task, policy)
                bought = mean.index.to_numpy(float)
                axes.plot(bought, mean, label=policy, **_line(verdict, policy))
                low, high = min(low, mean.min()), max(high, mean.max())
                if len(verdict.curves[task, policy]) > 1:
                    axes.fill_between(bought, below, above, color=_color(verdict, policy), alpha=pale, linewidth=0)
            room = 0.15 * (high - low) or 0.01  # a band of few seeds may be wider than all there is to see
            axes.set(xlabel="labels bought", ylabel=verdict.metric(task), title=task, ylim=(low - room, high + room))
            beside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
            axes.legend(fontsize=9, **(beside if many else {"loc": "lower right"}))

        yield _svg(f"curves_{task}", f"{task}: mean over seeds; bands are 95 % intervals of the mean.", plot)


def rank_diagram(verdict: "Verdict") -> Drawing | None:
    """Return the critical-difference diagram: mean ranks, best at the left; a bar joins policies that the tests cannot part."""
    ranks = verdict.ranks.sort_values(kind="stable")
    if len(ranks) < 2 or len(verdict.areas.dropna()) < 2:
        return None
    half, count = (len(ranks) + 1) // 2, len(ranks)
    first, last = int(np.floor(ranks.min())), int(np.ceil(ranks.max()))
    wide = max(last - first, 1)

    def plot(axes: Axes) -> None:
        bars = [clique for clique in verdict.cliques if len(clique) > 1]
        top = 0.6 + 0.35 * len(bars)
        axes.hlines(0, first, first + wide, color=INK, linewidth=1)
        for tick in range(first, first + wide + 1):
            axes.vlines(tick, -0.15, 0, color=INK, linewidth=1)
            axes.text(tick, -0.3, str(tick), ha="center", va="bottom", fontsize=9)
        for i, (policy, rank) in enumerate(ranks.items()):
            left = i < half
            y, edge = top + 0.6 * (i if left else count - 1 - i), first - 0.03 * wide if left else first + 1.03 * wide
            axes.plot([rank, rank, edge], [0, y, y], color=_color(verdict, str(policy)), linewidth=1.2)
            text = f" {policy} ({rank:.2f}) "
            axes.text(edge, y, text, ha="right" if left else "left", va="center")
        for i, clique in enumerate(bars):
            y = 0.35 + 0.35 * i
            axes.hlines(y, ranks[clique[0]] - 0.01 * wide, ranks[clique[-1]] + 0.01 * wide, color=INK, linewidth=4)
        axes.set(xlim=(first - 0.5 * wide, first + 1.5 * wide), ylim=(top + 0.6 * half, -0.8))
        axes.axis("off")

    caption = (
        f"Mean ranks within (data set, seed), 1 is best. A bar joins policies that differ in no test "
        f"(Friedman p = {verdict.friedman:.2g}, then Wilcoxon with Holm's adjustment, 5 %)."
    )
    return _svg("ranks", caption, plot, height=1.6 + 0.32 * half)


def time_against_accuracy(verdict: "Verdict") -> Drawing:
    """Return what selecting costs against what it gains."""

    def plot(axes: Axes) -> None:
        points: list[tuple[str, float, float]] = []
        for policy in verdict.policies:
            area, seconds = verdict.area(policy), max(verdict.seconds(policy), 1e-4)
            reach = np.nan_to_num([[area.value - area.low], [area.high - area.value]])
            axes.errorbar(seconds, area.value, reach, color=_color(verdict, policy), marker="o", capsize=3, linewidth=1)
            points.append((policy, seconds, area.value))
        axes.set(xscale="log", xlabel="seconds of selecting a run, median", ylabel="area under the curve")
        axes.margins(x=0.25, y=0.08)
        _name(axes, points)

    return _svg("seconds", "What selecting costs, and the area under the curve it gives (with 95 % intervals).", plot, height=4.6)


def weights(verdict: "Verdict") -> Iterable[Drawing]:
    """Yield, by task, the weights that every selector gave to strategies, round by round, as means over seeds."""
    rounds = verdict.rounds[verdict.rounds["round"] > 0]
    several = rounds[rounds["strategies"].map(len) > 1]
    for task, part in several.groupby("task", sort=False):
        tables = {str(policy): _mean_weights(runs) for policy, runs in part.groupby("policy", sort=False)}

        def plot(figure: Figure, tables: "Mapping[str, pandas.DataFrame]" = tables) -> None:
            all_axes = figure.subplots(len(tables), 1, squeeze=False)[:, 0]
            for axes, (policy, table) in zip(all_axes, tables.items(), strict=True):
                image = axes.imshow(table.T, aspect="auto", interpolation="nearest", cmap="viridis", vmin=0)
                axes.set(title=policy, yticks=range(table.shape[1]), yticklabels=table.columns, xlabel="round")
                axes.set_xticks(range(0, len(table), max(1, len(table) // 8)), table.index[:: max(1, len(table) // 8)])
                figure.colorbar(image, ax=axes, fraction=0.04)

        heights = sum(0.9 + 0.22 * table.shape[1] for table in tables.values())
        caption = f"{task}: weights of strategies by round, means over seeds."
        yield _svg_of(f"weights_{task}", caption, plot, height=heights)


def queried(cells: Sequence[Cell], root: Path) -> Iterable[Drawing]:
    """Yield, for image data, what each policy bought first and last under the first seed."""
    from alenv.render import image_grid

    sources: dict[str, Source] = {}
    first = min((cell.seed for cell in cells), default=0)
    for cell in cells:
        if cell.seed != first or not cell.finished(root):
            continue
        if cell.dataset not in sources:
            sources[cell.dataset] = library.build("dataset", cell.config["dataset"])
        source = sources[cell.dataset]
        if source.train.inputs.dim() != 4 or source.train.inputs.shape[1] not in (1, 3):
            continue
        position = {id_: i for i, id_ in enumerate(source.train.ids)}
        bought = [r["queried"][:PICTURES] for r in cell.result(root)["records"][1:]]
        ids = [id_ for batch in dict.fromkeys(map(tuple, (bought[:1] + bought[-1:]))) for id_ in batch]
        if ids:
            rows = [position[id_] for id_ in ids]
            names = [source.classes[c] if c >= 0 else "-" for c in source.train.targets[rows].tolist()]
            caption = f"{cell.task}, {cell.policy}, seed {cell.seed}: what it bought in the first and in the last round."
            yield Drawing(
                f"queried_{cell.task}_{cell.policy}", caption, _png(image_grid(source.train.inputs[rows], names, side=48))
            )


def _name(axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Write names beside points (name, x, y), lower where another name stands already."""
    axes.autoscale_view()  # else it would wait for the drawing, and nothing could be placed
    scale = 72 / axes.figure.dpi  # pixels to points
    taken: list[tuple[float, float, float]] = []  # left, right, height
    for name, x, y in sorted(points, key=lambda point: -point[2]):
        left, at = (scale * v for v in axes.transData.transform((x, y)))
        right, height = left + 5.5 * len(name) + 10, at
        above = sorted((h for start, end, h in taken if start < right and left < end), reverse=True)
        for other in above:
            height = min(height, other - 10) if abs(height - other) < 10 else height
        taken.append((left, right, height))
        thread = {"arrowstyle": "-", "linewidth": 0.5, "color": INK, "shrinkA": 0, "shrinkB": 2}
        axes.annotate(
            name, (x, y), xytext=(8, height - at - 3), textcoords="offset points", fontsize=8,
            arrowprops=thread if at - height > 6 else None,
        )  # fmt: skip


def _mean_weights(runs: "pandas.DataFrame") -> "pandas.DataFrame":
    """Return the mean action: a row per round, a column per strategy."""
    import pandas

    rows = [
        dict(zip(names, action, strict=True)) for names, action in zip(runs["strategies"], runs["action"], strict=True)
    ]  # per-class arms of runs may differ: what a run has not got, it gave no weight
    return pandas.DataFrame(rows, index=runs["round"]).fillna(0.0).groupby(level=0).mean()


def _svg(name: str, caption: str, plot: Callable[[Axes], None], height: float = 3.6) -> Drawing:
    return _svg_of(name, caption, lambda figure: plot(figure.add_subplot()), height)


def _svg_of(name: str, caption: str, plot: Callable[[Figure], None], height: float) -> Drawing:
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(6.4, height))
        plot(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Drawing(name, caption, file.getvalue())


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return file.getvalue()


def _line(verdict: "Verdict", policy: str) -> dict[str, Any]:
    number = verdict.policies.index(policy)
    return {"color": _color(verdict, policy), "linestyle": DASHES[number // len(COLORS) % len(DASHES)], "linewidth": 1.6}


def _color(verdict: "Verdict", policy: str) -> str:
    return COLORS[verdict.policies.index(policy) % len(COLORS)]
