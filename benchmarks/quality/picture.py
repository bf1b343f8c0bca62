"""Draws mean KL against bits a weight, us and the peers; and what a student learns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.quality.candidate import OURS
from benchmarks.quality.report import Row, Rows
from compile.report.content import Curve

if TYPE_CHECKING:  # matplotlib takes a second
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {OURS: "#1f6fb4"}
PEER_COLOUR = "#e08a3c"
LABEL_WIDTH, LABEL_HEIGHT = 260, 14  # pixels that a name takes, about


def draw(rows: Rows, path: Path) -> None:
    """A point a candidate, KL logarithmic; a line through each maker's best for their bits."""
    figure, axis = empty(6)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    axis.tick_params(axis="y", which="minor", labelsize=7)
    for maker in dict.fromkeys(row["maker"] for row in rows.values()):
        points = [at(row) for row in rows.values() if row["maker"] == maker]
        colour = COLOURS.get(maker, PEER_COLOUR)
        axis.plot(*zip(*points, strict=True), "o", color=colour)
        axis.plot(*zip(*frontier(points), strict=True), color=colour, linewidth=1, alpha=0.4)
    axis.margins(x=0.2, y=0.1)
    axis.set_xlabel("bits a weight, over all matrices")
    axis.set_ylabel("mean KL to the teacher, nats a token")
    label(axis, {name: at(row) for name, row in rows.items()})
    figure.savefig(path, dpi=110)


def at(row: Row) -> tuple[float, float]:
    """Where a candidate stands."""
    return row["bits_per_weight"], row["exact"]["kl_mean"]


def frontier(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that are lower than all with no more bits, from few bits to many."""
    best: list[tuple[float, float]] = []
    for point in sorted(points):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


def label(axis: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Write each name beside its point, raised where it would stand on another's."""
    taken: list[tuple[float, float]] = []
    places = {name: axis.transData.transform(point) for name, point in points.items()}
    for name, (x, y) in sorted(places.items(), key=lambda item: item[1][1]):
        high = y
        for left, below in taken:
            if abs(left - x) < LABEL_WIDTH and high < below + LABEL_HEIGHT:
                high = below + LABEL_HEIGHT
        taken.append((x, high))
        axis.annotate(
            name, points[name], xytext=(12, (high - y) * 72 / axis.figure.dpi), va="center",
            textcoords="offset points", fontsize=7, arrowprops={"arrowstyle": "-", "alpha": 0.2},
        )  # fmt: skip


def draw_curve(curve: Curve, path: Path) -> None:
    """A student's loss, and its KL on held-out text, by steps."""
    figure, axis = empty(4)
    for name, colour in (("loss", PEER_COLOUR), ("kl", COLOURS[OURS])):
        steps, values = zip(*curve.values[name], strict=True)
        axis.plot(steps, values, "o-", markersize=3, label=name, color=colour)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("step")
    axis.set_ylabel("nats a token")
    axis.legend(frameon=False)
    figure.savefig(path, dpi=110)


def empty(height: float) -> tuple[Figure, Axes]:
    """A picture of 9 by ``height`` inches to draw into."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height), layout="constrained")
    axis = figure.add_subplot()
    axis.grid(which="both", color="#eeeeee")
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis
